"""Normalisation steered by a guide (SPADE; Park et al., CVPR 2019): what two hosts' decoders are made of."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from memcomp.adapters.shared.blocks import SpectralConv2d
from memcomp.layers import laid_out

HIDDEN = 128  # channels between a guide and the scale and shift made of it


class Spade(nn.Module):
    """Instance norm whose scale and shift at each place come from a guide."""

    def __init__(self, channels: int, guide: int) -> None:
        super().__init__()
        self.mlp_shared = nn.Sequential(nn.Conv2d(guide, HIDDEN, 3, padding=1), nn.ReLU())
        self.mlp_gamma = nn.Conv2d(HIDDEN, channels, 3, padding=1)
        self.mlp_beta = nn.Conv2d(HIDDEN, channels, 3, padding=1)

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        """(B, C, H, W) and a guide (B, G, h, w) of any size → (B, C, H, W)."""
        shared = self.mlp_shared(F.interpolate(guide, size=x.shape[2:], mode="nearest"))
        normed = F.group_norm(x, x.shape[1])  # as an instance norm, see `memcomp.layers.InstanceNorm`
        return laid_out(normed.to(x.dtype), x) * (1 + self.mlp_gamma(shared)) + self.mlp_beta(shared)


class SpadeBlock(nn.Module):
    """Residual block of `Spade` norms and spectrally normalised convolutions; keeps the size."""

    def __init__(self, channels: int, out_channels: int, guide: int) -> None:
        super().__init__()
        middle = min(channels, out_channels)
        self.conv_0 = SpectralConv2d(channels, middle, 3, padding=1)
        self.conv_1 = SpectralConv2d(middle, out_channels, 3, padding=1)
        self.learned = channels != out_channels
        if self.learned:
            self.conv_s = SpectralConv2d(channels, out_channels, 1, bias=False)
        self.norm_0 = Spade(channels, guide)
        self.norm_1 = Spade(middle, guide)
        if self.learned:
            self.norm_s = Spade(channels, guide)

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        """(B, C, H, W) and a guide (B, G, h, w) → (B, C', H, W)."""
        shortcut = self.conv_s(self.norm_s(x, guide)) if self.learned else x
        out = self.conv_0(F.leaky_relu(self.norm_0(x, guide), 0.2))
        return shortcut + self.conv_1(F.leaky_relu(self.norm_1(out, guide), 0.2))
