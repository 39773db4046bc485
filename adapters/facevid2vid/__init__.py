"""One-shot free-view neural talking-head synthesis (face-vid2vid; Wang, Mallya and Liu, CVPR 2021) as a host."""

from memcomp.adapters.facevid2vid.host import FaceVid2Vid

__all__ = ["FaceVid2Vid"]
