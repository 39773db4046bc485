"""Training pairs of procedural heads with their exact head pose: what teaches face-vid2vid's head-pose network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from memcomp.adapters.facevid2vid.pose import with_pose
from memcomp.experiments.data.augment import coloured
from memcomp.experiments.data.heads import Poses
from memcomp.experiments.data.heads.pose import rotation
from memcomp.experiments.data.heads_set import HeadClips, HeadsSet
from memcomp.experiments.data.pairs import PairSet
from memcomp.experiments.recipe.sections import AugmentSection


def host_angles(poses: Poses) -> Tensor:
    """Yaw, pitch and roll (T, 3) in degrees that give these heads' rotation in face-vid2vid's order and axes.

    Its axes are the picture's, x to the right and y down, and z to the camera: positive yaw turns the nose towards the
    right edge, positive pitch looks up, positive roll tips the top of the head towards the right edge.
    """
    mirror = torch.tensor([1.0, -1.0, 1.0])  # y points down there
    turn = mirror[:, None] * rotation(*poses.angles().unbind(1)) * mirror
    yaw = torch.asin(turn[:, 0, 2].clamp(-1, 1))
    pitch = torch.atan2(-turn[:, 1, 2], turn[:, 2, 2])
    roll = torch.atan2(-turn[:, 0, 1], turn[:, 0, 0])
    return torch.rad2deg(torch.stack([yaw, pitch, roll], dim=1))


class PosedClips(HeadClips):
    """Procedural heads whose frames carry their head pose."""

    def read(self, clip: int, frames: Sequence[int]) -> Tensor:
        """Read frames: float (len(frames), 6, H, W), colours in 0 … 255 and pose (see `facevid2vid.pose.with_pose`)."""
        poses = self.heads.poses(clip)[torch.tensor(list(frames))]
        return with_pose(super().read(clip, frames).float(), host_angles(poses))


class PosePairs(PairSet):
    """Pair i → {"source": float (6, H, W), "driving": as source, …}; see `PairSet`. Colours are changed here."""

    def __init__(self, heads: HeadsSet, seed: int, repeats: int = 1, augment: AugmentSection | None = None) -> None:
        super().__init__(PosedClips(heads), seed, repeats, augment)

    def __getitem__(self, index: int) -> dict[str, Any]:
        found = super().__getitem__(index)
        pair = torch.stack([found["source"], found["driving"]])
        pair = coloured(pair, [found["colours"]] * 2)
        pair[:, :3] /= 255
        return {**found, "source": pair[0], "driving": pair[1], "colours": ()}
