"""face-vid2vid's dense motion (§3.2): the motions of 3-D keypoints blended into one flow of a volume."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memcomp.adapters.facevid2vid.volumes import VolumeHourglass, balls, volume_grid, warp_volume
from memcomp.adapters.fomm.motion import DenseMotion
from memcomp.adapters.outputs import Keypoints


def local_motions(kp_source: Keypoints, kp_driving: Keypoints, depth: int, height: int, width: int) -> Tensor:
    """Where the still background (first) and each keypoint's motion look in the source: (B, K + 1, D, h, w, 3).

    Motion k is z ↦ J_s J_d⁻¹ (z - p_d) + p_s with keypoints p and Jacobians J; without Jacobians a shift.
    """
    still = volume_grid(depth, height, width, kp_driving.value)
    source, driving = (kp.value[:, :, None, None, None] for kp in (kp_source, kp_driving))  # (B, K, 1, 1, 1, 3)
    moved = still - driving
    if kp_driving.jacobian is not None and kp_source.jacobian is not None:
        # the inverse in the coordinates' own precision: autocast would round the products
        inverse = torch.linalg.inv(kp_driving.jacobian)
        jacobian = (kp_source.jacobian.unsqueeze(-1) * inverse.unsqueeze(-3)).sum(-2)  # (B, K, 3, 3)
        moved = (jacobian[:, :, None, None, None] * moved.unsqueeze(-2)).sum(-1)
    motions = moved + source
    return torch.cat([still.expand(len(motions), 1, *still.shape), motions], dim=1)


class DenseMotionNetwork(nn.Module):
    """Weighs the keypoints' motions at every place of the volume and predicts what is occluded in the picture.

    Args:
        num_kp: number K of keypoints.
        feature_channel: channels of the volume.
        block_expansion, num_blocks, max_features: of the hourglass.
        reshape_depth: depth of the volume.
        compress: channels of the volume as the hourglass is shown it.
        estimate_occlusion_map: also predict an occlusion map.
        kp_variance: of the Gaussians that show the hourglass the keypoints.
    """

    def __init__(
        self,
        num_kp: int,
        feature_channel: int,
        block_expansion: int,
        num_blocks: int,
        max_features: int,
        reshape_depth: int,
        compress: int,
        estimate_occlusion_map: bool = False,
        kp_variance: float = 0.01,
    ) -> None:
        super().__init__()
        self.hourglass = VolumeHourglass(block_expansion, (num_kp + 1) * (compress + 1), num_blocks, max_features)
        self.mask = nn.Conv3d(self.hourglass.out_filters, num_kp + 1, 7, padding=3)
        self.compress = nn.Conv3d(feature_channel, compress, 1)
        self.norm = nn.BatchNorm3d(compress)
        flat = self.hourglass.out_filters * reshape_depth
        self.occlusion = nn.Conv2d(flat, 1, 7, padding=3) if estimate_occlusion_map else None
        self.num_kp = num_kp
        self.kp_variance = kp_variance

    def shown(self, feature: Tensor, motions: Tensor, kp_source: Keypoints, kp_driving: Keypoints) -> Tensor:
        """What the hourglass is shown: of each motion its heat map and the volume warped by it.

        Volumes (B or 1, C, D, h, w) and motions (B, K + 1, D, h, w, 3) → (B, K + 1, 1 + compress, D, h, w).
        """
        small = F.relu(self.norm(self.compress(feature)))
        depth, height, width = feature.shape[2:]
        # all motions behind each other in one deep grid: the volume need not be repeated for each
        warped = warp_volume(small, motions.flatten(1, 2)).unflatten(2, (-1, depth)).transpose(1, 2)
        heatmap = balls(kp_driving.value, depth, height, width, self.kp_variance) - balls(
            kp_source.value, depth, height, width, self.kp_variance
        )
        heatmap = F.pad(heatmap, (0, 0, 0, 0, 0, 0, 1, 0)).unsqueeze(2)  # zero for the background
        return torch.cat([heatmap.to(warped.dtype), warped], dim=2)

    def forward(
        self,
        feature: Tensor,
        kp_driving: Keypoints | Mapping[str, Tensor],
        kp_source: Keypoints | Mapping[str, Tensor],
    ) -> DenseMotion:
        """The flow of the volume (B, D, h, w, 3).

        Args:
            feature: volumes (B, C, D, h, w), or one for all poses.
            kp_driving, kp_source: keypoints of both images, (B, K, 3).
        """
        kp_driving, kp_source = Keypoints.of(kp_driving), Keypoints.of(kp_source)
        motions = local_motions(kp_source, kp_driving, *feature.shape[2:])
        out = self.hourglass(self.shown(feature, motions, kp_source, kp_driving).flatten(1, 2))
        mask = F.softmax(self.mask(out).to(self.mask.weight.dtype), dim=1)  # (B, K + 1, D, h, w)
        deformation = (motions * mask.unsqueeze(-1)).sum(1)  # (B, D, h, w, 3)
        visible = None if self.occlusion is None else torch.sigmoid(self.occlusion(out.flatten(1, 2)))  # (B, 1, h, w)
        return DenseMotion(deformation, visible, mask, None)
