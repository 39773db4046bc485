"""The plain equations of the memory, as one writes them down: what the core is timed against and proved equal to.

Every map is made at full resolution, kernels are made per sample and applied by one batched convolution, and the
attention matrix is stored.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from memcomp import CompensationOutput, MemoryCompensation
from memcomp.mcm import DynamicConv2d


def plain_compensate(unit: MemoryCompensation, feature: Tensor, keypoints: Tensor, scale: int) -> CompensationOutput:
    """Eq. 1-4 (preset `paper`, start `paper`, any split at the half) with the weights of `unit`; shapes as its."""
    index = 0 if unit.config.sharing == "networks" else scale
    layer: Any = unit.scales[scale]  # what a list of modules gives has no type that knows its layers
    iicm: Any = unit.iicm[index]
    mcm: Any = unit.mcm[index]
    batch, (height, width) = feature.shape[0], feature.shape[2:]
    kept, part = feature.chunk(2, dim=1)
    projected = layer.projection(part)  # (B, C_m, H, W)
    pooled = projected.mean((2, 3))
    style = iicm.mlp(torch.cat([pooled, keypoints.expand(batch, -1, -1).flatten(1)], dim=1))
    kernel = iicm.conv.weight * style[:, None, :, None, None]
    kernel = kernel * torch.rsqrt(kernel.square().sum((2, 3, 4), keepdim=True) + iicm.conv.eps)
    memory = _batched_conv(unit.memory().expand(batch, -1, -1, -1), kernel, None)  # M_s
    key, value = (_dynamic(conv, memory, pooled) for conv in (mcm.key, mcm.value))
    query = F.relu(mcm.query(projected))
    logits = query.flatten(2).transpose(1, 2) @ key.flatten(2) * mcm.scale  # (B, H W, M)
    attended = value.flatten(2) @ torch.softmax(logits, dim=-1).transpose(1, 2)  # (B, C_m, H W)
    compensated = layer.output(attended.unflatten(2, (height, width)))
    target = F.interpolate(projected.detach(), unit.config.memory_size, mode="bilinear", align_corners=True)
    return CompensationOutput(torch.cat([kept, compensated], dim=1), value, target)


def _dynamic(conv: DynamicConv2d, memory: Tensor, pooled: Tensor) -> Tensor:
    mixture = torch.softmax(conv.attention(pooled) / conv.temperature, dim=1)
    weight = (mixture @ conv.weight).unflatten(1, conv.shape)
    return _batched_conv(memory, weight, None if conv.bias is None else mixture @ conv.bias)


def _batched_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    batch, size = x.shape[0], x.shape[2:]
    flat_bias = None if bias is None else bias.flatten()
    out = F.conv2d(x.reshape(1, -1, *size), weight.flatten(0, 1), flat_bias, padding=1, groups=batch)
    return out.reshape(batch, -1, *size)
