"""TPSM's dense motion (Zhao & Zhang, 2022, §3.2-3.3): splines and a background blended into one flow; occlusion."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memcomp.adapters.outputs import Keypoints
from memcomp.adapters.shared.blocks import (
    AntiAliasDown,
    Hourglass,
    UpBlock,
    coordinate_grid,
    gaussians,
    instance_norm,
    warp,
)
from memcomp.adapters.tpsm.keypoints import POINTS, points
from memcomp.adapters.tpsm.splines import spline_motions
from memcomp.layers import laid_out

RESOLUTIONS = 4  # of the occlusion maps with multi_mask: 1/8, 1/4, 1/2 and 1 of the image
DROPOUT_EPSILON = 1e-6  # added to the sum of what dropout left, as published


@dataclass(frozen=True)
class DenseMotion:
    """The flow and what it was made of. h, w: scale_factor · size of the image.

    Attributes:
        deformation: (B, h, w, 2), for every output place the (x, y) in [-1, 1] of the source to look at.
        contribution_maps: (B, K + 1, h, w), weights of the background (first) and of the K splines.
        deformed_source: (B, K + 1, C, h, w), the source warped by each of these motions.
        occlusion_map: maps in [0, 1], 1 = visible in the source: (B, 1, h, w), or with multi_mask four from 1/8 of the
            image's size to all of it.
    """

    deformation: Tensor
    contribution_maps: Tensor
    deformed_source: Tensor
    occlusion_map: tuple[Tensor, ...]


def contributions(logits: Tensor, kept: Tensor | None) -> Tensor:
    """Softmax over motions (B, K + 1, h, w); motions not kept, (B, K + 1) bool, are left out (Eq. 7-8).

    Eq. 7 also divides by the probability of being kept, which cancels in the published code.
    """
    if kept is None:
        return F.softmax(logits, dim=1)
    exponentials = torch.exp(logits - logits.amax(dim=1, keepdim=True)) * kept[:, :, None, None]
    return exponentials / (exponentials.sum(dim=1, keepdim=True) + DROPOUT_EPSILON)


class NearestDown(AntiAliasDown):
    """`AntiAliasDown` that keeps ⌊H · scale⌋ rows, ⌊i / scale⌋ for each i, as `F.interpolate` does (columns alike)."""

    def __init__(self, channels: int, scale: float) -> None:
        super().__init__(channels, scale)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, ⌊H · scale⌋, ⌊W · scale⌋)."""
        if self.stride * self.scale == 1:  # only the kept pixels are computed
            return super().forward(x)[..., : int(x.shape[2] * self.scale), : int(x.shape[3] * self.scale)]
        blurred = F.conv2d(x, self.weight.to(x.dtype), padding=self.radius, groups=x.shape[1])
        return F.interpolate(blurred, scale_factor=self.scale, mode="nearest")


