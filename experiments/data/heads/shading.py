"""Light, and the small vocabulary that all surfaces are painted with."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from memcomp.experiments.data.heads.identity import Colour, Identity
from memcomp.experiments.data.heads.pose import Poses


class Label(IntEnum):
    """The values of the label map."""

    BACKGROUND = 0
    SKIN = 1
    HAIR = 2
    EYE = 3
    LIPS = 4
    MOUTH = 5  # teeth, tongue and the dark between them
    CLOTH = 6
    GLASSES = 7


@dataclass(frozen=True)
class Samples:
    """M points of visible surface to paint."""

    rest: Tensor  # (3, M) material position, head units
    normal: Tensor  # (3, M) unit, camera axes
    aux: Tensor  # (M,) see Mesh.aux
    frame: Tensor  # (M,) which frame of the batch
    footprint: Tensor  # (M,) half the width of a sample on the surface, head units: edges are drawn this much softer

    def __getitem__(self, index: Tensor) -> Samples:
        return Samples(
            self.rest[:, index], self.normal[:, index], self.aux[index], self.frame[index], self.footprint[index]
        )


@dataclass(frozen=True)
class Scene:
    """The scene of T frames: what painting needs besides the samples."""

    who: Identity
    poses: Poses


def rgb(colour: Colour) -> Tensor:
    """Make a colour (3, 1)."""
    return torch.tensor(colour)[:, None]


def edge(distance: Tensor, width: Tensor | float) -> Tensor:
    """Coverage of a pixel `distance` inside an edge drawn `width` wide: 0 outside … 1 inside."""
    return (distance / width + 0.5).clamp_(0, 1)


def over(base: Tensor, weight: Tensor, colour: Tensor) -> Tensor:
    """Paint a colour (3, 1 or M) over the base (3, M) with opacity (M,)."""
    return torch.lerp(base, colour.expand_as(base), weight.expand(base.shape[1]))


def fade(footprint: Tensor, wavelength: Tensor | float) -> Tensor:
    """Share of a pattern that survives at this sampling: 1 resolved by four samples a wave … 0 by one and a half."""
    return (1.6 - 4.8 * footprint / wavelength).clamp_(0, 1)


def light(scene: Scene, normal: Tensor, *, wrap: Colour, gloss: float, shine: float) -> tuple[Tensor, Tensor]:
    """Light normals (3, M) → diffuse factor (3, M), by channel wrapped round the terminator, and highlight (M,)."""
    who = scene.who
    to_light = torch.tensor(who.light)
    facing = to_light @ normal
    soft = rgb(wrap)
    diffuse = ((facing + soft) / (1 + soft)).clamp_(min=0)
    sky = 0.92 + 0.08 * normal[1]  # a little more light from above
    rim = 1 - 0.16 * (1 - normal[2].clamp(0, 1)) ** 2
    half = torch.nn.functional.normalize(to_light + torch.tensor([0.0, 0.0, 1.0]), dim=0)
    highlight = gloss * (half @ normal).clamp_(min=0) ** shine
    return (who.ambient * sky + (1.10 - who.ambient) * diffuse) * rim, highlight
