"""Earlier path of `memcomp.adapters.shared.losses`, kept for imports."""

from memcomp.adapters.shared.losses import *  # noqa: F403
