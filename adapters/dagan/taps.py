"""Where the memory taps a DaGAN generator, ours or upstream's: their modules have the same names."""

from torch import nn

from memcomp.adapters.fomm import taps as fomm
from memcomp.taps import Tap

KEYPOINTS = fomm.KEYPOINTS


def inplace_taps(generator: nn.Module) -> list[Tap]:
    """As FOMM's; the first, the input of the bottleneck, is the feature after the depth attention.

    The SPADE variant has no bottleneck. There it is the input of the decoder (256 channels at 1/4 of the size, from
    which the decoder also makes its guide), the output of its first doubling block (256 channels at 1/2) and the input
    of its last convolution (64 channels at full size).
    """
    if not hasattr(generator, "decoder"):
        return fomm.inplace_taps(generator)
    middle = generator.get_submodule("decoder.up_0.conv_1")
    weight = dict(middle.named_parameters())["weight_orig"]  # spectrally normalised: tap_channels would not see it
    return [
        Tap("decoder"),
        Tap("decoder.up_0", where="output", channels=weight.shape[0]),
        Tap("decoder.conv_img"),
    ]
