"""The decoder of DaGAN's SPADE variant: normalisation steered by the warped picture (Park et al., CVPR 2019)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memcomp.adapters.shared.blocks import SpectralConv2d

CHANNELS, COMPRESSED, FINEST, HIDDEN = 256, 4, 64, 128  # upstream's widths, which no parameter changes


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
        return F.instance_norm(x) * (1 + self.mlp_gamma(shared)) + self.mlp_beta(shared)


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


class SpadeDecoder(nn.Module):
    """A feature of 256 channels at a quarter of the picture's size, doubled twice under the picture's guidance."""

    def __init__(self) -> None:
        super().__init__()
        guide = COMPRESSED + 3
        self.compress = nn.Conv2d(CHANNELS, COMPRESSED, 3, padding=1)
        self.fc = nn.Conv2d(CHANNELS, 2 * CHANNELS, 3, padding=1)
        self.G_middle_0 = SpadeBlock(2 * CHANNELS, 2 * CHANNELS, guide)
        self.G_middle_1 = SpadeBlock(2 * CHANNELS, 2 * CHANNELS, guide)
        self.G_middle_2 = SpadeBlock(2 * CHANNELS, 2 * CHANNELS, guide)
        self.up_0 = SpadeBlock(2 * CHANNELS, CHANNELS, guide)
        self.up_1 = SpadeBlock(CHANNELS, FINEST, guide)
        self.conv_img = nn.Conv2d(FINEST, 3, 3, padding=1)

    def forward(self, feature: Tensor, image: Tensor) -> Tensor:
        """The warped feature (B, 256, H / 4, W / 4) and picture (B, 3, H, W) → the image (B, 3, H, W) in [0, 1]."""
        codes = F.interpolate(self.compress(feature), size=image.shape[2:], mode="nearest")
        guide = torch.cat([codes, image], dim=1)  # (B, 7, H, W)
        out = self.fc(feature)  # (B, 512, H / 4, W / 4)
        for block in (self.G_middle_0, self.G_middle_1, self.G_middle_2):
            out = block(out, guide)
        for block in (self.up_0, self.up_1):
            out = block(F.interpolate(out, scale_factor=2, mode="nearest"), guide)  # (B, 64, H, W) at the end
        return torch.sigmoid(self.conv_img(F.leaky_relu(out, 0.2)))
