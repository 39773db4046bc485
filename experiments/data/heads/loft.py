"""Surfaces swept from a table of rings: the one way every closed part of a person is modelled."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def smoothstep(x: Tensor, low: float, high: float) -> Tensor:
    """Rise from 0 below low to 1 above high, C1 in between; high < low turns it round."""
    t = ((x - low) / (high - low)).clamp(0, 1)
    return t * t * (3 - 2 * t)


def bump(x: Tensor, y: Tensor, at: tuple[float, float], width: tuple[float, float]) -> Tensor:
    """A Gaussian of height 1."""
    return torch.exp(-(((x - at[0]) / width[0]) ** 2) - ((y - at[1]) / width[1]) ** 2)


def interpolate(knots: Tensor, values: Tensor, x: Tensor) -> Tensor:
    """Piecewise smooth (C1) interpolation of values (K,) at increasing knots (K,), constant outside."""
    i = torch.searchsorted(knots, x.contiguous()).clamp(1, len(knots) - 1)
    t = ((x - knots[i - 1]) / (knots[i] - knots[i - 1])).clamp(0, 1)
    return values[i - 1] + (values[i] - values[i - 1]) * (t * t * (3 - 2 * t))


def catmull_rom(rings: Tensor, at: Tensor) -> Tensor:
    """Interpolate a table (N, F), one ghost row before and after, at positions `at` (M,) in [0, N - 3] → (M, F)."""
    i = at.floor().clamp(0, len(rings) - 4).long()
    t = (at - i)[:, None]
    p0, p1, p2, p3 = (rings[i + k] for k in range(4))
    return p1 + 0.5 * t * (p2 - p0 + t * (2 * p0 - 5 * p1 + 4 * p2 - p3 + t * (3 * (p1 - p2) + p3 - p0)))


def ring_positions(counts: list[int], detail: float) -> Tensor:
    """Positions along a table: `counts[k] * detail` steps (at least one) between ring k and k + 1."""
    steps = [max(1, round(c * detail)) for c in counts]
    parts = [k + torch.arange(n) / n for k, n in enumerate(steps)]
    return torch.cat([*parts, torch.tensor([float(len(counts))])])


def angles(columns: int, front: float = 0.55) -> Tensor:
    """Angles (columns,) from -pi (back) over 0 (front) up to, not including, pi; `front` < 1 is denser in front."""
    u = torch.arange(columns) / columns * 2 - 1
    return math.pi * (front * u + (1 - front) * u**3)


def sweep(rings: Tensor, theta: Tensor, square: float = 0.0) -> Tensor:
    """Sweep rings (R, 5) of (front height, back height, half width, front z, back z) → points (R, C, 3) at angles (C,).

    `square` ≥ 0 pushes the diagonals outwards.
    """
    front_y, back_y, width, front_z, back_z = (rings[:, k : k + 1] for k in range(5))
    sine = (theta.sin() + square * (3 * theta).sin()) / (1 - square)
    cosine = (theta.cos() - square * (3 * theta).cos()) / (1 - square)
    middle = back_z + 0.48 * (front_z - back_z)
    z = middle + cosine * torch.where(cosine > 0, front_z - middle, middle - back_z)
    toward_front = (1 + theta.cos()) / 2
    y = back_y + (front_y - back_y) * toward_front
    return torch.stack([width * sine, y.expand_as(z), z], -1)


def grid_normals(points: Tensor, wrap: bool) -> Tensor:
    """Outward unit normals (…, R, C, 3) of a grid whose rows run down and whose columns turn left to right in front."""
    along_row = points.roll(-1, -2) - points.roll(1, -2) if wrap else torch.gradient(points, dim=-2)[0]
    down = torch.empty_like(points)
    down[..., 1:-1, :, :] = points[..., 2:, :, :] - points[..., :-2, :, :]
    down[..., 0, :, :] = points[..., 1, :, :] - points[..., 0, :, :]
    down[..., -1, :, :] = points[..., -1, :, :] - points[..., -2, :, :]
    normal = torch.linalg.cross(down, along_row)
    for pole, beside in ((0, 1), (-1, -2)):  # a ring of no width has no direction of its own
        normal[..., pole, :, :] += 1e-3 * normal[..., beside, :, :].mean(-2, keepdim=True)
    return torch.nn.functional.normalize(normal, dim=-1, eps=1e-8)


def grid_triangles(rows: int, columns: int, wrap: bool) -> Tensor:
    """Triangles of a rows × columns grid: vertex numbers (N, 3), counter-clockwise seen from outside."""
    r = torch.arange(rows - 1)[:, None]
    c = torch.arange(columns if wrap else columns - 1)[None]
    right = (c + 1) % columns
    a, b, d, e = (r * columns + c, r * columns + right, (r + 1) * columns + c, (r + 1) * columns + right)
    return torch.stack([torch.stack([a, d, e], -1), torch.stack([a, e, b], -1)], 2).reshape(-1, 3)
