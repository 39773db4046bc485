"""Augmentation of a pair of frames as the first-order model trains: swap, mirror and colour jitter alike for both.

What is random is drawn where a pair is read (`flipped`, `draw_colours`); colours are changed later, on the device, of
a whole batch (`coloured`).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from memcomp.adapters.shared.draws import to_device
from memcomp.experiments.recipe.sections import AugmentSection

JITTER = ("brightness", "contrast", "saturation", "hue")
Colours = tuple[tuple[str, float], ...]
"""What the colours of one pair go through, in this order: a name of `JITTER`, and its factor or, for hue, its shift."""


def augment_pair(pair: Tensor, settings: AugmentSection, generator: torch.Generator) -> Tensor:
    """Augment uint8 frames (2, 3, H, W): source, driving → the same shape and dtype.

    A fourth channel is swapped and mirrored with the others; colours are those of the first three.
    """
    pair = flipped(pair, settings, generator)
    return coloured(pair, [draw_colours(settings, generator)] * 2).to(pair.dtype)


def flipped(pair: Tensor, settings: AugmentSection, generator: torch.Generator) -> Tensor:
    """Swap source and driving (2, C, H, W), or mirror both: only a pair that was not swapped may be mirrored."""
    if _uniform(generator) < settings.time_flip:
        return pair.flip(0)
    if _uniform(generator) < settings.mirror:
        return pair.flip(-1)
    return pair


def draw_colours(settings: AugmentSection, generator: torch.Generator) -> Colours:
    """Draw once for both frames of a pair; the order of the operations is shuffled, those without strength left out."""
    drawn: list[tuple[str, float]] = []
    for operation in torch.randperm(len(JITTER), generator=generator).tolist():
        name = JITTER[operation]
        strength: float = getattr(settings, name)
        factor = strength * (2 * _uniform(generator) - 1)
        if strength:
            drawn.append((name, factor if name == "hue" else max(0.0, 1 + factor)))
    return tuple(drawn)


def coloured(pictures: Tensor, colours: Sequence[Colours]) -> Tensor:
    """Change the colours of a batch: uint8 or float (B, 3 or more, H, W) in 0 … 255 → float32, whole numbers.

    Every operation rounds down to whole numbers, as torchvision's do on uint8. A picture's result does not depend on
    the others in the batch. On the CPU they are taken one by one, which fits its caches; elsewhere all at once.

    Args:
        pictures: red, green, blue, and channels that stay as they are.
        colours: of each picture.
    """
    result = pictures.float()
    for part in _taken_together(result):
        for place in range(max((len(colours[number]) for number in part), default=0)):
            for name, change in _CHANGES.items():
                chosen = [i for i in part if place < len(colours[i]) and colours[i][place][0] == name]
                if chosen:
                    factors = torch.tensor([colours[i][place][1] for i in chosen], dtype=torch.float64)
                    several = to_device(torch.tensor(chosen), result.device)
                    where = slice(chosen[0], chosen[0] + 1) if len(chosen) == 1 else several
                    result[where, :3] = change(result[where, :3], factors.view(-1, 1, 1, 1))
    return result


def _taken_together(pictures: Tensor) -> list[list[int]]:
    numbers = list(range(len(pictures)))
    return [[number] for number in numbers] if pictures.device.type == "cpu" else [numbers]


# ---- each operation: whole numbers (N, 3, H, W) in 0 … 255 and float64 (N, 1, 1, 1) on the CPU → whole numbers -------


def _brightness(pictures: Tensor, factor: Tensor) -> Tensor:
    return (pictures * _beside(factor, pictures)).clamp_(max=255).floor_()


def _contrast(pictures: Tensor, factor: Tensor) -> Tensor:
    return _blend(pictures, _grey(pictures).mean((1, 2, 3), keepdim=True), factor)


def _saturation(pictures: Tensor, factor: Tensor) -> Tensor:
    return _blend(pictures, _grey(pictures), factor)


def _hue(pictures: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue, in sixths of the circle, with no conversion to and fro: a channel is least + chroma × a ramp."""
    red, green, blue = pictures.unbind(1)
    most, least = torch.maximum(torch.maximum(red, green), blue), torch.minimum(torch.minimum(red, green), blue)
    chroma = most - least
    by = chroma.clamp(min=1)
    hue = torch.where(most == green, (blue - red).div_(by).add_(2), (red - green).div_(by).add_(4))
    hue = torch.where(most == red, (green - blue).div_(by), hue).add_(6 * _beside(shift[..., 0], pictures))
    hue -= (hue / 6).floor_().mul_(6)
    ramps = ((hue - 3).abs_().sub_(1), (hue - 2).abs_().neg_().add_(2), (hue - 4).abs_().neg_().add_(2))
    result = torch.stack([ramp.clamp_(0, 1).mul_(chroma).add_(least) for ramp in ramps], 1)
    return result.mul_(255.999 / 255).floor_()  # so that a whole number stays one


def _blend(pictures: Tensor, others: Tensor, ratio: Tensor) -> Tensor:
    mixed = (pictures * _beside(ratio, pictures)).add_(others * _beside(1 - ratio, pictures))
    return mixed.clamp_(0, 255).floor_()


def _beside(numbers: Tensor, pictures: Tensor) -> Tensor:
    return to_device(numbers.to(pictures.dtype), pictures.device)


def _grey(pictures: Tensor) -> Tensor:
    """Luma (N, 1, H, W), whole numbers."""
    red, green, blue = pictures.split(1, 1)
    return (red * 0.2989).add_(green * 0.587).add_(blue * 0.114).floor_()


_CHANGES: dict[str, Callable[[Tensor, Tensor], Tensor]]
_CHANGES = {"brightness": _brightness, "contrast": _contrast, "saturation": _saturation, "hue": _hue}


def _uniform(generator: torch.Generator) -> float:
    return torch.rand((), generator=generator).item()
