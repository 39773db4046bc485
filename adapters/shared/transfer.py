"""Motion transfer between heads for hosts whose motion is keypoints, perhaps with Jacobians."""

from __future__ import annotations

from collections.abc import Callable

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
    hull: Callable[[Tensor], float] = hull_area,
) -> Keypoints:
    """Keypoints that move the source as the driving head has moved since its initial frame.

    Args:
        kp_source, kp_driving, kp_driving_initial: (B, K, D) and perhaps (B, K, D, D), B = 1 or equal.
        relative: add the driving head's displacement (and change of Jacobian) to the source's keypoints;
            otherwise the driving keypoints are used as they are.
        adapt_scale: scale the displacement by √(hull of source / hull of initial driving keypoints), the ratio of the
            heads' sizes, for each element of the batch.
        hull: size of the convex hull of points (K, D), 0 if they span none.

    Raises:
        ValueError: `adapt_scale` with initial driving keypoints that span no hull, on one line or plane.
    """
    if not relative:
        return kp_driving
    displacement = kp_driving.value - kp_driving_initial.value
    if adapt_scale:
        initial = [hull(points) for points in kp_driving_initial.value]
        if min(initial) == 0:
            flat = (
                "a volume, these lie on one plane" if displacement.shape[-1] == 3 else "an area, these lie on one line"
            )
            raise ValueError(f"adapt_scale needs initial driving keypoints that span {flat}")
        source = [hull(points) for points in kp_source.value]
        scale = (torch.tensor(source) / torch.tensor(initial)).sqrt()
        displacement = displacement * scale[:, None, None].to(displacement)
    value = kp_source.value + displacement
    if kp_source.jacobian is None or kp_driving.jacobian is None or kp_driving_initial.jacobian is None:
        return Keypoints(value)
    if value.shape[-1] == 2:
        change = matmul_2x2(kp_driving.jacobian, inverse_2x2(kp_driving_initial.jacobian))
        return Keypoints(value, matmul_2x2(change, kp_source.jacobian))
    return Keypoints(value, kp_driving.jacobian @ torch.linalg.inv(kp_driving_initial.jacobian) @ kp_source.jacobian)
