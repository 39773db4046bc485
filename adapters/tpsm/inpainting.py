"""TPSM's inpainting network (Zhao & Zhang, 2022, §3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from memcomp.adapters.outputs import HostOutput
from memcomp.adapters.shared.blocks import instance_norm
from memcomp.adapters.shared.warped_skip import WarpedSkipGenerator
from memcomp.adapters.tpsm.motion import RESOLUTIONS, DenseMotion


@dataclass(frozen=True)
class Inpainted:
    """What the network made.

    Attributes:
        prediction, deformed: (B, C, H, W), the picture and the warped source.
        encoded: features of the source, coarse to fine, not yet warped.
    """

    prediction: Tensor
    deformed: Tensor
    encoded: tuple[Tensor, ...]


@dataclass(frozen=True)
class TPSMOutput(HostOutput):
    """A `HostOutput` and what the loss terms need. `occlusion_map` is the one whose size is nearest to the flow's.

    Attributes:
        occlusion_maps: of all resolutions, coarse to fine, (B, 1, h_i, w_i) each.
        encoded: features of the source at every level, coarse to fine, not yet warped.
        background: the background's affine motion (B, 3, 3); None = it was taken to stand still.
    """

    occlusion_maps: tuple[Tensor, ...]
    encoded: tuple[Tensor, ...]
    background: Tensor | None


class InpaintingNetwork(WarpedSkipGenerator):
    """A generator with warped skips whose levels have occlusion maps of their own.

    Args:
        num_channels: channels of the image.
        block_expansion, max_features: level i has min(max_features, block_expansion · 2^i) channels.
        num_down_blocks: levels below the image's size.
        multi_mask: whether the dense motion gives one occlusion map for each level.

    Raises:
        ValueError: `multi_mask` with another number of levels than there are maps.
    """

    def __init__(
        self, num_channels: int, block_expansion: int, max_features: int, num_down_blocks: int, multi_mask: bool = True
    ) -> None:
        super().__init__()
        if multi_mask and num_down_blocks != RESOLUTIONS - 1:
            raise ValueError(
                f"multi_mask gives occlusion maps at {RESOLUTIONS} resolutions and needs num_down_blocks of "
                f"{RESOLUTIONS - 1}, got {num_down_blocks}; set common_params.multi_mask to false for others"
            )
        self.build(num_channels, block_expansion, max_features, num_down_blocks, instance_norm)

    def occlude(self, levels: Sequence[Tensor], maps: Sequence[Tensor]) -> list[Tensor]:
        """Features of every level times its map, or all times the one there is."""
        maps = maps if len(maps) > 1 else [maps[0]] * len(levels)
        return [self.occlude_input(level, visible) for level, visible in zip(levels, maps, strict=True)]

    def forward(
        self, source_image: Tensor, dense_motion: DenseMotion, encoded: Sequence[Tensor] | None = None
    ) -> Inpainted:
        """Source images (B, C, H, W) and the motion → the source in the driving pose.

        With `encoded`, what `encode` made of one source image, that image is for all motions.
        """
        encoded = encoded or self.encode(source_image)
        maps, flow = dense_motion.occlusion_map, dense_motion.deformation
        warped = self.occlude([self.deform_input(level, flow) for level in encoded], maps)
        deformed = self.deform_input(source_image, flow)
        return Inpainted(self.decode(warped, deformed, maps[-1]), deformed, tuple(encoded))
