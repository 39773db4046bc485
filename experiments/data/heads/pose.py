"""Pose and expression of a person in T frames, and smooth trajectories of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import SupportsIndex

import torch
from torch import Tensor

FRAME_RATE = 25.0  # frames per second of a trajectory


@dataclass(frozen=True)
class Poses:
    """Pose and expression of T frames; every field is a float tensor (T,).

    Angles are in degrees: positive yaw turns the nose towards the right edge of the picture, positive pitch looks up,
    positive roll tips the top of the head towards the left edge.
    """

    yaw: Tensor  # within ±60
    pitch: Tensor  # within ±25
    roll: Tensor  # within ±25
    shift_x: Tensor  # half pictures, to the right
    shift_y: Tensor  # half pictures, upwards
    zoom: Tensor  # 1: the identity's own size
    blink: Tensor  # 0 open … 1 closed
    gaze_x: Tensor  # -1 … 1, to the right edge of the picture
    gaze_y: Tensor  # -1 … 1, upwards
    mouth: Tensor  # 0 closed … 1 jaw dropped
    smile: Tensor  # -0.5 … 1
    brows: Tensor  # -1 … 1 raised

    @classmethod
    def make(cls, **values: float | Tensor) -> Poses:
        """Make frontal poses with some fields set, e.g. `Poses.make(yaw=torch.linspace(-60, 60, 8), mouth=0.5)`."""
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"unknown pose fields {unknown}, expected some of {sorted(known)}")
        given = {k: torch.as_tensor(v, dtype=torch.float32).reshape(-1) for k, v in values.items()}
        frames = max((len(v) for v in given.values()), default=1)
        neutral = dict.fromkeys(known, 0.0) | {"zoom": 1.0}
        full = {k: given.get(k, torch.tensor([neutral[k]])).expand(frames) for k in known}
        return cls(**full)

    @classmethod
    def trajectory(cls, seed: int, frames: int, rate: float = FRAME_RATE) -> Poses:
        """Draw a smooth clip, `rate` frames per second: every field a sum of three slow sinusoids, seeded."""
        generator = torch.Generator().manual_seed(seed)
        time = torch.arange(frames) / rate

        def wave(amplitude: float, slow: float, fast: float) -> Tensor:
            """Draw a wave (T,) within ±1.25 amplitude; frequencies between slow and fast, Hz."""
            frequency, phase, weight = torch.rand(3, 3, 1, generator=generator)
            frequency = slow + (fast - slow) * frequency
            waves = torch.sin(2 * math.pi * (frequency * time + phase))
            return 1.25 * amplitude * (weight / weight.sum() * waves).sum(0)

        return cls(
            yaw=wave(60, 0.15, 0.6).clamp(-60, 60),
            pitch=wave(20, 0.1, 0.5).clamp(-25, 25),
            roll=wave(15, 0.1, 0.4).clamp(-25, 25),
            shift_x=wave(0.08, 0.1, 0.5),
            shift_y=wave(0.05, 0.1, 0.5),
            zoom=1 + wave(0.07, 0.1, 0.4),
            blink=(wave(3.2, 0.2, 0.6) - 1.9).clamp(0, 1),
            gaze_x=wave(0.8, 0.15, 0.7).clamp(-1, 1),
            gaze_y=wave(0.6, 0.15, 0.7).clamp(-1, 1),
            mouth=wave(1.1, 0.4, 1.6).clamp(0, 1),
            smile=wave(0.9, 0.1, 0.4).clamp(-0.4, 1),
            brows=wave(0.9, 0.1, 0.5).clamp(-1, 1),
        )

    def __len__(self) -> int:
        return len(self.yaw)

    def __getitem__(self, index: SupportsIndex | slice | Tensor) -> Poses:
        """Select frames; the result is still a batch, `poses[3]` of one frame."""
        if not isinstance(index, (slice, Tensor)):
            i = range(len(self))[index]
            index = slice(i, i + 1)
        return Poses(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def angles(self) -> Tensor:
        """Yaw, pitch and roll in degrees, (T, 3)."""
        return torch.stack([self.yaw, self.pitch, self.roll], 1)

    def as_tensor(self) -> Tensor:
        """Stack the fields into (T, 12), one column each in the order of the dataclass."""
        return torch.stack([getattr(self, f.name) for f in fields(self)], 1)

    @classmethod
    def from_tensor(cls, table: Tensor) -> Poses:
        """Make poses of what `as_tensor` returns."""
        return cls(*table.float().unbind(1))

    @classmethod
    def cat(cls, parts: list[Poses]) -> Poses:
        """Join the frames of several batches."""
        return cls.from_tensor(torch.cat([p.as_tensor() for p in parts]))


def rotation(yaw: Tensor, pitch: Tensor, roll: Tensor) -> Tensor:
    """Rotations (T, 3, 3) of head axes (x right, y up, z to the camera) by angles (T,) in degrees: yaw, pitch, roll."""
    (sy, sp, sr), (cy, cp, cr) = ([f(torch.deg2rad(a)) for a in (yaw, pitch, roll)] for f in (torch.sin, torch.cos))
    zero, one = torch.zeros_like(sy), torch.ones_like(sy)

    def matrix(*entries: Tensor) -> Tensor:
        return torch.stack(entries, -1).view(-1, 3, 3)

    about_y = matrix(cy, zero, sy, zero, one, zero, -sy, zero, cy)
    about_x = matrix(one, zero, zero, zero, cp, sp, zero, -sp, cp)
    about_z = matrix(cr, -sr, zero, sr, cr, zero, zero, zero, one)
    return about_z @ about_x @ about_y
