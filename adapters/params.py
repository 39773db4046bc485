"""Earlier path of `memcomp.adapters.shared.params`, kept for imports."""

from memcomp.adapters.shared.params import *  # noqa: F403
