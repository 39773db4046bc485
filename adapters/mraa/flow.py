"""MRAA's pixel-wise flow predictor (Siarohin et al., 2021, §3.2-3.3): region motions blended into one flow."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memcomp.adapters.fomm.motion import DenseMotion, local_motions
from memcomp.adapters.mraa.background import background_motion
from memcomp.adapters.mraa.regions import LEAST, Regions
from memcomp.adapters.outputs import Keypoints
from memcomp.adapters.shared.blocks import (
    AntiAliasDown,
    Hourglass,
    axis,
    gaussians,
    inverse_2x2,
    joint_conv,
    matmul_2x2,
    warp,
)
from memcomp.layers import laid_out


def ellipses(points: Tensor, covar: Tensor, height: int, width: int) -> Tensor:
    """Gaussians exp(-dᵀ C⁻¹ d / 2) of points (B, K, 2) and covariances (B, K, 2, 2): (B, K, height, width)."""
    x, y = axis(width, points) - points[..., :1], axis(height, points) - points[..., 1:]  # (B, K, w), (B, K, h)
    x, y = x.unsqueeze(-2), y.unsqueeze(-1)
    xx, xy, yy = (covar[..., i, j, None, None] for i, j in ((0, 0), (0, 1), (1, 1)))
    determinant = (xx * yy - xy * xy).clamp(min=LEAST**2)
    square = (yy * x.square() - 2 * xy * x * y + xx * y.square()) / determinant  # (B, K, h, w)
    return torch.exp(-0.5 * square)


def axis_sign(source: Tensor, driving: Tensor) -> Tensor:
    """Sign (..., 1, 1) of the first entry of A_s A_d⁻¹: -1 where one of two frames (..., 2, 2) was turned by half."""
    return matmul_2x2(source, inverse_2x2(driving))[..., :1, :1].sign()


class PixelwiseFlowPredictor(nn.Module):
    """Weighs the motions of regions and background at every place and predicts what is occluded.

    Args:
        num_regions: number K of regions.
        num_channels: channels of the image.
        block_expansion, num_blocks, max_features: of the hourglass.
        estimate_occlusion_map: also predict an occlusion map.
        scale_factor: the image is reduced by it first.
        region_var: variance of the Gaussians that show the hourglass the regions, unless `use_covar_heatmap`.
        use_covar_heatmap: show each region by its own covariance.
        use_deformed_source: show the hourglass the source warped by each motion as well.
        revert_axis_swap: a frame that flipped its sign between source and driving image is flipped back.
    """

    def __init__(
        self,
        num_regions: int,
        num_channels: int,
        block_expansion: int,
        num_blocks: int,
        max_features: int,
        estimate_occlusion_map: bool = False,
        scale_factor: float = 1,
        region_var: float = 0.01,
        use_covar_heatmap: bool = False,
        use_deformed_source: bool = True,
        revert_axis_swap: bool = False,
    ) -> None:
        super().__init__()
        channels = 1 + num_channels * use_deformed_source
        self.hourglass = Hourglass(block_expansion, (num_regions + 1) * channels, num_blocks, max_features)
        self.mask = nn.Conv2d(self.hourglass.out_filters, num_regions + 1, 7, padding=3)
        self.occlusion = nn.Conv2d(self.hourglass.out_filters, 1, 7, padding=3) if estimate_occlusion_map else None
        if scale_factor != 1:
            self.down = AntiAliasDown(num_channels, scale_factor)
        self.num_regions = num_regions
        self.scale_factor = scale_factor
        self.region_var = region_var
        self.use_covar_heatmap = use_covar_heatmap
        self.use_deformed_source = use_deformed_source
        self.revert_axis_swap = revert_axis_swap

    def heatmaps(self, regions: Regions, height: int, width: int) -> Tensor:
        """Gaussians (B, K, height, width) where the regions are."""
        if not self.use_covar_heatmap:
            return gaussians(regions.value, height, width, self.region_var)
        if regions.covar is None:
            raise ValueError("use_covar_heatmap needs regions with covariances")
        return ellipses(regions.value, regions.covar, height, width)

    def motions(self, source: Regions, driving: Regions, bg_params: Tensor | None, height: int, width: int) -> Tensor:
        """Where the background (first) and each region look in the source: (B, K + 1, height, width, 2)."""
        affine = source.jacobian
        if self.revert_axis_swap and affine is not None and driving.jacobian is not None:
            affine = affine * axis_sign(affine, driving.jacobian)
        motions = local_motions(Keypoints(source.value, affine), driving, height, width)
        if bg_params is None:
            return motions
        background = background_motion(bg_params.to(motions.dtype), height, width)
        return torch.cat([background.unsqueeze(1), motions[:, 1:]], dim=1)

    def forward(
        self,
        source_image: Tensor,
        driving_region_params: Keypoints | Mapping[str, Tensor],
        source_region_params: Keypoints | Mapping[str, Tensor],
        bg_params: Tensor | None = None,
    ) -> DenseMotion:
        """The flow at (h, w) = scale_factor · (H, W).

        Args:
            source_image: (B, C, H, W).
            driving_region_params, source_region_params: regions of both images.
            bg_params: the background's motion (B, 3, 3), see `BackgroundPredictor`; None = it stands still.
        """
        driving, source = Regions.of(driving_region_params), Regions.of(source_region_params)
        if self.scale_factor != 1:
            source_image = self.down(source_image)
        height, width = source_image.shape[2:]
        motions = self.motions(source, driving, bg_params, height, width)
        heatmap = self.heatmaps(driving, height, width) - self.heatmaps(source, height, width)
        seen = F.pad(heatmap, (0, 0, 0, 0, 1, 0)).unsqueeze(2)  # (B, K + 1, 1, h, w), zero for the background
        deformed: Tensor | None = None
        if self.use_deformed_source:
            # all motions side by side in one tall grid: the image need not be repeated for each
            tall = warp(source_image, motions.flatten(1, 2), align_corners=False)  # (B, C, (K + 1) h, w)
            deformed = tall.unflatten(2, (-1, height)).transpose(1, 2)  # (B, K + 1, C, h, w)
            seen = torch.cat([seen.to(deformed.dtype), deformed], dim=2)
        feature = self.hourglass(laid_out(seen.flatten(1, 2), source_image))
        convs = [self.mask] if self.occlusion is None else [self.mask, self.occlusion]
        logits, *further = joint_conv(feature, *convs)
        mask = F.softmax(logits.to(self.mask.weight.dtype), dim=1)  # (B, K + 1, h, w)
        deformation = (motions * mask.unsqueeze(-1)).sum(1)  # (B, h, w, 2)
        return DenseMotion(deformation, torch.sigmoid(further[0]) if further else None, mask, deformed)
