"""The decoder of DaGAN's SPADE variant: normalisation steered by the warped picture (Park et al., CVPR 2019)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memcomp.adapters.shared.spade import SpadeBlock

CHANNELS, COMPRESSED, FINEST = 256, 4, 64  # upstream's widths, which no parameter changes


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
