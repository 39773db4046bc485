"""What a memory does while its host runs, one scale at a time: M_s, where a place looks, how widely, what it changes.

A hook on the memory's call notes what each scale is given; the memory's own steps then give M_s and the keys again, so
that it need not know that it is watched, and no whole attention matrix is ever kept.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from memcomp import MemoryCompensation
from memcomp.adapters import Host, HostOutput
from memcomp.adapters.attachment.skip import SkipCompensation
from memcomp.attention import Query
from memcomp.compensation import Scale
from memcomp.layers import split

ENTRIES = 2**21  # of an attention matrix held at a time


@dataclass(frozen=True)
class Attention:
    """How the places of one feature map look into the memory."""

    entropy: Tensor
    """(B, H, W) nats: 0 = each place looks at one place of the memory, log(H_m W_m) = at all alike."""
    usage: Tensor
    """(B, H_m, W_m): how much each place of the memory is looked at, mean over the feature's places; sums to 1."""


@dataclass(frozen=True)
class ScaleView:
    """One scale in one call of the memory."""

    scale: int
    """Its index in the memory."""
    memory: Tensor
    """M_s (B, C_m, H_m, W_m); M_o where the memory has no IICM."""
    part: Tensor
    """(B, C, H, W): the warped feature's channels that are compensated."""
    change: Tensor
    """(B, H, W): root mean square over these channels of what the memory changes."""
    keys: Tensor
    """(B, C_m, H_m W_m), times the attention's scale."""
    query: Query
    """What its places ask."""

    def attention_at(self, x: float, y: float, sample: int = 0) -> Tensor:
        """Where in the memory the place (x, y) of the picture, in [0, 1], y downwards, looks: (H_m, W_m), sums to 1."""
        height, width = self.query.feature.shape[2:]
        row, column = min(int(y * height), height - 1), min(int(x * width), width - 1)
        logits = self.query.logits(self.keys, sample, slice(row * width + column, row * width + column + 1))  # (1, M)
        return torch.softmax(logits, dim=1)[0].unflatten(0, self.memory.shape[2:])

    def readers_of(self, row: int, column: int, sample: int = 0) -> Tensor:
        """How much each place of the feature looks at one place of the memory: shares in [0, 1], (H, W)."""
        height, width = self.query.feature.shape[2:]
        place, shares = row * self.memory.shape[3] + column, []
        step = max(1, ENTRIES // self.keys.shape[2])
        for first in range(0, height * width, step):
            logits = self.query.logits(self.keys, sample, slice(first, first + step))  # (n, M)
            shares.append(torch.softmax(logits, dim=1)[:, place])
        return torch.cat(shares).view(height, width)

    def attention(self) -> Attention:
        """How all places look into the memory, computed a chunk of them at a time."""
        height, width = self.query.feature.shape[2:]
        entropies, usages, step = [], [], max(1, ENTRIES // self.keys.shape[2])
        for sample in range(len(self.keys)):
            rows = []
            usage = torch.zeros_like(self.keys[0, 0])  # (M,)
            for first in range(0, height * width, step):
                logits = self.query.logits(self.keys, sample, slice(first, first + step))  # (n, M)
                shares = torch.softmax(logits, dim=1)
                rows.append((logits.logsumexp(1) - (shares * logits).sum(1)).clamp(min=0))
                usage += shares.sum(0)
            entropies.append(torch.cat(rows).view(height, width))
            usages.append((usage / (height * width)).view(self.memory.shape[2:]))
        return Attention(torch.stack(entropies), torch.stack(usages))


@torch.no_grad()
def observe(host: Host, source: Tensor, driving: Tensor) -> tuple[HostOutput, list[ScaleView]]:
    """Run a host with a memory once and look at every scale of the memory.

    Args:
        host: in eval mode, with a memory.
        source: (B, 3, H, W) in [0, 1] (4 channels for a host that wants depth).
        driving: the same.

    Returns:
        what the host returns, and the scales in order.

    Raises:
        ValueError: the host has no memory.
    """
    with watching(host) as views:
        output = host(source, driving)
    return output, [views[scale] for scale in sorted(views)]


@contextmanager
def watching(host: Host) -> Iterator[dict[int, ScaleView]]:
    """Look at every scale of a host's memory in the calls inside of the block; yields scale → the last call's view.

    The calls of all threads are seen: let no other use the host meanwhile.

    Raises:
        ValueError: the host has no memory.
    """
    memory = host.memory
    if memory is None:
        raise ValueError(f"the host {host.name!r} has no memory to look at")
    views: dict[int, ScaleView] = {}
    signature = inspect.signature(memory.forward)

    def note(_: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = signature.bind(*args, **kwargs).arguments
        given |= given.pop("given", {})  # what a memory of skips passes on
        scale = given["scale"]
        if isinstance(memory, SkipCompensation) and memory.skips.has(scale):  # there it has a feature of its own
            given["feature"] = memory.skips.warped(scale)
        views[scale] = view(memory, **given)

    hook = memory.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield views
    finally:
        hook.remove()


@torch.no_grad()
def view(
    memory: MemoryCompensation, feature: Tensor, keypoints: Tensor, scale: int, **given: Tensor | None
) -> ScaleView:
    """Look at one scale of `memory.compensate(feature, keypoints, scale, **given)`, by the memory's own steps."""
    compensated = memory.compensate(feature, keypoints, scale, **given).feature
    step, attend = memory.condition(feature, keypoints, scale, **given), memory.attention(scale)
    projection = cast(Scale, memory.scales[scale]).projection
    part = step.part.to(projection.weight.dtype, copy=True)  # a host may change it in place
    after = split(compensated, memory.config.split)[1].to(part.dtype)
    conditioned = step.memory.expand(len(feature), -1, -1, -1)  # M_s or M_o (B, C_m, H_m, W_m)
    seen = {} if step.visibility is None else {"visibility": step.visibility}
    query = attend.ask(part, projection, memory.config.memory_size, **seen)
    change = (after - part).square().mean(1).sqrt()  # (B, H, W)
    return ScaleView(scale, conditioned, part, change, attend.keys(conditioned, step.descriptor), query)


def gates(memory: MemoryCompensation) -> dict[int, Tensor]:
    """Scale → the identity start's gates g of its compensated channels, (C,); no entry without that start."""
    found = {index: cast(Scale, scale).gate for index, scale in enumerate(memory.scales)}
    how = memory.config.split
    return {i: split(g.detach()[None, :, None, None], how)[1].flatten() for i, g in found.items() if g is not None}


def skip_weights(memory: MemoryCompensation) -> dict[int, Tensor]:
    """Scale → weight (C_d, C_e), zero at the start, of the convolution that adds a compensated skip to the decoder."""
    if not isinstance(memory, SkipCompensation):
        return {}
    return {int(scale): cast(nn.Conv2d, conv).weight.detach().flatten(1) for scale, conv in memory.skips.convs.items()}


def spread(memories: Tensor) -> float:
    """How much memories (N, C_m, H_m, W_m) differ: deviation from their mean over their strength, both rms; 0 … 1."""
    memories = memories.cpu().double()
    strength = memories.square().mean().sqrt().item()
    away = (memories - memories.mean(0)).square().mean().sqrt().item()
    return away / strength if strength else 0.0


def roughness(memory: Tensor) -> float:
    """How noisy the channels of (C_m, H_m, W_m) look: 1 for white noise, towards 0 for smooth patterns.

    Mean squared difference of neighbouring places over twice the variance within a channel.
    """
    values = memory.cpu().double()
    steps = [values.diff(dim=dim).square().mean() for dim in (1, 2) if values.shape[dim] > 1]
    variance = values.var(dim=(1, 2), unbiased=True).mean().item() if steps else 0.0
    return torch.stack(steps).mean().item() / (2 * variance) if variance else 0.0


def distinct_patterns(memory: Tensor) -> float:
    """How many different patterns the channels of (C_m, H_m, W_m) hold: 1 if all are one pattern times a factor.

    Participation ratio of the channels' singular values s: (sum s²)² / sum s⁴; noise gives 1 / (1 / C_m + 1 / H_m W_m).
    """
    rows = memory.cpu().double().flatten(1)
    energy = torch.linalg.svdvals(rows - rows.mean(1, keepdim=True)).square()
    return (energy.sum().square() / energy.square().sum()).item() if energy.sum() > 0 else 0.0


def uniform_entropy(memory: Tensor) -> float:
    """log(H_m W_m), the largest entropy that attention over (…, H_m, W_m) can have, nats."""
    return math.log(memory.shape[-2] * memory.shape[-1])
