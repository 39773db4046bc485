"""TPSM's keypoint detector and background predictor (Zhao & Zhang, 2022, §3.2): two ResNets."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memcomp.adapters.outputs import Keypoints
from memcomp.adapters.shared.resnet import ResNet

POINTS = 5  # keypoints of one thin-plate spline


def points(keypoints: Keypoints | Mapping[str, Tensor]) -> Tensor:
    """The tensor (B, 5 K, 2) of `Keypoints`, or of upstream's dict with "fg_kp"."""
    return keypoints["value"] if "value" in keypoints else keypoints["fg_kp"]


class KeypointDetector(nn.Module):
    """Keypoints regressed from the whole image.

    Args:
        num_tps: number K of thin-plate splines, each with 5 keypoints.
    """

    def __init__(self, num_tps: int) -> None:
        super().__init__()
        self.fg_encoder = ResNet(18, num_classes=num_tps * POINTS * 2)

    def forward(self, image: Tensor) -> Keypoints:
        """Images (B, 3, H, W) → 5 K keypoints of each, those of one spline after another."""
        raw = self.fg_encoder(image)
        return Keypoints((torch.sigmoid(raw) * 2 - 1).unflatten(1, (-1, 2)))


class BackgroundPredictor(nn.Module):
    """The camera's motion between two images as one affine map, the identity at the start."""

    def __init__(self) -> None:
        super().__init__()
        self.bg_encoder = ResNet(18, in_channels=6, num_classes=6)
        nn.init.zeros_(self.bg_encoder.fc.weight)
        with torch.no_grad():
            self.bg_encoder.fc.bias.copy_(torch.eye(2, 3).flatten())

    def forward(self, source_image: Tensor, driving_image: Tensor) -> Tensor:
        """Images (B, 3, H, W) → (B, 3, 3), which maps places (x, y, 1) in the driving image to the source's."""
        affine = self.bg_encoder(torch.cat([source_image, driving_image], dim=1)).unflatten(1, (2, 3))
        last = F.pad(affine.new_ones(len(affine), 1, 1), (2, 0))  # (0, 0, 1)
        return torch.cat([affine, last], dim=1)
