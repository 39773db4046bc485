"""Earlier path of `memcomp.adapters.shared.blocks`, kept for imports and for modules that were pickled whole."""

from memcomp.adapters.shared.blocks import *  # noqa: F403
