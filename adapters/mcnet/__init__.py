"""MCNet (Hong & Xu, ICCV 2023): the host that the paper itself builds its memory into."""

from memcomp.adapters.mcnet.host import MCNet

__all__ = ["MCNet"]
