"""The capacity control: a host alone, its generator widened until it has as much as host and memory together.

If the memory beats the host, is it the memory or merely the size? The recipe of host + memory with `capacity:
parameters` (or `flops`) trains the answer. Keypoints and motion stay as they are: the memory is in the generator.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from memcomp.adapters import Host, create_host
from memcomp.experiments.checkpoints.build import build_host, initialise
from memcomp.experiments.cost import amount
from memcomp.experiments.errors import UserError
from memcomp.experiments.recipe.sections import Recipe

SECTION, KEYS = "generator_params", ("block_expansion", "max_features")  # of `model`: the generator's widths
MOST = 8  # times the width


def widened(recipe: Recipe, match: str) -> Recipe:
    """Make the recipe of the host alone, just as wide that it has no less than host and memory have together.

    Args:
        recipe: of a host with a memory.
        match: "parameters": those that a frame uses; "flops": operations of a frame, at the recipe's size.

    Returns:
        the same recipe without memory, Eq. 4 and teacher, and `host.widened` = by what factor its width grew.

    Raises:
        UserError: no memory, or a host whose widths are not known here.
    """
    if recipe.memory is None:
        raise UserError("capacity: expected a recipe with a memory, whose capacity the host alone is to get")
    loss = dataclasses.replace(recipe.loss, consistency=0.0, teacher=0.0)
    narrow = dataclasses.replace(recipe, capacity=None, memory=None, loss=loss, freeze_host=False)
    start = _width(narrow)
    pair = (dataclasses.replace(recipe, capacity=None), narrow)
    both, alone = (amount(build_host(one).eval(), match, one.size, one.data.channels) for one in pair)
    base = _of_width(narrow, start, match)  # counted as the wider ones are: a device may save some operations
    best = _smallest(lambda width: _of_width(narrow, width, match) - base, both - alone, start)
    host = dataclasses.replace(narrow.host, model=_model(narrow, best), widened=best / start)
    return dataclasses.replace(narrow, host=host)


def resolved(recipe: Recipe) -> Recipe:
    """Return what to train: `recipe` itself, or the widened host that its `capacity` asks for."""
    return recipe if recipe.capacity is None else widened(recipe, recipe.capacity)


def _of_width(recipe: Recipe, width: int, match: str) -> float:
    """Count parameters or operations of the host at another width, without computing where the host allows it."""
    model, channels = _model(recipe, width), recipe.data.channels
    try:
        with torch.device("meta"):
            return amount(create_host(recipe.host.name, model).eval(), match, recipe.size, channels)
    except ValueError as error:  # such as a decoder of fixed widths
        raise UserError(f"capacity: the host cannot be widened: {error}") from None
    except RuntimeError:  # an operation that a tensor without values cannot do
        return amount(create_host(recipe.host.name, model).eval(), match, recipe.size, channels)


def _smallest(extra: Callable[[int], float], wanted: float, start: int) -> int:
    """Find the smallest width above `start` whose `extra`, which grows with it, is `wanted` or more."""
    low, high = start, start + 1
    while extra(high) < wanted:
        if high == MOST * start:
            raise UserError(f"capacity: a host {MOST} times as wide still has less than host and memory")
        low, high = high, min(2 * high, MOST * start)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if extra(middle) < wanted else (low, middle)
    return high


def _width(recipe: Recipe) -> int:
    section = recipe.host.model.get(SECTION)
    if not isinstance(section, Mapping) or not all(isinstance(section.get(key), int) for key in KEYS):
        raise UserError(
            f"capacity: host.model of {recipe.host.name!r} has no {SECTION} with {' and '.join(KEYS)} to widen"
        )
    return section["block_expansion"]


def _model(recipe: Recipe, width: int) -> dict[str, Any]:
    """Copy the host's `model` with the generator's width changed, and its upper limit in proportion."""
    model = copy.deepcopy(recipe.host.model)
    section = model[SECTION]
    section["max_features"] = round(section["max_features"] * width / section["block_expansion"])
    section["block_expansion"] = width
    return model


def initialise_widened(host: Host, recipe: Recipe) -> None:
    """Start a widened host, before training, from the trained host that `init` names, which is as wide as before.

    Raises:
        UserError: as `initialise`, or a kind of host that cannot be widened once it is trained.
    """
    model = _model(recipe, round(_width(recipe) / recipe.host.widened))
    trained = create_host(recipe.host.name, model)
    initialise(trained, str(recipe.init))
    transplant(trained, host, recipe.size, recipe.data.channels)


def transplant(trained: Host, wide: Host, size: int, channels: int = 3) -> None:
    """Let a widened host start as the trained one: the same pictures from more channels.

    Trained weights keep their places, new channels come after them, with their fresh weights, and are read by the old
    ones with weight 0: as with a memory at its identity start, training decides whether they count.

    Args:
        trained: the narrow host.
        wide: the same host, wider; changed in place.
        size: of the pictures for which the sameness is checked.
        channels: of these.

    Raises:
        UserError: the wide host is of another kind, or its pictures are not the same.
    """
    old, new = trained.state_dict(), wide.state_dict()
    if old.keys() != new.keys():
        raise UserError(f"capacity: {sorted(old.keys() ^ new.keys())[0]} is in one of the two hosts only")
    with torch.no_grad():
        for name, tensor in new.items():
            places = [_places(wide, name, dim, old[name], tensor) for dim in range(tensor.ndim)]
            _plant(tensor, old[name], places)
    device = next(wide.parameters()).device
    pictures = torch.rand(2, 1, channels, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.no_grad():
        modes = [host.training for host in (trained, wide)]
        before, after = (host.to(device).eval()(*pictures).prediction for host in (trained, wide))
        trained.train(modes[0])
        wide.train(modes[1])
    if (difference := (before - after).abs().max().item()) > 1e-4:
        raise UserError(
            f"capacity: the host {wide.name!r}, widened, cannot start as the trained one (pictures differ by up to "
            f"{difference:.2g}): expected init=null"
        )


def _places(host: Host, name: str, dim: int, old: Tensor, new: Tensor) -> Tensor:
    """Numbers of the new channels, along a dimension of a weight, in which the old ones are kept."""
    before, after = old.shape[dim], new.shape[dim]
    section, _, inner = name.partition(".")
    joined = getattr(host.get_submodule(section), "joined_dims", None) if before != after else None
    places = torch.arange(before)
    if joined is not None and dim in joined(inner):  # two features side by side
        places[before // 2 :] += (after - before) // 2
    return places


def _plant(new: Tensor, old: Tensor, places: list[Tensor]) -> None:
    """Put the old weight into the new one; the rest of its rows, what old channels read from new ones, is 0."""
    if not places:
        new.copy_(old)
        return
    rows = torch.zeros(len(old), *new.shape[1:], dtype=new.dtype)
    index = torch.meshgrid(torch.arange(len(old)), *places[1:], indexing="ij")
    rows[index] = old.cpu().to(new.dtype)
    new[places[0].to(new.device)] = rows.to(new.device)
