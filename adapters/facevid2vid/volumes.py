"""What face-vid2vid makes volumes with: blocks of 3-D convolutions, coordinates, Gaussians, warping.

Volumes are (B, C, D, H, W). Only height and width are ever halved and doubled. Module names are upstream's.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memcomp.adapters.shared.blocks import axis, check_halves

FLAT = (1, 2, 2)  # how a volume is halved and doubled


def volume_grid(depth: int, height: int, width: int, like: Tensor) -> Tensor:
    """(depth, height, width, 3): the (x, y, z) of every cell in [-1, 1]."""
    axes = (axis(depth, like), axis(height, like), axis(width, like))
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    return torch.stack([x, y, z], dim=-1)


def balls(points: Tensor, depth: int, height: int, width: int, variance: float) -> Tensor:
    """Points (B, K, 3) in [-1, 1] as Gaussians with peak 1, (B, K, depth, height, width).

    A Gaussian is a product of one factor per axis, which takes depth + height + width exponentials.
    """
    along = [
        torch.exp((axis(size, points) - points[..., i : i + 1]).square() * (-0.5 / variance))  # (B, K, size)
        for i, size in enumerate((width, height, depth))
    ]
    return along[2][..., :, None, None] * along[1][..., None, :, None] * along[0][..., None, None, :]


def warp_volume(volume: Tensor, grid: Tensor) -> Tensor:
    """Sample a volume (B or 1, C, D, H, W) at a grid (B, d, h, w, 3), in the grid's precision → (B, C, d, h, w).

    As published, align_corners is False although coordinates put ±1 at the centres of the border cells.

    Volumes are contiguous, and stay so: 3-D convolutions keep their weights (see `Sectioned.lay_out`), and a volume is
    made of a picture's channels and flattened into them again, which neither contiguous nor channels_last_3d volumes
    share strides with where pictures are channels_last. The first 2-D convolution after it gives channels_last again.
    cuDNN has no sampler of volumes, so that torch's own is the one that works here.
    """
    source = volume.to(grid.dtype).expand(len(grid), -1, -1, -1, -1)
    sampled = F.grid_sample(source, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return sampled.to(volume.dtype)


class SameBlock3d(nn.Module):
    """3×3×3 convolution, norm, ReLU; keeps the size."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels, out_channels, 3, padding=1)
        self.norm = nn.BatchNorm3d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) → (B, C', D, H, W)."""
        return F.relu(self.norm(self.conv(x)), inplace=True)


class DownBlock3d(SameBlock3d):
    """`SameBlock3d`, then height and width halved by the mean."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) → (B, C', D, H / 2, W / 2)."""
        return F.avg_pool3d(super().forward(x), FLAT)


class UpBlock3d(SameBlock3d):
    """Height and width doubled, then `SameBlock3d`."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) → (B, C', D, 2H, 2W)."""
        return super().forward(F.interpolate(x, scale_factor=FLAT, mode="nearest"))


class ResBlock3d(nn.Module):
    """Pre-activation residual block; keeps channels and size."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv3d(channels, channels, 3, padding=1)
        self.norm1 = nn.BatchNorm3d(channels)
        self.norm2 = nn.BatchNorm3d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) → the same shape."""
        out = self.conv1(F.relu(self.norm1(x), inplace=True))
        return x + self.conv2(F.relu(self.norm2(out), inplace=True))


class Encoder3d(nn.Module):
    """The descending half of a `VolumeHourglass`."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.down_blocks = nn.ModuleList(DownBlock3d(fine, coarse) for fine, coarse in pairwise(widths))

    def forward(self, x: Tensor) -> list[Tensor]:
        """The input and the output of every block, from fine to coarse."""
        levels = [x]
        for block in self.down_blocks:
            levels.append(block(levels[-1]))
        return levels


class Decoder3d(nn.Module):
    """The ascending half of a `VolumeHourglass`; what it joined last goes through one more convolution."""

    def __init__(self, widths: Sequence[int], finest: int) -> None:
        super().__init__()
        outs = [finest, *widths[1:-1]]
        self.up_blocks = nn.ModuleList(
            UpBlock3d(widths[level] * (1 if level == len(widths) - 1 else 2), outs[level - 1])
            for level in range(len(widths) - 1, 0, -1)
        )
        self.conv = nn.Conv3d(finest + widths[0], finest + widths[0], 3, padding=1)
        self.norm = nn.BatchNorm3d(finest + widths[0])

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Levels of the encoder, fine to coarse → (B, finest + C, D, H, W)."""
        out = levels[-1]
        for block, skip in zip(self.up_blocks, reversed(levels[:-1]), strict=True):
            out = torch.cat([block(out), skip], dim=1)
        return F.relu(self.norm(self.conv(out)), inplace=True)


class VolumeHourglass(nn.Module):
    """U-Net over volumes. Level i has min(max_features, block_expansion · 2^i) channels.

    Attributes:
        out_filters: channels of the output.
    """

    def __init__(self, block_expansion: int, in_features: int, num_blocks: int, max_features: int) -> None:
        super().__init__()
        widths = [in_features, *(min(max_features, block_expansion * 2**i) for i in range(1, num_blocks + 1))]
        finest = min(max_features, block_expansion)
        self.encoder = Encoder3d(widths)
        self.decoder = Decoder3d(widths, finest)
        self.out_filters = finest + in_features

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) → (B, out_filters, D, H, W).

        Raises:
            ValueError: height or width is not a multiple of 2^num_blocks.
        """
        check_halves("an hourglass", len(self.encoder.down_blocks), x)
        return self.decoder(self.encoder(x))
