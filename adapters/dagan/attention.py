"""DaGAN's cross-modal attention between depth and appearance (Hong et al., CVPR 2022, §3.3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memcomp.attention import cross_attention


class DepthAttention(nn.Module):
    """Each place of the depth feature asks all places of the warped feature; the answer is added to the latter.

    Its energies are not scaled. The matrix of all pairs of places is never stored.

    Raises:
        ValueError: fewer than eight channels, of which the queries have an eighth.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels < 8:
            raise ValueError(f"the depth attention needs at least 8 channels at the lowest level, not {channels}")
        self.query_conv = nn.Conv2d(channels, channels // 8, 1)
        self.key_conv = nn.Conv2d(channels, channels // 8, 1)
        self.value_conv = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, depth: Tensor, feature: Tensor) -> Tensor:
        """Feature of the depth and of the warped source, both (B, C, H, W) → (B, C, H, W)."""
        assert self.query_conv.bias is not None
        keys = F.relu(self.key_conv(feature)).flatten(2)  # (B, C / 8, H W)
        values = F.relu(self.value_conv(feature)).flatten(2)  # (B, C, H W)
        weight = self.query_conv.weight.flatten(1)  # (C / 8, C)
        return self.gamma * cross_attention(depth, weight, self.query_conv.bias, keys, values) + feature
