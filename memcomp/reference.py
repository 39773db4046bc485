"""The paper's equations as the paper writes them (MCNet §3.2-3.3): the yardstick of everything else in this package.

Plain functions of plain tensors, to be read beside the paper. Each sample has a convolution kernel of its own, every
map is made at full resolution and the attention matrix is stored; `iicm.py`, `mcm.py` and `attention.py` say what they
do instead and why it is equal.

Letters, here and in every docstring:

    B              samples of a batch
    K              source keypoints (x, y), each in [-1, 1]
    C_i, H, W      channels, height and width of F_w, the warped feature of scale i; C of them are compensated
    C_m, H_m, W_m  channels, height and width of the memories M_o and M_s; M = H_m W_m
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from memcomp.compensation import CompensationOutput
from memcomp.placed import LEAST

if TYPE_CHECKING:
    from memcomp.compensation import MemoryCompensation
    from memcomp.layers import DynamicConv2d


def identity(projected: Tensor, keypoints: Tensor, mlp: Callable[[Tensor], Tensor]) -> Tensor:
    """S_id = F_mlp([P_F(F_proj), [x_1, y_1, ..., x_K, y_K]]), the implicit identity, (B, C_m).

    Args:
        projected: F_proj, (B, C_m, H, W).
        keypoints: (B, K, D), D = 2 in the paper.
        mlp: F_mlp, (B, C_m + 2 K) -> (B, C_m).
    """
    pooled = projected.mean((2, 3))  # P_F: global average pooling
    return mlp(torch.cat([pooled, keypoints.flatten(1)], dim=1))


def modulate(weight: Tensor, style: Tensor, eps: float = 1e-8) -> Tensor:
    """w'_ijk = s_i w_ijk and w''_ijk = w'_ijk / sqrt(sum_ik w'_ijk^2 + eps): w'' (B, C_m, C_m, 3, 3), j before i.

    Args:
        weight: w, (C_m, C_m, 3, 3).
        style: S_id, (B, C_m), whose elements are the s_i.
        eps: the small constant.
    """
    scaled = style[:, None, :, None, None] * weight
    return scaled / torch.sqrt(scaled.square().sum((2, 3, 4), keepdim=True) + eps)


def condition(memory: Tensor, weight: Tensor, style: Tensor, eps: float = 1e-8) -> Tensor:
    """M_s = F_{C_w''}(M_o) (Eq. 1), (B, C_m, H_m, W_m), from M_o (1, C_m, H_m, W_m); the rest as `modulate`."""
    return _convolve(memory, modulate(weight, style, eps))


def dynamic_kernel(conv: DynamicConv2d, projected: Tensor) -> tuple[Tensor, Tensor | None]:
    """The kernel (B, O, C_m, 3, 3) and bias (B, O) of f_dc for each sample: mixtures of a few, weighted by F_proj."""
    weights = torch.softmax(conv.attention(projected.mean((2, 3))) / conv.temperature, dim=1)  # (B, kernels)
    kernel = (weights @ conv.weight).unflatten(1, conv.shape)
    return kernel, None if conv.bias is None else weights @ conv.bias


def attend(query: Tensor, key: Tensor, value: Tensor, scale: Any = 1.0, more: Any = 0.0) -> Tensor:
    """Softmax(F_Q^T x F_K) x F_V, the inside of Eq. 2: (B, C_m, H, W).

    Args:
        query: F_Q, (B, C_m, H, W).
        key: F_K, (B, C_m, H_m, W_m).
        value: F_V, (B, C_m, H_m, W_m).
        scale: factor on F_Q^T x F_K, which the paper does not have.
        more: (H W, M), added to the logits, which the paper does not have either.
    """
    logits = query.flatten(2).transpose(1, 2) @ key.flatten(2) * scale + more  # (B, H W, M)
    matrix = torch.softmax(logits, dim=-1)
    return (value.flatten(2) @ matrix.transpose(1, 2)).unflatten(2, query.shape[2:])


def target(projected: Tensor, size: tuple[int, int]) -> Tensor:
    """de(F_proj), and as large as the memory, as released: (B, C_m, H_m, W_m)."""
    return F.interpolate(projected.detach(), size, mode="bilinear", align_corners=True)


def consistency(value: Tensor, target: Tensor) -> Tensor:
    """L_con = |F_V - de(F_proj)|_1 (Eq. 4), mean over the elements as released: a scalar."""
    return (value - target).abs().mean()


def teacher(compensated: Tensor, complete: Tensor, value: Tensor, target: Tensor) -> Tensor:
    """|F_cpt^1 - F_*^1|_1 + |F_V - de(F_proj(F_*^1))|_1, means over the elements: a scalar; the paper does not have it.

    Args:
        compensated: F_cpt^1, the channels that are compensated, (B, C, H, W).
        complete: F_*^1, the same channels at the same place of the host's own network, called with the driving frame
            as source and as driving frame, so that nothing is hidden and nothing moves.
        value: F_V, (B, C_m, H_m, W_m).
        target: de(F_proj(F_*^1)), of that shape.
    """
    return (compensated - complete.detach()).abs().mean() + consistency(value, target)


def visible_mean(feature: Tensor, visibility: Tensor, side: int = 1) -> Tensor:
    """Mean of what is visible in each cell of a grid, (B, C, side, side): of a cell that is all hidden, nearly 0."""
    share = F.adaptive_avg_pool2d(visibility, side).clamp(min=LEAST)
    return F.adaptive_avg_pool2d(feature * visibility, side) / share


def nearness(place: Any, here: tuple[int, int], there: tuple[int, int]) -> Tensor:
    """How near the places of two maps over the same picture are, (H W, M): products of learned directions.

    Args:
        place: the layers "query" and "key", each of which mixes sines and cosines of x and y into directions.
        here: height and width of the map that asks.
        there: of the memory.
    """
    directions = []
    for name, (height, width) in (("query", here), ("key", there)):
        y, x = (torch.arange(1 - n, n, 2) / n for n in (height, width))  # pixel centres in [-1, 1]
        angles = [math.pi / 2 * 2**octave for octave in range(4)]
        rows = [wave(angle * y)[:, None].expand(height, width) for wave in (torch.sin, torch.cos) for angle in angles]
        columns = [wave(angle * x).expand(height, width) for wave in (torch.sin, torch.cos) for angle in angles]
        mixed = place[name].mix(torch.stack([*rows, *columns])[None].to(place[name].mix.weight.dtype))
        directions.append((mixed / mixed.norm(dim=1, keepdim=True))[0].flatten(1))  # (32, places)
    return directions[0].t() @ directions[1]


def replaced_channels(unit: MemoryCompensation, scale: int) -> slice:
    """The channels of F_w^1, which are compensated; those of F_w^0 pass."""
    second = {"half": slice(unit.channels[scale] // 2, None), "interleaved": slice(1, None, 2), "none": slice(None)}
    return second[unit.config.split]


def teach(unit: MemoryCompensation, output: CompensationOutput, complete: Tensor, scale: int) -> Tensor:
    """What a recording must give of `output`, which is `compensate`'s, with F_* (B, C_i, H, W) for its teacher."""
    replaced, layer = replaced_channels(unit, scale), cast(Any, unit.scales[scale])
    wanted = target(layer.projection(complete[:, replaced]), unit.config.memory_size)
    return teacher(output.feature[:, replaced], complete[:, replaced], output.value, wanted)


def compensate(
    unit: MemoryCompensation,
    feature: Tensor,
    keypoints: Tensor,
    scale: int,
    driving: Tensor | None = None,
    visibility: Tensor | None = None,
) -> CompensationOutput:
    """What `unit.compensate(feature, keypoints, scale, …)` must give, by the equations, with the weights of `unit`.

    The paper's equations are the lines without a condition; the others are fields of the config that it does not have.

    Raises:
        ValueError: variant "release", which does not follow them, or a coarser grid of queries.
    """
    config = unit.config
    if config.variant != "paper":
        raise ValueError(f"variant {config.variant!r} does not follow the paper's equations")
    if config.queries is not None:
        raise ValueError("a coarser grid of queries follows them only nearly")
    shared = 0 if config.sharing == "networks" else scale
    layer: Any = unit.scales[scale]  # what a list of modules gives has no type that knows its layers
    mcm: Any = unit.mcm[shared]
    poses = torch.cat([p.expand(len(feature), -1, -1) for p in (keypoints, driving) if p is not None], dim=1)
    replaced = replaced_channels(unit, scale)

    projected = pooled = layer.projection(feature[:, replaced])  # F_proj (B, C_m, H, W)
    if visibility is not None:
        pooled = layer.projection(visible_mean(feature[:, replaced], visibility))  # all that is taken of it is its mean
    memory = unit.memory().expand(len(feature), -1, -1, -1)  # M_o
    if config.identity_conditioning:
        iicm: Any = unit.iicm[shared]
        memory = condition(memory, iicm.conv.weight, identity(pooled, poses, iicm.mlp), iicm.conv.eps)  # M_s
    key = _convolve(memory, *dynamic_kernel(mcm.key, pooled))  # F_K
    value = _convolve(memory, *dynamic_kernel(mcm.value, pooled))  # F_V
    query = mcm.query(projected)
    if config.visibility:
        query = query + mcm.seen(visibility)
    for side, conv in zip(config.context, getattr(mcm, "around", ()), strict=True):
        seen = torch.ones_like(feature[:, :1]) if visibility is None else visibility
        around = conv(layer.projection(visible_mean(feature[:, replaced], seen, side)))
        query = query + F.interpolate(around, size=query.shape[2:], mode="bilinear", align_corners=False)
    query, factor, more = F.relu(query), config.attention_scale, 0.0  # F_Q
    if config.normalised:
        query, key, factor = F.normalize(query, dim=1), F.normalize(key, dim=1), mcm.sharpness.exp()
    if config.place:
        more = mcm.nearness.exp() * nearness(mcm.place, (query.shape[2], query.shape[3]), config.memory_size)
    attended = layer.output(attend(query, key, value, factor, more))  # F_ca (B, C, H, W), Eq. 2
    compensated = feature.clone()  # F_cpt, Eq. 3, every channel in its place: a permutation of the paper's order
    compensated[:, replaced] = attended
    if config.start == "residual":
        compensated[:, replaced] = feature[:, replaced] + attended
    if layer.gate is not None:  # start "identity"
        compensated = feature + layer.gate[:, None, None] * (compensated - feature)
    return CompensationOutput(compensated, value, target(projected, config.memory_size))


def _convolve(x: Tensor, kernels: Tensor, biases: Tensor | None = None) -> Tensor:
    """3x3 convolution, zero padded, each sample with its own kernel: (B or 1, I, H, W) -> (B, O, H, W)."""
    x = x.expand(len(kernels), -1, -1, -1)
    each = [None] * len(kernels) if biases is None else biases
    pairs = zip(x, kernels, each, strict=True)
    return torch.stack([F.conv2d(sample, kernel, bias, padding=1) for sample, kernel, bias in pairs])
