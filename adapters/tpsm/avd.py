"""TPSM's animation via disentanglement (Zhao & Zhang, 2022, §3.5): the driving pose with the source's identity."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn

from memcomp.adapters.outputs import Keypoints
from memcomp.adapters.tpsm.keypoints import POINTS, points


def _layers(*widths: int) -> nn.Sequential:
    """Linear layers with batch norm and ReLU between them."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU()]
    return nn.Sequential(*layers[:-2])


class AVDNetwork(nn.Module):
    """Takes identity from the source's keypoints and pose from the driving ones.

    Args:
        num_tps: number K of thin-plate splines.
        id_bottle_size, pose_bottle_size: length of the code of identity and of pose.
    """

    def __init__(self, num_tps: int, id_bottle_size: int = 64, pose_bottle_size: int = 64) -> None:
        super().__init__()
        size = num_tps * POINTS * 2
        self.id_encoder = _layers(size, 256, 512, 1024, id_bottle_size)
        self.pose_encoder = _layers(size, 256, 512, 1024, pose_bottle_size)
        self.decoder = _layers(pose_bottle_size + id_bottle_size, 1024, 512, 256, size)

    def forward(
        self, kp_source: Keypoints | Mapping[str, Tensor], kp_random: Keypoints | Mapping[str, Tensor]
    ) -> Keypoints:
        """Keypoints (B, 5 K, 2) of a source and of a driving image → the driving pose for the source's face."""
        pose = self.pose_encoder(points(kp_random).flatten(1))
        identity = self.id_encoder(points(kp_source).flatten(1))
        value = self.decoder(torch.cat([pose, identity], dim=1))
        return Keypoints(value.unflatten(1, (-1, 2)).to(self.decoder[-1].weight.dtype))
