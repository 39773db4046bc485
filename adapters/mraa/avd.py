"""MRAA's animation via disentanglement (Siarohin et al., 2021, §3.5): the driving pose with the source's shape."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from memcomp.adapters.mraa.flow import axis_sign
from memcomp.adapters.mraa.regions import Regions, spread
from memcomp.adapters.outputs import Keypoints
from memcomp.adapters.shared.blocks import linear_layers, unrounded

NUMBERS = 6  # of a region: its shift and its frame


class AVDNetwork(nn.Module):
    """Takes identity from the source's regions and pose from the driving ones.

    Args:
        num_regions: number K of regions.
        id_bottle_size, pose_bottle_size: length of the code of identity and of pose.
    """

    def __init__(self, num_regions: int, id_bottle_size: int = 64, pose_bottle_size: int = 64) -> None:
        super().__init__()
        size = num_regions * NUMBERS
        self.id_encoder = linear_layers(size, 256, 512, 1024, id_bottle_size)
        self.pose_encoder = linear_layers(size, 256, 512, 1024, pose_bottle_size)
        self.decoder = linear_layers(pose_bottle_size + id_bottle_size, 1024, 512, 256, size)

    def forward(self, identity: Keypoints | Mapping[str, Tensor], pose: Keypoints | Mapping[str, Tensor]) -> Regions:
        """Regions of a source and of a driving image → the driving pose for the source's shape.

        The identity's frames are given the signs of the pose's first; those of the pose stay as they are.
        """
        identity, pose = Regions.of(identity), Regions.of(pose)
        if identity.jacobian is None or pose.jacobian is None:
            raise ValueError("animation via disentanglement needs regions with frames")
        aligned = identity.jacobian * axis_sign(identity.jacobian, pose.jacobian)
        of_pose = unrounded(self.pose_encoder, _numbers(pose.value, pose.jacobian))
        of_identity = unrounded(self.id_encoder, _numbers(identity.value, aligned))
        made = unrounded(self.decoder, torch.cat([of_pose, of_identity], dim=1))
        value, affine = made.unflatten(1, (-1, NUMBERS)).split([2, 4], dim=2)
        affine = affine.unflatten(2, (2, 2))
        return Regions(value, affine, spread(affine))


def _numbers(value: Tensor, affine: Tensor) -> Tensor:
    """Shifts (B, K, 2) and frames (B, K, 2, 2) → (B, 6 K), those of one region after another."""
    return torch.cat([value, affine.flatten(2)], dim=2).flatten(1)
