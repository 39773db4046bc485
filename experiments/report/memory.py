"""A look into the memory for a page: M_o, M_s of several people, and the attention of a grid of places to pick from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from memcomp.adapters import Host
from memcomp.experiments.evaluation.scores import Pair
from memcomp.experiments.inspection.attention_figures import EVEN
from memcomp.experiments.inspection.faces import Seen, look, most_hidden, usual_places
from memcomp.experiments.inspection.inspect import numbers, scale_numbers
from memcomp.experiments.inspection.memory_figures import colour_limit, mosaic, varying_channels
from memcomp.experiments.inspection.observe import ScaleView, observe
from memcomp.experiments.recipe.sections import Recipe
from memcomp.experiments.report.media import save_heat, save_picture
from memcomp.experiments.video import to_frame

IDENTITIES, CHANNELS, COLUMNS = 5, 36, 6
DRAWN = 8  # channels of M_s
GAP = 1  # values between two channels of a picture
GRID = 16  # places to pick from, in a line and in a column


def memory_shown(
    folder: Path, host: Host, recipe: Recipe, pairs: Mapping[str, Sequence[Pair]]
) -> dict[str, Any] | None:
    """Write the pictures; returns what they are and the numbers that belong to them.

    Args:
        folder: to write into.
        host: in eval mode, with a memory.
        recipe: of it; trained on heads, it looks at heads.
        pairs: kind → pairs: of clips, the people to look at.
    """
    assert host.memory is not None
    if recipe.data.kind == "heads":
        seen = look(host, recipe.size, identities=IDENTITIES, seed=recipe.data.seed)
    else:
        seen = from_pairs(host, recipe, pairs)
    value = host.memory.memory.value.detach().cpu().double()
    channels, strength = varying_channels(value, CHANNELS), value.square().mean(0).sqrt().numpy()
    limit = colour_limit(value)
    tiles = mosaic(value[channels].numpy(), COLUMNS, GAP)
    most = float(strength.max())
    return {
        "numbers": numbers(host.memory),
        "strength": save_heat(folder / "strength.png", strength, "viridis", 0, most),
        "strongest": most,
        "channels": save_heat(folder / "channels.png", tiles, "RdBu_r", -limit, limit),
        "drawn": channels,
        "limit": limit,
        "sources": [
            save_picture(folder / f"person{i}.png", to_frame(picture)) for i, picture in enumerate(seen.pictures)
        ],
        "driving": save_picture(folder / "pose.png", to_frame(seen.driving)),
        "output": save_picture(folder / "output.png", to_frame(seen.output.prediction[0])),
        "grid": GRID,
        "places": [vars(place) for place in seen.places],
        "scales": [scale_shown(folder, seen, number) for number in range(len(seen.views))],
    }


def scale_shown(folder: Path, seen: Seen, number: int) -> dict[str, Any]:
    """One scale: M_s of each person, and where each place of the grid looks for the first."""
    view = seen.views[number]
    entry, entropy, change = scale_numbers(seen, number)
    memories = view.memory.detach().cpu().double()  # without identity conditioning it is the parameter itself
    channels = varying_channels(memories.mean(0), DRAWN)
    shown = memories[:, channels]
    apart = shown - shown.mean(0)
    entry["channels"] = channels
    for name, values in (("memories", shown), ("apart", apart)):
        limit = colour_limit(values)
        entry[f"{name}_limit"] = limit
        drawn = [mosaic(one.numpy(), len(channels), GAP) for one in values]
        files = [folder / f"{name}{number}_{i}.png" for i in range(len(drawn))]
        entry[name] = [save_heat(*one, "RdBu_r", -limit, limit) for one in zip(files, drawn, strict=True)]
    entry["change"] = save_heat(
        folder / f"change{number}.png", change.cpu().numpy(), "viridis", 0, float(change.max()) or 1.0
    )
    entry["largest_change"] = float(change.max())
    entry["entropy_map"] = save_heat(
        folder / f"entropy{number}.png", entropy.cpu().numpy(), "viridis", 0, entry["largest_entropy"]
    )
    return entry | attention_shown(folder / f"attention{number}.png", view)


def attention_shown(path: Path, view: ScaleView) -> dict[str, Any]:
    """Write a mosaic of GRID × GRID maps of the memory, each on a scale of its own; returns it with each one's end."""
    centres = [(i + 0.5) / GRID for i in range(GRID)]
    maps = torch.stack([view.attention_at(x, y) for y in centres for x in centres]).cpu().double()
    ends = maps.flatten(1).amax(1).clamp(min=EVEN / maps[0].numel())
    entropies = torch.special.entr(maps).sum((1, 2))
    tiles = mosaic((maps / ends[:, None, None]).numpy(), GRID, 0)
    return {
        "memory_size": list(maps.shape[1:]),
        "attention": save_heat(path, tiles, "magma", 0, 1),
        "ends": np.round(ends.numpy(), 6).tolist(),
        "entropies": np.round(entropies.numpy(), 2).tolist(),
    }


def from_pairs(host: Host, recipe: Recipe, pairs: Mapping[str, Sequence[Pair]]) -> Seen:
    """The first few people of the pairs, in the first pair's driving pose."""
    chosen: dict[Any, Pair] = {}
    for kind in pairs.values():
        for pair in kind:
            chosen.setdefault(getattr(pair, "source_at", (pair.name,))[0], pair)
            if len(chosen) == IDENTITIES:
                break
    people = list(chosen.values())[:IDENTITIES]
    channels = recipe.data.channels
    faces: Tensor = torch.stack([pair.source[:channels] for pair in people])
    driving = people[0].driving[None, :channels]
    device = next(host.parameters()).device
    output, views = observe(host, faces.to(device), driving.expand_as(faces).to(device))
    places = usual_places()
    if output.occlusion_map is not None:
        places.append(most_hidden(output.occlusion_map[0, 0]))
    return Seen(faces[:, :3], driving[0, :3], output, views, [], None, places)
