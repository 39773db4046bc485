"""FOMM's multi-scale patch discriminator, after pix2pix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memcomp.adapters.outputs import Keypoints
from memcomp.adapters.shared.blocks import AntiAliasDown, SpectralConv2d, gaussians, instance_norm


@dataclass(frozen=True)
class Judgement:
    """What a discriminator says of images, one entry per scale.

    Attributes:
        predictions: (B, 1, h, w) each; 1 = real, 0 = fake.
        features: the outputs of the blocks, for feature matching.
    """

    predictions: list[Tensor]
    features: list[list[Tensor]]


class DiscriminatorBlock(nn.Module):
    """4×4 convolution, instance norm (not in the first block), leaky ReLU, pooling (not in the last)."""

    def __init__(self, channels: int, out_channels: int, *, norm: bool, pool: bool, sn: bool) -> None:
        super().__init__()
        self.conv = (SpectralConv2d if sn else nn.Conv2d)(channels, out_channels, 4)
        self.norm = instance_norm(out_channels) if norm else None
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C', H - 3, W - 3), halved if it pools."""
        out = self.conv(x)
        if self.norm is not None:
            out = self.norm(out)
        out = F.leaky_relu(out, 0.2, inplace=True)
        return F.avg_pool2d(out, 2) if self.pool else out


class Discriminator(nn.Module):
    """A stack of blocks on the image, joined with heat maps of the keypoints if `use_kp`."""

    def __init__(
        self,
        num_channels: int = 3,
        block_expansion: int = 64,
        num_blocks: int = 4,
        max_features: int = 512,
        sn: bool = False,
        use_kp: bool = False,
        num_kp: int = 10,
        kp_variance: float = 0.01,
    ) -> None:
        super().__init__()
        widths = [min(max_features, block_expansion * 2**level) for level in range(1, num_blocks + 1)]
        inputs = [num_channels + num_kp * use_kp, *widths[:-1]]
        self.down_blocks = nn.ModuleList(
            DiscriminatorBlock(inputs[i], widths[i], norm=i != 0, pool=i != num_blocks - 1, sn=sn)
            for i in range(num_blocks)
        )
        self.conv = (SpectralConv2d if sn else nn.Conv2d)(widths[-1], 1, 1)
        self.use_kp = use_kp
        self.kp_variance = kp_variance

    def forward(self, x: Tensor, kp: Keypoints | None = None) -> tuple[list[Tensor], Tensor]:
        """Images (B, C, H, W) → the outputs of the blocks and the prediction map (B, 1, h, w)."""
        if self.use_kp:
            if kp is None:
                raise ValueError("a discriminator with use_kp needs keypoints, got None")
            heatmap = gaussians(kp.value, x.shape[2], x.shape[3], self.kp_variance)
            x = torch.cat([x, heatmap.to(x.dtype)], dim=1)
        features: list[Tensor] = []
        for block in self.down_blocks:
            x = block(x)
            features.append(x)
        return features, self.conv(x)


class MultiScaleDiscriminator(nn.Module):
    """One `Discriminator` for each scale of the image; the arguments besides `scales` are the discriminators'."""

    def __init__(
        self,
        scales: Sequence[float] = (),
        num_channels: int = 3,
        block_expansion: int = 64,
        num_blocks: int = 4,
        max_features: int = 512,
        sn: bool = False,
        use_kp: bool = False,
        num_kp: int = 10,
        kp_variance: float = 0.01,
    ) -> None:
        super().__init__()
        self.scales = tuple(scales)
        self.discs = nn.ModuleDict(
            {
                str(scale).replace(".", "-"): Discriminator(
                    num_channels, block_expansion, num_blocks, max_features, sn, use_kp, num_kp, kp_variance
                )
                for scale in scales
            }
        )
        # upstream reduces images outside of this module, so the kernels are no part of its state dict
        self.downs = nn.ModuleList(
            nn.Identity() if scale == 1 else AntiAliasDown(num_channels, scale, persistent=False) for scale in scales
        )

    def forward(self, image: Tensor, kp: Keypoints | None = None) -> Judgement:
        """Images (B, C, H, W) and, if use_kp, their keypoints."""
        predictions, features = [], []
        for down, disc in zip(self.downs, self.discs.values(), strict=True):
            maps, prediction = disc(down(image), kp)
            predictions.append(prediction)
            features.append(maps)
        return Judgement(predictions, features)
