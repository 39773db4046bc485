"""The small network that reads landmarks and pose off pictures of procedural heads."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memcomp.experiments.video import Frame

SIDE = 64  # pixels that the network sees
LANDMARKS = 68
WIDTHS = (32, 48, 72, 96)  # channels at 32, 16, 8 and 4 pixels
SQUEEZED = 24  # channels that the whole picture's answer is made of
DEGREES = 60.0  # angles are given in units of this


class HeadsNetwork(nn.Module):
    """Regressor: landmarks are centres of mass of 68 heat maps plus what the whole picture tells, which tells the pose.

    A heat map follows the head wherever it goes, and cannot leave the picture; the sum can.
    """

    def __init__(self) -> None:
        super().__init__()
        one, two, three, four = WIDTHS
        self.stem = nn.Sequential(nn.Conv2d(3, one, 3, 2, 1, bias=False), nn.BatchNorm2d(one), nn.ReLU())
        self.down1 = nn.Sequential(Block(one, two, 2), Block(two, two))
        self.down2 = Block(two, three, 2)
        self.down3 = Block(three, four, 2)
        self.squeeze = nn.Conv2d(four, SQUEEZED, 1)
        self.whole = nn.Linear(SQUEEZED * (SIDE // 16) ** 2, 2 * LANDMARKS + 3)
        self.up1 = nn.Conv2d(four, three, 1)
        self.mix = nn.Conv2d(three, three, 3, padding=1)
        self.up2 = nn.Conv2d(three, two, 1)
        self.heat = nn.Conv2d(two, LANDMARKS, 3, padding=1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, 64, 64) in [0, 1] → landmarks (B, 68, 2) in [-1, 1], x right, y down, and angles (B, 3) in degrees."""
        fine = self.down1(self.stem(image - 0.5))  # (B, 48, 16, 16)
        middle = self.down2(fine)  # (B, 72, 8, 8)
        coarse = self.down3(middle)  # (B, 96, 4, 4)
        whole = self.whole(F.relu(self.squeeze(coarse)).flatten(1))  # (B, 139)
        middle = F.relu(self.mix(middle + _enlarged(self.up1(coarse))))  # (B, 72, 8, 8)
        fine = F.relu(fine + _enlarged(self.up2(middle)))  # (B, 48, 16, 16)
        points = centre_of_mass(self.heat(fine)) + 0.1 * whole[:, :-3].unflatten(1, (LANDMARKS, 2))
        return points, DEGREES * whole[:, -3:]


class Block(nn.Module):
    """A residual block of two 3×3 convolutions."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        self.skip = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, feature: Tensor) -> Tensor:
        """(B, inputs, H, W) → (B, outputs, H / stride, W / stride)."""
        inner = F.relu(self.norm1(self.conv1(feature)))
        return F.relu(self.norm2(self.conv2(inner)) + self.skip(feature))


def centre_of_mass(heat: Tensor) -> Tensor:
    """Centres of mass of heat maps (B, K, H, W), softmax not yet taken → (B, K, 2) x, y in [-1, 1]."""
    height, width = heat.shape[2:]
    share = heat.flatten(2).softmax(-1).view_as(heat)
    x, y = ((2 * torch.arange(n, device=heat.device) + 1) / n - 1 for n in (width, height))
    return torch.stack([(share.sum(2) * x).sum(-1), (share.sum(3) * y).sum(-1)], -1)


def seen(picture: Frame) -> Tensor:
    """Bring a square picture (H, H, 3) uint8 to what the network sees: (1, 3, 64, 64) in [0, 1].

    Larger ones are averaged over areas, smaller ones interpolated.

    Raises:
        ValueError: it is not square.
    """
    if picture.shape[0] != picture.shape[1]:
        raise ValueError(f"expected a square picture of a procedural head, got {picture.shape[:2]}")
    image = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None].float() / 255
    if len(picture) > SIDE:
        return F.interpolate(image, (SIDE, SIDE), mode="area")
    return F.interpolate(image, (SIDE, SIDE), mode="bilinear", align_corners=False)


def _enlarged(feature: Tensor) -> Tensor:
    return F.interpolate(feature, scale_factor=2, mode="bilinear", align_corners=False)
