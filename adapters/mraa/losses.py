"""MRAA's own loss terms (Siarohin et al., 2021, §3.6): pure functions, unweighted, each a scalar."""

from __future__ import annotations

import torch
from torch import Tensor

from memcomp.adapters.mraa.avd import AVDNetwork
from memcomp.adapters.mraa.regions import Regions
from memcomp.adapters.shared.blocks import inverse_2x2, matmul_2x2
from memcomp.adapters.shared.draws import draw_each, to_device
from memcomp.adapters.shared.losses import RandomTransform

RANDOM_SCALE = 0.25  # how far from 1 the disentanglement scales driving regions, per axis


def equivariance_affine(
    regions: Regions, moved: Regions, transform: RandomTransform, *, revert_axis_swap: bool
) -> Tensor:
    """Mean |I - s A⁻¹ T' A'|: frames A of an image and A' of the image warped by T, with T' = dT/dz there.

    With `revert_axis_swap` s is the sign of the first entry of the product, else 1.

    Raises:
        ValueError: the regions have no frames.
    """
    if regions.jacobian is None or moved.jacobian is None:
        raise ValueError("equivariance_jacobian needs frames: set pca_based or estimate_affine to true")
    product = matmul_2x2(inverse_2x2(regions.jacobian), matmul_2x2(transform.jacobian(moved.value), moved.jacobian))
    if revert_axis_swap:
        product = product * product[..., :1, :1].sign()
    return (torch.eye(2, dtype=product.dtype, device=product.device) - product).abs().mean()


def disentanglement(network: AVDNetwork, source: Regions, driving: Regions, generator: torch.Generator) -> Tensor:
    """Mean |p - p'| plus mean |A - A'|: driving regions, and what the network makes of the source's and scaled ones.

    Shifts and frames of the pose are scaled by 0.75 to 1.25 per image and axis, drawn from `generator`.
    """
    drawn = draw_each(torch.rand, len(driving.value), 2, generator=generator)
    scale = to_device(1 - RANDOM_SCALE + 2 * RANDOM_SCALE * drawn, driving.value.device).to(driving.value.dtype)
    scale = scale.unsqueeze(1)  # (B, 1, 2)
    if driving.jacobian is None:
        raise ValueError("animation via disentanglement needs regions with frames")
    made = network(source, Regions(scale * driving.value, scale.unsqueeze(-1) * driving.jacobian))
    assert made.jacobian is not None
    return (driving.value - made.value).abs().mean() + (driving.jacobian - made.jacobian).abs().mean()
