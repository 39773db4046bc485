"""The first-order motion model (Siarohin et al., NeurIPS 2019) as a host."""

from memcomp.adapters.fomm.host import FOMM

__all__ = ["FOMM"]
