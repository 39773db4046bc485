"""Earlier path of `memcomp.adapters.shared.warped_skip`, kept for imports and for modules that were pickled whole."""

from memcomp.adapters.shared.warped_skip import *  # noqa: F403
