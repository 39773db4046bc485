"""A laboratory host whose motion is given: it isolates what completes warped features from what moves them."""

from memcomp.adapters.true_motion.given import Given, pack
from memcomp.adapters.true_motion.host import TrueMotion

__all__ = ["Given", "TrueMotion", "pack"]
