"""Thin-plate splines (Zhao & Zhang, 2022, Eq. 1-2), from keypoints and at random."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from memcomp.adapters.shared.blocks import axis
from memcomp.adapters.shared.losses import RandomTransform

EPSILON = 1e-9  # inside the logarithm of the radial term
RIDGE = 0.01  # on the diagonal of the system, so that a spline passes near its control points, not through them


def radial(square: Tensor) -> Tensor:
    """U(r²) = r² log(r² + 1e-9)."""
    return square * torch.log(square + EPSILON)


def spline_motions(source: Tensor, driving: Tensor, height: int, width: int) -> Tensor:
    """Where each of K motions looks in the source: z ↦ A z + t + Σ_i w_i U(|z - d_i|²), with T(d_i) ≈ s_i.

    Args:
        source, driving: points s and d, (B, K, N, 2) in [-1, 1].
        height, width: size h × w of the result.

    Returns:
        (B, K, h, w, 2).
    """
    # in half precision the system could not be solved
    source, driving = (points.to(torch.promote_types(points.dtype, torch.float32)) for points in (source, driving))
    count = driving.shape[2]
    between = (driving.unsqueeze(3) - driving.unsqueeze(2)).square().sum(-1)  # (B, K, N, N)
    linear = F.pad(driving, (0, 1), value=1.0)  # (B, K, N, 3)
    above = torch.cat([radial(between), linear], dim=3)
    below = F.pad(linear.transpose(2, 3), (0, 3))  # the weights w neither shift nor turn: Σ w_i (d_i, 1) = 0
    system = torch.cat([above, below], dim=2)  # (B, K, N + 3, N + 3)
    system = system + RIDGE * torch.eye(count + 3, dtype=system.dtype, device=system.device)
    # without the check for singular systems, for which the host would wait for the device: the ridge leaves none
    solved = torch.linalg.solve_ex(system, F.pad(source, (0, 0, 0, 3)))[0]  # (B, K, N + 3, 2)
    weights, (along_x, along_y, shift) = solved[:, :, :count], solved[:, :, count:].unbind(2)

    x, y = axis(width, driving), axis(height, driving)
    affine_x = x[:, None] * along_x.unsqueeze(2) + shift.unsqueeze(2)  # (B, K, w, 2)
    affine_y = y[:, None] * along_y.unsqueeze(2)  # (B, K, h, 2)
    square_x = (x - driving[..., :1]).square()  # (B, K, N, w)
    square_y = (y - driving[..., 1:]).square()  # (B, K, N, h)
    bend = radial(square_y.unsqueeze(-1) + square_x.unsqueeze(-2))  # (B, K, N, h, w)
    # a product and a sum rather than a matrix product, which autocast would round
    bent = (bend.unsqueeze(-1) * weights[:, :, :, None, None]).sum(2)  # (B, K, h, w, 2)
    return affine_y.unsqueeze(3) + affine_x.unsqueeze(2) + bent


class RandomSpline(RandomTransform):
    """A `RandomTransform` with the radial term of these splines, of the squared Euclidean distance."""

    def _bend(self, offsets: Tensor) -> Tensor:
        return radial(offsets.square().sum(-1))

    def _bend_slope(self, offsets: Tensor) -> Tensor:
        square = offsets.square().sum(-1, keepdim=True)
        return (torch.log(square + EPSILON) + square / (square + EPSILON)) * 2 * offsets
