"""TPSM's own loss terms (Zhao & Zhang, 2022, §3.4-3.5): pure functions, unweighted, each a scalar."""

from __future__ import annotations

import torch
from torch import Tensor

from memcomp.adapters.outputs import Keypoints
from memcomp.adapters.shared.draws import draw_each, to_device
from memcomp.adapters.tpsm.avd import AVDNetwork
from memcomp.adapters.tpsm.inpainting import InpaintingNetwork, TPSMOutput

RANDOM_SCALE = 0.25  # how far from 1 the disentanglement scales driving keypoints, per axis


def warp(network: InpaintingNetwork, output: TPSMOutput, driving: Tensor) -> Tensor:
    """Mean |E_i(driving) - warped E_i(source)| of the features E_i, both occluded, summed over levels i.

    Only the flow gets a gradient: features and occlusion maps are detached, as published.
    """
    maps = [each.detach() for each in output.occlusion_maps]
    with torch.no_grad():
        wanted = network.occlude(network.encode(driving), maps)
    warped = [network.deform_input(level.detach(), output.deformation) for level in output.encoded]
    pairs = zip(wanted, network.occlude(warped, maps), strict=True)
    return torch.stack([(want - have).abs().mean() for want, have in pairs]).sum()


def background(there: Tensor, back: Tensor) -> Tensor:
    """Mean |I - A A'| of the background's motions A and A' between two images and back, (B, 3, 3) each."""
    product = (there.unsqueeze(-1) * back.unsqueeze(-3)).sum(-2)  # in full precision also under autocast
    return (torch.eye(3, dtype=product.dtype, device=product.device) - product).abs().mean()


def disentanglement(
    network: AVDNetwork, kp_source: Keypoints, kp_driving: Keypoints, generator: torch.Generator
) -> Tensor:
    """Mean |p - AVD(p_s, S p)| of driving keypoints p and their random scaling S p, 0.75 to 1.25 per image and axis."""
    drawn = draw_each(torch.rand, len(kp_driving.value), 1, 2, generator=generator)
    scale = to_device(1 - RANDOM_SCALE + 2 * RANDOM_SCALE * drawn, kp_driving.value.device).to(kp_driving.value.dtype)
    return (kp_driving.value - network(kp_source, Keypoints(scale * kp_driving.value)).value).abs().mean()
