"""Where the memory taps TPSM, ours or upstream's: `warped_skip_taps` of the inpainting network, keypoints beside it."""

from memcomp.taps import KeypointTap

KEYPOINTS = KeypointTap("dense_motion_network")
UPSTREAM_KEYPOINTS = KeypointTap("dense_motion_network", key="fg_kp")
