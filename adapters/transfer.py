"""Earlier path of `memcomp.adapters.shared.transfer`, kept for imports and for modules that were pickled whole."""

from memcomp.adapters.shared.transfer import *  # noqa: F403
