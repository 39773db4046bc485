"""Motion transfer between heads by 3-D keypoints."""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor

from memcomp.adapters.outputs import Keypoints
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


def transfer_motion(
    kp_source: Keypoints, kp_driving: Keypoints, kp_driving_initial: Keypoints, *, adapt_scale: bool = True
) -> Keypoints:
    """Keypoints that move the source as the driving head has moved since its initial frame.

    Args:
        kp_source, kp_driving, kp_driving_initial: (B, K, 3) and perhaps (B, K, 3, 3), B = 1 or equal; as published, the
            driving ones are those of the source's person in the driving poses.
        adapt_scale: scale the displacement by √(hull of source / hull of initial driving keypoints), of their volumes.

    Raises:
        ValueError: `adapt_scale` with initial driving keypoints on one plane.
    """
    displacement = kp_driving.value - kp_driving_initial.value
    if adapt_scale:
        initial = [hull_volume(points) for points in kp_driving_initial.value]
        if min(initial) == 0:
            raise ValueError("adapt_scale needs initial driving keypoints that span a volume, these lie on one plane")
        source = [hull_volume(points) for points in kp_source.value]
        scale = (torch.tensor(source) / torch.tensor(initial)).sqrt()
        displacement = displacement * scale[:, None, None].to(displacement)
    value = kp_source.value + displacement
    if kp_source.jacobian is None or kp_driving.jacobian is None or kp_driving_initial.jacobian is None:
        return Keypoints(value)
    change = kp_driving.jacobian @ torch.linalg.inv(kp_driving_initial.jacobian)
    return Keypoints(value, change @ kp_source.jacobian)
