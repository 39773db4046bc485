"""TPSM's animation via disentanglement (Zhao & Zhang, 2022, §3.5): the driving pose with the source's identity."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from memcomp.adapters.outputs import Keypoints
from memcomp.adapters.shared.blocks import linear_layers, unrounded
from memcomp.adapters.tpsm.keypoints import POINTS, points


class AVDNetwork(nn.Module):
    """Takes identity from the source's keypoints and pose from the driving ones.

    Args:
        num_tps: number K of thin-plate splines.
        id_bottle_size, pose_bottle_size: length of the code of identity and of pose.
    """

    def __init__(self, num_tps: int, id_bottle_size: int = 64, pose_bottle_size: int = 64) -> None:
        super().__init__()
        size = num_tps * POINTS * 2
        self.id_encoder = linear_layers(size, 256, 512, 1024, id_bottle_size)
        self.pose_encoder = linear_layers(size, 256, 512, 1024, pose_bottle_size)
        self.decoder = linear_layers(pose_bottle_size + id_bottle_size, 1024, 512, 256, size)

    def forward(
        self, kp_source: Keypoints | Mapping[str, Tensor], kp_random: Keypoints | Mapping[str, Tensor]
    ) -> Keypoints:
        """Keypoints (B, 5 K, 2) of a source and of a driving image → the driving pose for the source's face."""
        pose = unrounded(self.pose_encoder, points(kp_random).flatten(1))
        identity = unrounded(self.id_encoder, points(kp_source).flatten(1))
        return Keypoints(unrounded(self.decoder, torch.cat([pose, identity], dim=1)).unflatten(1, (-1, 2)))
