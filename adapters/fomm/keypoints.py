"""FOMM's keypoint detector (Siarohin et al., 2019, §3.1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memcomp.adapters.outputs import Keypoints
from memcomp.adapters.shared.blocks import AntiAliasDown, Hourglass, axis, joint_conv


class KeypointDetector(nn.Module):
    """Keypoints as the means of softmaxed heat maps, Jacobians as heat-map-weighted means of four more maps.

    Args:
        num_kp: number K of keypoints.
        num_channels: channels of the image.
        block_expansion, max_features, num_blocks: of the hourglass.
        temperature: of the softmax over places; lower is more peaked.
        estimate_jacobian: also predict Jacobians, starting at the identity.
        scale_factor: the image is reduced by it first.
        single_jacobian_map: one set of four maps for all keypoints instead of one for each.
        pad: padding of the 7×7 convolutions that make the maps (upstream: 0, so maps are 6 pixels smaller).
    """

    def __init__(
        self,
        num_kp: int,
        num_channels: int,
        block_expansion: int,
        max_features: int,
        num_blocks: int,
        temperature: float,
        estimate_jacobian: bool = False,
        scale_factor: float = 1,
        single_jacobian_map: bool = False,
        pad: int = 0,
    ) -> None:
        super().__init__()
        self.predictor = Hourglass(block_expansion, num_channels, num_blocks, max_features)
        self.kp = nn.Conv2d(self.predictor.out_filters, num_kp, 7, padding=pad)
        self.jacobian: nn.Conv2d | None = None
        if estimate_jacobian:
            maps = 1 if single_jacobian_map else num_kp
            self.jacobian = nn.Conv2d(self.predictor.out_filters, 4 * maps, 7, padding=pad)
            nn.init.zeros_(self.jacobian.weight)
            assert self.jacobian.bias is not None
            with torch.no_grad():
                self.jacobian.bias.copy_(torch.eye(2).flatten().repeat(maps))
        if scale_factor != 1:
            self.down = AntiAliasDown(num_channels, scale_factor)
        self.scale_factor = scale_factor
        self.temperature = temperature

    def forward(self, image: Tensor) -> Keypoints:
        """Images (B, C, H, W) → K keypoints of each."""
        if self.scale_factor != 1:
            image = self.down(image)
        feature = self.predictor(image)  # (B, F, h, w)
        convs = [self.kp] if self.jacobian is None else [self.kp, self.jacobian]
        logits, *further = joint_conv(feature, *convs)  # (B, K, h', w') and perhaps (B, 4 K or 4, h', w')
        logits = logits.to(self.kp.weight.dtype)  # autocast's half precision is too coarse for coordinates
        heatmap = F.softmax(logits.flatten(2) / self.temperature, dim=2).unflatten(2, logits.shape[2:])
        height, width = heatmap.shape[2:]
        # products and sums rather than matrix products, which autocast would round as well
        x = (heatmap.sum(2) * axis(width, heatmap)).sum(-1)
        y = (heatmap.sum(3) * axis(height, heatmap)).sum(-1)
        value = torch.stack([x, y], dim=-1)  # (B, K, 2)
        if not further:
            return Keypoints(value)
        maps = further[0].unflatten(1, (-1, 4))  # (B, K or 1, 4, h', w')
        jacobian = (heatmap.unsqueeze(2) * maps).sum((3, 4))  # (B, K, 4)
        return Keypoints(value, jacobian.unflatten(-1, (2, 2)))
