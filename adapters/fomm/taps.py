"""Where the memory taps a first-order-motion generator, ours or upstream's: their modules have the same names."""

from torch import nn

from memcomp.taps import KeypointTap, Tap


def inplace_taps(generator: nn.Module) -> list[Tap]:
    """The warped, occluded feature before the bottleneck, then the decoder's features of each doubled size.

    Of vox-256 at 256×256: 256 channels 64×64, 128 channels 128×128, 64 channels 256×256.
    """
    blocks = generator.get_submodule("up_blocks")
    decoder = [f"up_blocks.{index}" for index in range(1, len(list(blocks.children())))]
    return [Tap(name) for name in ("bottleneck", *decoder, "final")]


KEYPOINTS = KeypointTap("dense_motion_network")
