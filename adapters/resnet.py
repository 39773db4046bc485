"""Earlier path of `memcomp.adapters.shared.resnet`, kept for imports and for modules that were pickled whole."""

from memcomp.adapters.shared.resnet import *  # noqa: F403
