"""Motion transfer between heads for hosts whose motion is keypoints with Jacobians (FOMM and its descendants)."""

from __future__ import annotations

import torch
from torch import Tensor

from memcomp.adapters.outputs import Keypoints
from memcomp.adapters.shared.blocks import inverse_2x2, matmul_2x2


def hull_area(points: Tensor) -> float:
    """Area of the convex hull of points (K, 2), by Andrew's monotone chain."""
    ordered = sorted(map(tuple, points.detach().cpu().double().tolist()))

    def chain(sequence: list[tuple[float, float]]) -> list[tuple[float, float]]:
        hull: list[tuple[float, float]] = []
        for x, y in sequence:
            while len(hull) > 1:
                (ax, ay), (bx, by) = hull[-2:]
                if (bx - ax) * (y - ay) - (by - ay) * (x - ax) > 0:
                    break
                hull.pop()
            hull.append((x, y))
        return hull[:-1]

    hull = chain(ordered) + chain(ordered[::-1])
    following = hull[1:] + hull[:1]
    return 0.5 * abs(sum(ax * by - bx * ay for (ax, ay), (bx, by) in zip(hull, following, strict=True)))


def transfer_motion(
    kp_source: Keypoints,
    kp_driving: Keypoints,
    kp_driving_initial: Keypoints,
    *,
    relative: bool = True,
    adapt_scale: bool = True,
) -> Keypoints:
    """Keypoints that move the source as the driving head has moved since its initial frame.

    Args:
        kp_source, kp_driving, kp_driving_initial: (B, K, 2) and perhaps (B, K, 2, 2), B = 1 or equal.
        relative: add the driving head's displacement (and change of Jacobian) to the source's keypoints;
            otherwise the driving keypoints are used as they are.
        adapt_scale: scale the displacement by √(hull of source / hull of initial driving keypoints), the ratio of the
            heads' sizes, for each element of the batch.

    Raises:
        ValueError: `adapt_scale` with initial driving keypoints on one line.
    """
    if not relative:
        return kp_driving
    displacement = kp_driving.value - kp_driving_initial.value
    if adapt_scale:
        initial = [hull_area(points) for points in kp_driving_initial.value]
        if min(initial) == 0:
            raise ValueError("adapt_scale needs initial driving keypoints that span an area, these lie on one line")
        source = [hull_area(points) for points in kp_source.value]
        scale = (torch.tensor(source) / torch.tensor(initial)).sqrt()
        displacement = displacement * scale[:, None, None].to(displacement)
    value = kp_source.value + displacement
    if kp_source.jacobian is None or kp_driving.jacobian is None or kp_driving_initial.jacobian is None:
        return Keypoints(value)
    change = matmul_2x2(kp_driving.jacobian, inverse_2x2(kp_driving_initial.jacobian))
    return Keypoints(value, matmul_2x2(change, kp_source.jacobian))
