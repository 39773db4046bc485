"""Where the memory taps TPSM, ours or upstream's: in the inpainting network, the keypoints in the one beside it."""

from memcomp.adapters.shared.warped_skip import inplace_taps
from memcomp.taps import KeypointTap

__all__ = ["KEYPOINTS", "UPSTREAM_KEYPOINTS", "inplace_taps"]

KEYPOINTS = KeypointTap("dense_motion_network")
UPSTREAM_KEYPOINTS = KeypointTap("dense_motion_network", key="fg_kp")
