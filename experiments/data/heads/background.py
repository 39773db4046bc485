"""The background behind a person: static, soft, seeded by the identity."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from memcomp.experiments.data.heads.identity import Identity
from memcomp.experiments.data.heads.raster import pixel_centres
from memcomp.experiments.data.heads.shading import edge, over, rgb


def background(who: Identity, size: int) -> Tensor:
    """Paint the background: (3, size * size), RGB in [0, 1]."""
    at = pixel_centres(size).view(-1, 2)
    x, y = at[:, 0], -at[:, 1]
    cos, sin = math.cos(who.background_angle), math.sin(who.background_angle)
    along, across = x * cos + y * sin, y * cos - x * sin
    first, second, third = (rgb(c) for c in who.background)
    a, b, c, d = who.background_phase
    ramp = 0.5 + 0.45 * along
    colour = first + (second - first) * ramp
    if who.background_kind == 1:  # panels: a few wide stripes, as of a wall or a shelf
        panel = edge(torch.sin(3.4 * along + a), 0.10) * 0.45 + edge(torch.sin(2.1 * across + b) - 0.3, 0.08) * 0.25
        colour = over(colour, panel, third)
    if who.background_kind == 2:  # lights out of focus
        for k, (px, py) in enumerate(((a, b), (b, c), (c, d), (d, a), (a, c))):
            distance = ((x - 0.95 * math.sin(2 * px + k)) ** 2 + (y - 0.95 * math.sin(2 * py + k)) ** 2).sqrt()
            size_k = 0.16 + 0.10 * math.sin(px + py) ** 2
            colour = over(colour, 0.40 * edge(size_k - distance, 0.10), third if k % 2 else second)
    vignette = 1 - 0.10 * (x * x + y * y)
    return (colour * vignette).clamp_(0, 1)
