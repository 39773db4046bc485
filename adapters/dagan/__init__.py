"""DaGAN (Hong et al., CVPR 2022) as a host: the first-order motion model that also sees depth."""

from memcomp.adapters.dagan.host import DaGAN

__all__ = ["DaGAN"]
