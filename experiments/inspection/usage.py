"""How much a host uses its memory, in three numbers that a training can watch."""

from __future__ import annotations

from collections.abc import Collection

import torch

from memcomp.experiments.inspection.observe import ScaleView, uniform_entropy

USAGE = ("memory_entropy", "memory_read", "memory_change")


def usage(views: Collection[ScaleView]) -> dict[str, float]:
    """Measure what a call of the host made of its memory, each number a mean over the scales of the memory.

    Args:
        views: of the scales, see `watching`.

    Returns:
        `memory_entropy`: how widely a place looks, entropy of its attention over that of even attention, 0 … 1.
        `memory_read`: share of the memory's places that are read, 1/(H_m W_m) … 1: the exponential of the entropy of
        how much each is looked at by all places of all pictures, over their number.
        `memory_change`: what the memory changes of the warped feature, root mean square over that of the feature.
    """
    return {name: sum(values) / len(views) for name, *values in zip(USAGE, *map(_of_scale, views), strict=True)}


def _of_scale(view: ScaleView) -> tuple[float, float, float]:
    attention, largest = view.attention(), uniform_entropy(view.memory)
    entropy = attention.entropy.mean().item() / max(largest, 1e-12)
    looked_at = attention.usage.mean(0).cpu().double()  # (H_m, W_m)
    read = torch.special.entr(looked_at).sum().exp().item() / looked_at.numel()
    strength = view.part.square().mean().sqrt().clamp(min=1e-12)
    return entropy, read, (view.change.square().mean().sqrt() / strength).item()
