"""Where the memory taps MCNet's generator, ours or upstream's: their modules have the same names."""

from torch import nn

from memcomp.taps import KeypointTap, Tap


def inplace_taps(generator: nn.Module) -> list[Tap]:
    """The lowest warped feature, the warped skips beside the decoder's feature, and the blend before the last layer.

    Of vox-256 at 256×256: 512 channels 32×32, 256 channels 64×64, 128 channels 128×128, 64 channels 256×256. The
    published memory leaves the last one out.
    """
    levels = len(list(generator.get_submodule("up_blocks").children()))
    skips = [Tap(f"resblock.{2 * index}", part="second_half") for index in range(1, levels)]
    return [Tap("resblock.0"), *skips, Tap("final")]


KEYPOINTS = KeypointTap("dense_motion_network")
