"""Where the memory taps MCNet's generator, ours or upstream's: their modules have the same names."""

from memcomp.adapters.shared.warped_skip import inplace_taps
from memcomp.taps import KeypointTap

__all__ = ["KEYPOINTS", "inplace_taps"]

KEYPOINTS = KeypointTap("dense_motion_network")
