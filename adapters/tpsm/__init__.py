"""The thin-plate spline motion model (Zhao & Zhang, CVPR 2022) as a host."""

from memcomp.adapters.tpsm.host import TPSM

__all__ = ["TPSM"]
