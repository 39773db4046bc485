"""FOMM's dense-motion network (Siarohin et al., 2019, §3.2): local affine motions blended into one flow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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


@dataclass(frozen=True)
class DenseMotion:
    """The flow and what it was made of; shapes as in `memcomp.adapters.outputs.HostOutput`."""

    deformation: Tensor
    occlusion_map: Tensor | None
    mask: Tensor
    sparse_deformed: Tensor | None


def local_motions(kp_source: Keypoints, kp_driving: Keypoints, height: int, width: int) -> Tensor:
    """Where each of the K motions, and before them the still background, looks in the source: (B, K + 1, h, w, 2).

    Motion k is z ↦ J_s J_d⁻¹ (z - p_d) + p_s with keypoints p and Jacobians J (Eq. 4); no Jacobians: a shift.
    """
    x, y = axis(width, kp_driving.value), axis(height, kp_driving.value)
    from_x = x - kp_driving.value[..., :1]  # (B, K, w)
    from_y = y - kp_driving.value[..., 1:]  # (B, K, h)
    if kp_driving.jacobian is not None and kp_source.jacobian is not None:
        jacobian = matmul_2x2(kp_source.jacobian, inverse_2x2(kp_driving.jacobian))  # (B, K, 2, 2)
        along_x = jacobian[..., 0].unsqueeze(-2) * from_x.unsqueeze(-1)  # (B, K, w, 2)
        along_y = jacobian[..., 1].unsqueeze(-2) * from_y.unsqueeze(-1)  # (B, K, h, 2)
    else:
        along_x = F.pad(from_x.unsqueeze(-1), (0, 1))
        along_y = F.pad(from_y.unsqueeze(-1), (1, 0))
    along_y = along_y + kp_source.value.unsqueeze(-2)
    motions = along_y.unsqueeze(-2) + along_x.unsqueeze(-3)  # (B, K, h, w, 2): an affine map is a sum over axes
    still = torch.stack(torch.broadcast_tensors(x, y[:, None]), dim=-1)  # (h, w, 2)
    return torch.cat([still.expand(motions.shape[0], 1, -1, -1, -1), motions], dim=1)


class DenseMotionNetwork(nn.Module):
    """Weighs the local motions of the keypoints at every place and predicts what is occluded.

    Args:
        num_kp: number K of keypoints.
        num_channels: channels of the image.
        block_expansion, num_blocks, max_features: of the hourglass.
        estimate_occlusion_map: also predict an occlusion map.
        scale_factor: the image is reduced by it first.
        kp_variance: of the Gaussians that show the hourglass the keypoints.
        align_corners: of `grid_sample` (see `memcomp.adapters.fomm.FOMM`).
    """

    def __init__(
        self,
        num_kp: int,
        num_channels: int,
        block_expansion: int,
        num_blocks: int,
        max_features: int,
        estimate_occlusion_map: bool = False,
        scale_factor: float = 1,
        kp_variance: float = 0.01,
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        self.hourglass = Hourglass(block_expansion, (num_kp + 1) * (num_channels + 1), num_blocks, max_features)
        self.mask = nn.Conv2d(self.hourglass.out_filters, num_kp + 1, 7, padding=3)
        self.occlusion = nn.Conv2d(self.hourglass.out_filters, 1, 7, padding=3) if estimate_occlusion_map else None
        if scale_factor != 1:
            self.down = AntiAliasDown(num_channels, scale_factor)
        self.num_kp = num_kp
        self.scale_factor = scale_factor
        self.kp_variance = kp_variance
        self.align_corners = align_corners

    def forward(
        self,
        source_image: Tensor,
        kp_driving: Keypoints | Mapping[str, Tensor],
        kp_source: Keypoints | Mapping[str, Tensor],
    ) -> DenseMotion:
        """Source images (B, C, H, W) and the keypoints of both images → the flow at (h, w) = scale_factor · (H, W)."""
        kp_driving, kp_source = Keypoints.of(kp_driving), Keypoints.of(kp_source)
        if self.scale_factor != 1:
            source_image = self.down(source_image)
        height, width = source_image.shape[2:]
        motions = local_motions(kp_source, kp_driving, height, width)  # (B, K + 1, h, w, 2)
        # all motions side by side in one tall grid: the image need not be repeated for each
        deformed = warp(source_image, motions.flatten(1, 2), align_corners=self.align_corners)  # (B, C, (K + 1) h, w)
        deformed = deformed.unflatten(2, (-1, height)).transpose(1, 2)  # (B, K + 1, C, h, w)
        heatmap = gaussians(kp_driving.value, height, width, self.kp_variance) - gaussians(
            kp_source.value, height, width, self.kp_variance
        )
        heatmap = F.pad(heatmap, (0, 0, 0, 0, 1, 0)).unsqueeze(2)  # (B, K + 1, 1, h, w), zero for the background
        seen = torch.cat([heatmap.to(deformed.dtype), deformed], dim=2).flatten(1, 2)
        feature = self.hourglass(laid_out(seen, source_image))
        convs = [self.mask] if self.occlusion is None else [self.mask, self.occlusion]
        logits, *further = joint_conv(feature, *convs)
        mask = F.softmax(logits.to(self.mask.weight.dtype), dim=1)  # (B, K + 1, h, w)
        deformation = (motions * mask.unsqueeze(-1)).sum(1)  # (B, h, w, 2)
        occlusion_map = torch.sigmoid(further[0]) if further else None  # (B, 1, h, w)
        return DenseMotion(deformation, occlusion_map, mask, deformed)
