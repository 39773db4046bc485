"""The size of a head by its 3-D keypoints, for motion transfer."""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor

from memcomp.adapters.shared.transfer import hull_area

FLAT = 1e-9  # of a hull's extent: what is no farther from a plane lies on it


def hull_volume(points: Tensor) -> float:
    """Volume of the convex hull of points (K, 3); 0 if they lie on one plane.

    A face is a plane through three points that has none on one of its sides; the hull is a pyramid over each face with
    its tip in their mean. Meant for keypoints: it takes K³ steps.
    """
    points = points.detach().cpu().double()
    extent = float((points - points[:1]).abs().max())
    if len(points) < 4 or extent == 0:
        return 0.0
    centred = (points - points.mean(0)) / extent
    corners = centred[torch.tensor(list(combinations(range(len(points)), 3)))]  # (T, 3, 3)
    normal = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    length = normal.norm(dim=-1, keepdim=True)
    proper = length[:, 0] > FLAT
    corners, normal = corners[proper], normal[proper] / length[proper]
    distance = (normal * corners[:, 0]).sum(-1, keepdim=True) - normal @ centred.T  # (T, K), of the points to the plane
    on = distance.abs() <= FLAT
    outer = ((distance >= -FLAT).all(1) | (distance <= FLAT).all(1)) & ~on.all(1)
    faces = {tuple(row.tolist()): number for number, row in enumerate(on) if outer[number]}
    volume = 0.0
    for face, number in faces.items():
        first, second, _ = corners[number]
        along = (second - first) / (second - first).norm()
        across = torch.linalg.cross(normal[number], along)
        flat = centred[torch.tensor(face)] @ torch.stack([along, across], dim=1)
        volume += hull_area(flat) * abs(float(normal[number] @ first)) / 3
    return volume * extent**3
