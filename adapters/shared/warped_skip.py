"""The generator that TPSM and MCNet share: the features of every encoder level are warped and reach the decoder."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memcomp.adapters.shared.blocks import DownBlock, Norm, ResBlock, SameBlock, UpBlock, check_halves, warp
from memcomp.taps import Tap

PARTS = frozenset({"first", "down_blocks", "up_blocks", "resblock", "final"})  # its children, here and upstream


class WarpedSkipGenerator(nn.Module):
    """Encodes the source, warps and dims the features of every level, decodes coarse to fine, blends with the image.

    Sampling and resizing use align_corners=True, as both upstreams do. Subclasses call `build` after they registered
    what upstream's state dict has before these layers.
    """

    def build(
        self,
        num_channels: int,
        block_expansion: int,
        max_features: int,
        num_down_blocks: int,
        norm: Norm = nn.BatchNorm2d,
    ) -> None:
        """Make the layers; level i of the encoder has min(max_features, block_expansion · 2^i) channels.

        The decoder at level i takes as many from above as from the encoder, so twice the width (the lowest: once).

        Raises:
            ValueError: no level below the image's size.
        """
        if num_down_blocks < 1:
            raise ValueError(f"generator_params.num_down_blocks: expected 1 or more, got {num_down_blocks}")
        widths = [min(max_features, block_expansion * 2**level) for level in range(num_down_blocks + 1)]
        joined = [2 * width for width in widths[1:-1]] + widths[-1:]
        self.first = SameBlock(num_channels, widths[0], kernel_size=7, norm=norm)
        self.down_blocks = nn.ModuleList(DownBlock(fine, coarse, norm=norm) for fine, coarse in pairwise(widths))
        decoder = list(zip(joined, widths[:-1], strict=True))[::-1]
        self.up_blocks = nn.ModuleList(UpBlock(coarse, fine, norm=norm) for coarse, fine in decoder)
        self.resblock = nn.ModuleList(ResBlock(coarse, norm) for coarse, _ in decoder for _ in range(2))
        self.final = nn.Conv2d(widths[0], num_channels, 7, padding=3)
        self.num_channels = num_channels

    @staticmethod
    def joined_dims(parameter: str) -> tuple[int, ...]:
        """Dimensions of a parameter along which a decoded feature and a warped one lie side by side."""
        layer, _, rest = parameter.partition(".")
        index = rest.partition(".")[0]
        if layer == "resblock" and int(index) > 1:
            return (0, 1)
        return (1,) if layer == "up_blocks" and int(index) > 0 and rest.endswith("conv.weight") else ()

    def deform_input(self, inp: Tensor, deformation: Tensor) -> Tensor:
        """Warp (B, C, H, W) by a flow (B, h, w, 2) of any size, which is resized to H × W first."""
        if deformation.shape[1:3] != inp.shape[2:]:
            flow = _resize(deformation.permute(0, 3, 1, 2), inp)
            deformation = flow.permute(0, 2, 3, 1)
        return warp(inp, deformation, align_corners=True)

    def occlude_input(self, inp: Tensor, occlusion_map: Tensor) -> Tensor:
        """(B, C, H, W) times a map (B, 1, h, w) of any size, which is resized first."""
        return inp * _resize(occlusion_map, inp)

    def encode(self, image: Tensor) -> list[Tensor]:
        """Images (B, C, H, W) → the features of every level, coarse to fine; the finest has the image's size.

        Raises:
            ValueError: height or width cannot be halved as often as there are levels.
        """
        check_halves("a generator", len(self.down_blocks), image)
        levels = [self.first(image)]
        for block in self.down_blocks:
            levels.append(block(levels[-1]))
        return levels[::-1]

    def decode(self, warped: Sequence[Tensor], deformed: Tensor, occlusion_map: Tensor) -> Tensor:
        """The picture.

        Args:
            warped: features of every level, coarse to fine, warped and occluded.
            deformed: the warped image (B, C, H, W).
            occlusion_map: (B, 1, h, w), 1 = take the warped feature and the warped image.

        Returns:
            (B, C, H, W).
        """
        *skips, finest = warped
        out = skips[0]
        for index, block in enumerate(self.up_blocks):
            if index:
                out = torch.cat([out, skips[index]], dim=1)
            out = self.resblock[2 * index + 1](self.resblock[2 * index](out))
            out = block(out)  # half the channels, twice the size
        visible = _resize(occlusion_map, out)
        out = torch.sigmoid(self.final(out * (1 - visible) + finest))
        return out * (1 - visible) + deformed * visible


def inplace_taps(generator: nn.Module) -> list[Tap]:
    """Where the memory taps such a generator, ours or upstream's: their modules have the same names.

    The lowest warped feature, the warped skips beside the decoder's feature, and the blend before the last layer. Of
    vox-256 at 256×256: 512 channels 32×32, 256 channels 64×64, 128 channels 128×128, 64 channels 256×256. The
    published memory leaves the last one out.
    """
    levels = len(list(generator.get_submodule("up_blocks").children()))
    skips = [Tap(f"resblock.{2 * index}", part="second_half") for index in range(1, levels)]
    return [Tap("resblock.0"), *skips, Tap("final")]


def _resize(x: Tensor, like: Tensor) -> Tensor:
    """(B, C, h, w) bilinearly at the height and width of `like`."""
    if x.shape[2:] == like.shape[2:]:
        return x
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=True)
