"""face-vid2vid's own loss terms (§3.3): pure functions, unweighted, each a scalar."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from memcomp.adapters.outputs import Keypoints

CLOSEST = 0.1  # squared distance below which keypoints are pushed apart
DEPTH = 0.33  # where their mean should lie along z
EPSILON = 1e-6  # added to each coordinate of a difference, as published


def keypoint_prior(kp: Keypoints) -> Tensor:
    """Penalty on keypoints (B, K, 3) that crowd, plus how far their mean depth is from 0.33.

    The first part is the sum over all K² ordered pairs of the batch mean of max(0, 0.1 - |Δ|²). A keypoint and itself
    count, as published: a constant 0.1 K.
    """
    difference = kp.value.unsqueeze(2) - kp.value.unsqueeze(1) + EPSILON  # (B, K, K, 3)
    crowding = (CLOSEST - difference.square().sum(-1)).clamp(min=0).mean(0).sum()
    return crowding + (kp.value[..., 2].mean(1) - DEPTH).abs().mean()


def head_pose(degrees: Tensor, target: Tensor) -> Tensor:
    """Batch mean of |Δ| in degrees, summed over yaw, pitch and roll, (B, 3) each."""
    return (degrees - target.to(degrees)).abs().mean(0).sum()


def expression(deltas: Tensor) -> Tensor:
    """Batch mean of the sum of the absolute expression deltas (B, K, 3)."""
    return deltas.abs().sum((1, 2)).mean()


def hinge_generator(fake: Sequence[Tensor]) -> Tensor:
    """The mean of -D(fake), summed over the discriminator's scales."""
    return -torch.stack([prediction.mean() for prediction in fake]).sum()


def hinge_discriminator(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """The means of max(0, 1 - D(real)) and of max(0, 1 + D(fake)), summed over the discriminator's scales."""
    pairs = zip(real, fake, strict=True)
    return torch.stack([(1 - r).clamp(min=0).mean() + (1 + f).clamp(min=0).mean() for r, f in pairs]).sum()
