"""Augmentation of a pair of frames as the first-order model trains: swap, mirror and colour jitter alike for both."""

import torch
from torch import Tensor
from torchvision.transforms import functional

from memcomp.experiments.recipe.sections import AugmentSection


def augment_pair(pair: Tensor, settings: AugmentSection, generator: torch.Generator) -> Tensor:
    """Augment uint8 frames (2, 3, H, W): source, driving → the same shape and dtype.

    A fourth channel is swapped and mirrored with the others; colours are those of the first three.

    Swapping comes first; only a pair that was not swapped may be mirrored. The colour factors are drawn once for
    both frames and the order of the four operations is shuffled for each pair.
    """
    if _uniform(generator) < settings.time_flip:
        pair = pair.flip(0)
    elif _uniform(generator) < settings.mirror:
        pair = pair.flip(-1)
    pair, further = pair[:, :3], pair[:, 3:]
    for operation in torch.randperm(4, generator=generator).tolist():
        name, strength = JITTER[operation], getattr(settings, JITTER[operation])
        factor = strength * (2 * _uniform(generator) - 1)
        if strength:
            pair = _ADJUST[name](pair, factor if name == "hue" else max(0.0, 1 + factor))
    return torch.cat([pair, further], dim=1)


JITTER = ("brightness", "contrast", "saturation", "hue")
_ADJUST = {name: getattr(functional, f"adjust_{name}") for name in JITTER}


def _uniform(generator: torch.Generator) -> float:
    return torch.rand((), generator=generator).item()
