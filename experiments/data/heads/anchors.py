"""The 68 landmarks (iBUG order) as material points of a person's mesh."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from memcomp.experiments.data.heads.eyes import lid_curves
from memcomp.experiments.data.heads.face import EYE_Y, MOUTH_ROWS, nose_base
from memcomp.experiments.data.heads.identity import Identity
from memcomp.experiments.data.heads.mesh import Mesh, Part, build
from memcomp.experiments.data.heads.skin import brow_curve, lip_heights, seam_y

LANDMARKS = 68
UPPER_LIDS = (37, 38, 43, 44)  # the landmarks that a blink moves


@dataclass(frozen=True)
class Anchors:
    """K material points, each inside a triangle of the mesh."""

    vertex: Tensor  # (K, 3)
    weight: Tensor  # (K, 3) barycentric

    def on(self, values: Tensor) -> Tensor:
        """Vertex values (T, V, F) → values at the points (T, K, F)."""
        return (values[:, self.vertex] * self.weight[..., None]).sum(2)


def locate(mesh: Mesh, at: Tensor) -> Anchors:
    """The frontmost points of the face at rest whose x and y (head units) are `at` (K, 2)."""
    corner = mesh.rest[mesh.triangles]  # (N, 3, 3)
    middle = corner.mean(1)
    use = (mesh.part == int(Part.HEAD)) & (middle[:, 2] > 0.05) & (middle[:, 1].abs() < 0.95)
    triangles, corner, middle = mesh.triangles[use], corner[use], middle[use]
    xy = corner[None, ..., :2] - at[:, None, None]  # (K, N, 3, 2)
    x, y = xy.unbind(-1)
    weight = x.roll(-1, 2) * y.roll(-2, 2) - x.roll(-2, 2) * y.roll(-1, 2)
    area = weight.sum(2, keepdim=True)
    weight = torch.where(area > 1e-9, weight / area.clamp(min=1e-9), torch.full_like(weight, -9.0))
    outside = (-weight.amin(2)).clamp(min=0)  # 0 inside
    best = (outside * 1e3 - middle[:, 2]).argmin(1)
    picked = torch.arange(len(at))
    return Anchors(triangles[best], weight[picked, best])


def _outline(mesh: Mesh) -> Tensor:
    """Vertices (17,) of the face's outline seen from the front, from one temple over the chin to the other."""
    rest = mesh.rest[: mesh.moves.shape[1]]
    x, y = rest[:, 0], rest[:, 1] - EYE_Y
    radius = (x * x + y * y).sqrt()
    around = torch.atan2(y, x)
    usable = (rest[:, 2] > -0.22) & (y < 0.1)
    picks = []
    for k in range(17):
        angle = -math.pi + math.pi * k / 16
        turn = torch.remainder(around - angle + math.pi, 2 * math.pi) - math.pi
        score = torch.where(usable & (turn.abs() < 0.06), radius - 2 * turn.abs(), torch.tensor(-9.0))
        picks.append(score.argmax())
    return torch.stack(picks)


def _chart_points(who: Identity, blink: float) -> dict[int, tuple[float, float]]:
    """Landmarks that are drawn at known x and y of the face at rest, head units."""
    points: dict[int, tuple[float, float]] = {}

    def heights(outward: list[float]) -> tuple[list[float], list[float]]:
        upper, lower = lid_curves(who, torch.tensor(outward), torch.tensor(blink))
        return (upper + EYE_Y).tolist(), (lower + EYE_Y).tolist()

    brow = [0.175, 0.11, 0.03, -0.06, -0.145]  # outward distances, outer end first
    brow_y = brow_curve(who, torch.tensor(brow)).tolist()
    w = who.eye_width
    lid_x = [0.97 * w, 0.38 * w, -0.38 * w, -0.97 * w]  # outer corner … inner corner
    upper, lower = heights(lid_x)
    for k in range(5):
        points[17 + k] = (-(who.eye_x + brow[k]), brow_y[k])
        points[26 - k] = (who.eye_x + brow[k], brow_y[k])
    for sign, numbers in ((-1, (36, 37, 38, 39, 40, 41)), (1, (45, 44, 43, 42, 47, 46))):
        outer, up_outer, up_inner, inner, low_inner, low_outer = numbers
        for number, k, height in (
            (outer, 0, lower),
            (up_outer, 1, upper),
            (up_inner, 2, upper),
            (inner, 3, lower),
            (low_inner, 2, lower),
            (low_outer, 1, lower),
        ):
            points[number] = (sign * (who.eye_x + lid_x[k]), height[k])
    base = nose_base(who)
    for k in range(4):
        points[27 + k] = (0.0, EYE_Y + 0.03 + (base + 0.085 - EYE_Y - 0.03) * k / 3)
    for k in range(5):
        x = (k - 2) * 0.060 * who.nose_width
        points[31 + k] = (x, base + (0.012 if abs(k - 2) == 2 else -0.002))
    lip_x = [-0.62, -0.26, 0.0, 0.26, 0.62]
    lips = torch.tensor(lip_x) * who.mouth_width
    top, bottom = lip_heights(who, lips)
    seam = seam_y(who, lips)
    for k in range(5):
        points[49 + k] = (float(lips[k]), float(seam[k] + top[k]))
        points[59 - k] = (float(lips[k]), float(seam[k] + bottom[k]))
    return points


@lru_cache(maxsize=32)
def landmark_anchors(who: Identity, detail: float) -> tuple[Anchors, Anchors]:
    """The 68 landmarks with the eyes open, and with the eyes closed."""
    mesh = build(who, detail)
    both = []
    for blink in (0.0, 1.0):
        chart = _chart_points(who, blink)
        numbers = sorted(chart)
        found = locate(mesh, torch.tensor([chart[n] for n in numbers]))
        vertex = torch.zeros(LANDMARKS, 3, dtype=torch.long)
        weight = torch.tensor([1.0, 0.0, 0.0]).repeat(LANDMARKS, 1)
        vertex[numbers], weight[numbers] = found.vertex, found.weight
        vertex[:17] = _outline(mesh)[:, None]
        _place_seam(mesh, who, vertex, weight)
        both.append(Anchors(vertex, weight))
    return both[0], both[1]


def _place_seam(mesh: Mesh, who: Identity, vertex: Tensor, weight: Tensor) -> None:
    """Fill in the landmarks on the two edges of the lips: corners 48, 54, 60, 64 and the inner points."""
    columns = len(mesh.face.theta)
    front = mesh.face.theta.abs() < 1.2
    first = int(front.nonzero()[0, 0])
    upper = mesh.face.seam_row * columns
    lower = (mesh.face.seam_row + MOUTH_ROWS + 1) * columns
    x = mesh.rest[upper : upper + columns, 0][front].contiguous()
    across = {48: -1.0, 54: 1.0, 60: -0.9, 61: -0.4, 62: 0.0, 63: 0.4, 64: 0.9, 65: 0.4, 66: 0.0, 67: -0.4}
    for number, t in across.items():
        target = torch.tensor(t * who.mouth_width)
        right = int(torch.searchsorted(x, target).clamp(1, len(x) - 1))
        share = float((target - x[right - 1]) / (x[right] - x[right - 1]))
        row = lower if number >= 65 else upper
        left_vertex = row + first + right - 1
        vertex[number] = torch.tensor([left_vertex, left_vertex + 1, left_vertex])
        weight[number] = torch.tensor([1 - share, share, 0.0])
