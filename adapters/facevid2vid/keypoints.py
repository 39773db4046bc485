"""Canonical 3-D keypoints (face-vid2vid, §3.1): those of a person's face, seen from the front and at rest."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memcomp.adapters.facevid2vid.volumes import UpBlock3d
from memcomp.adapters.outputs import Keypoints
from memcomp.adapters.shared.blocks import AntiAliasDown, DownBlock, axis, check_halves


class Predictor(nn.Module):
    """A feature of the picture at its lowest size, read as a volume and brought back to the picture's size.

    Channel c · depth + z of the flat feature becomes channel c of slice z. There are no skip connections.
    """

    def __init__(
        self, num_channels: int, block_expansion: int, max_features: int, num_blocks: int, channels: int, depth: int
    ) -> None:
        super().__init__()
        widths = [min(max_features, block_expansion * 2**level) for level in range(num_blocks + 1)]
        self.down_blocks = nn.Sequential()
        for index, (fine, coarse) in enumerate(pairwise([num_channels, *widths[1:]])):
            self.down_blocks.add_module(f"down{index}", DownBlock(fine, coarse))
        self.conv = nn.Conv2d(widths[-1] if num_blocks else num_channels, channels, 1)
        self.up_blocks = nn.Sequential()
        for index, (coarse, fine) in enumerate(pairwise([channels // depth, *widths[-2::-1]])):
            self.up_blocks.add_module(f"up{index}", UpBlock3d(coarse, fine))
        self.depth = depth

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) → (B, block_expansion, depth, H, W)."""
        check_halves("the keypoint detector", len(self.down_blocks), x)
        flat = self.conv(self.down_blocks(x))
        return self.up_blocks(flat.unflatten(1, (-1, self.depth)))


class KeypointDetector(nn.Module):
    """Canonical keypoints as the means of heat maps in a volume; Jacobians as means of nine more maps.

    Args:
        num_kp: number K of keypoints.
        image_channel: channels of the image.
        block_expansion, max_features, num_blocks: level i has min(max_features, block_expansion · 2^i) channels.
        reshape_channel: channels of the flat feature that becomes a volume.
        reshape_depth: depth of the volume.
        temperature: of the softmax over places; lower is more peaked.
        estimate_jacobian: also predict Jacobians, starting at the identity.
        scale_factor: the image is reduced by it first.
        single_jacobian_map: one set of nine maps for all keypoints instead of one for each.

    Raises:
        ValueError: `reshape_channel` is not `reshape_depth` times the channels of the lowest level.
    """

    def __init__(
        self,
        num_kp: int,
        image_channel: int,
        block_expansion: int,
        max_features: int,
        num_blocks: int,
        temperature: float,
        reshape_channel: int,
        reshape_depth: int,
        estimate_jacobian: bool = False,
        scale_factor: float = 1,
        single_jacobian_map: bool = False,
    ) -> None:
        super().__init__()
        lowest = min(max_features, block_expansion * 2**num_blocks)
        if reshape_channel != lowest * reshape_depth:
            raise ValueError(
                f"kp_detector_params.reshape_channel: expected {lowest} · reshape_depth {reshape_depth} = "
                f"{lowest * reshape_depth}, got {reshape_channel}"
            )
        self.predictor = Predictor(
            image_channel, block_expansion, max_features, num_blocks, reshape_channel, reshape_depth
        )
        finest = min(max_features, block_expansion)
        self.kp = nn.Conv3d(finest, num_kp, 3, padding=1)
        self.jacobian: nn.Conv3d | None = None
        if estimate_jacobian:
            maps = 1 if single_jacobian_map else num_kp
            self.jacobian = nn.Conv3d(finest, 9 * maps, 3, padding=1)
            nn.init.zeros_(self.jacobian.weight)
            assert self.jacobian.bias is not None
            with torch.no_grad():
                self.jacobian.bias.copy_(torch.eye(3).flatten().repeat(maps))
        if scale_factor != 1:
            self.down = AntiAliasDown(image_channel, scale_factor)
        self.scale_factor = scale_factor
        self.temperature = temperature

    def maps(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) → heat maps (B, K, D, h, w), each of sum 1, and the feature that they were made of."""
        if self.scale_factor != 1:
            image = self.down(image)
        feature = self.predictor(image)
        logits = self.kp(feature).to(self.kp.weight.dtype)  # half precision is too coarse for coordinates
        heatmap = F.softmax(logits.flatten(2) / self.temperature, dim=2).unflatten(2, logits.shape[2:])
        return heatmap, feature

    def forward(self, image: Tensor) -> Keypoints:
        """Images (B, C, H, W) → K canonical keypoints of each, (B, K, 3)."""
        heatmap, feature = self.maps(image)
        # products and sums rather than matrix products, which autocast would round
        along = [heatmap.sum(axes) for axes in ((2, 3), (2, 4), (3, 4))]  # (B, K, w), (B, K, h), (B, K, D)
        value = torch.stack([(mass * axis(mass.shape[-1], mass)).sum(-1) for mass in along], dim=-1)
        if self.jacobian is None:
            return Keypoints(value)
        maps = self.jacobian(feature).unflatten(1, (-1, 9))  # (B, K or 1, 9, D, h, w)
        jacobian = (heatmap.unsqueeze(2) * maps).sum((3, 4, 5))
        return Keypoints(value, jacobian.unflatten(-1, (3, 3)))