class DenseMotionNetwork(nn.Module):
    """Weighs K thin-plate splines and the background's motion at every place, and predicts what is occluded.

    Args:
        num_tps: number K of thin-plate splines.
        num_channels: channels of the image.
        block_expansion, num_blocks, max_features: of the hourglass.
        scale_factor: the image is reduced by it first.
        multi_mask: one occlusion map for each of four resolutions instead of one at the flow's.
        kp_variance: of the Gaussians that show the hourglass the keypoints.

    Attributes:
        num_kp: 5 K, the keypoints.

    Raises:
        ValueError: `multi_mask` with a scale factor that is none of 1, 1/2, 1/4, 1/8 and 1/16, or with too few blocks.
    """

    def __init__(
        self,
        num_tps: int,
        num_channels: int,
        block_expansion: int,
        num_blocks: int,
        max_features: int,
        scale_factor: float = 0.25,
        multi_mask: bool = True,
        kp_variance: float = 0.01,
    ) -> None:
        super().__init__()
        self.num_tps = num_tps
        self.num_kp = POINTS * num_tps
        self.scale_factor = scale_factor
        self.kp_variance = kp_variance
        if scale_factor != 1:
            self.down = NearestDown(num_channels, scale_factor)
        channels = num_channels * (num_tps + 1) + self.num_kp + 1
        self.hourglass = Hourglass(block_expansion, channels, num_blocks, max_features, instance_norm)
        self.maps = nn.Conv2d(self.hourglass.out_filters, num_tps + 1, 7, padding=3)
        above = round(-math.log2(scale_factor)) if multi_mask else 0  # resolutions finer than the flow's
        self.coarse = max(RESOLUTIONS - above, 0) if multi_mask else 1  # those that the hourglass has
        if multi_mask and (2**-above != scale_factor or above > RESOLUTIONS):
            raise ValueError(f"multi_mask needs a scale_factor of 1, 1/2, 1/4, 1/8 or 1/16, not {scale_factor}")
        if self.coarse > num_blocks:
            raise ValueError(
                f"multi_mask with a scale_factor of {scale_factor} needs num_blocks of {self.coarse} or more, "
                f"got {num_blocks}"
            )
        widths = [self.hourglass.out_filters // 2**level for level in range(above + 1)]
        if above:
            self.up = nn.ModuleList(UpBlock(coarse, coarse // 2, norm=instance_norm) for coarse in widths[:-1])
        sees = self.hourglass.level_filters[len(self.hourglass.level_filters) - self.coarse :] + widths[1:]
        self.occlusion = nn.ModuleList(nn.Conv2d(width, 1, 7, padding=3) for width in sees)

    def motions(
        self, kp_source: Tensor, kp_driving: Tensor, bg_param: Tensor | None, height: int, width: int
    ) -> Tensor:
        """Where the background (first) and each spline look in the source: (B, K + 1, h, w, 2)."""
        source, driving = (kp.unflatten(1, (-1, POINTS)) for kp in (kp_source, kp_driving))
        splines = spline_motions(source, driving, height, width)
        places = coordinate_grid(height, width, splines)  # (h, w, 2)
        if bg_param is not None:
            affine = bg_param[:, None, None, :2]  # (B, 1, 1, 2, 3)
            places = (affine[..., :2] * places.unsqueeze(-2)).sum(-1) + affine[..., 2]  # (B, h, w, 2)
        return torch.cat([places.expand(len(splines), -1, -1, -1).unsqueeze(1), splines], dim=1)

    def forward(
        self,
        source_image: Tensor,
        kp_driving: Keypoints | Mapping[str, Tensor],
        kp_source: Keypoints | Mapping[str, Tensor],
        bg_param: Tensor | None = None,
        kept: Tensor | None = None,
    ) -> DenseMotion:
        """The flow.

        Args:
            source_image: (B, C, H, W).
            kp_driving, kp_source: 5 K keypoints of both images.
            bg_param: the background's affine motion (B, 3, 3), last row (0, 0, 1); None = it stands still.
            kept: (B, K + 1) bool, the motions that dropout keeps; None = all.
        """
        driving, source = points(kp_driving), points(kp_source)
        if self.scale_factor != 1:
            source_image = self.down(source_image)
        height, width = source_image.shape[2:]
        motions = self.motions(source, driving, bg_param, height, width)
        # all motions side by side in one tall grid: the image need not be repeated for each
        deformed = warp(source_image, motions.flatten(1, 2), align_corners=True)  # (B, C, (K + 1) h, w)
        deformed = deformed.unflatten(2, (-1, height)).transpose(1, 2)  # (B, K + 1, C, h, w)
        heatmap = gaussians(driving, height, width, self.kp_variance) - gaussians(
            source, height, width, self.kp_variance
        )
        heatmap = F.pad(heatmap, (0, 0, 0, 0, 1, 0))  # (B, 5 K + 1, h, w), zero for the background
        shown = torch.cat([heatmap.to(deformed.dtype), deformed.flatten(1, 2)], dim=1)
        levels = self.hourglass.levels(laid_out(shown, source_image))
        finest = levels[-1]
        mask = contributions(self.maps(finest).to(self.maps.weight.dtype), kept)  # (B, K + 1, h, w)
        seen = levels[len(levels) - self.coarse :]
        for block in getattr(self, "up", ()):
            finest = block(finest)
            seen.append(finest)
        occlusion = tuple(torch.sigmoid(conv(feature)) for conv, feature in zip(self.occlusion, seen, strict=True))
        return DenseMotion((motions * mask.unsqueeze(-1)).sum(1), mask, deformed, occlusion)
