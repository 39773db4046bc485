"""Earlier path of `memcomp.adapters.attachment.skip`, kept for imports and for modules that were pickled whole."""

from memcomp.adapters.attachment.skip import *  # noqa: F403
