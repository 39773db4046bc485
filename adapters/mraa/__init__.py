"""Motion representations for articulated animation (Siarohin et al., CVPR 2021) as a host."""

from memcomp.adapters.mraa.host import MRAA

__all__ = ["MRAA"]
