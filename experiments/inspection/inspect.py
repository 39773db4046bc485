"""What a memory holds and does, as pictures and numbers: Fig. 1(e), 6, 7 and 8 of the paper, and further.

Without pictures of one's own, procedural heads of the test split are drawn: a frontal source and a turned head with an
open mouth, so that it is known which pixels the source does not show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from memcomp import MemoryCompensation
from memcomp.adapters import Host
from memcomp.checkpoint import from_file
from memcomp.experiments.checkpoints.find import metadata
from memcomp.experiments.checkpoints.trained import read_trained
from memcomp.experiments.errors import UserError
from memcomp.experiments.files import writable_folder
from memcomp.experiments.inspection.attention_figures import attention_picture, entropy_picture
from memcomp.experiments.inspection.faces import Seen, look
from memcomp.experiments.inspection.memory_figures import (
    gates_picture,
    identities_picture,
    memory_picture,
    random_channels,
    two_memories_picture,
    varying_channels,
)
from memcomp.experiments.inspection.observe import (
    distinct_patterns,
    gates,
    roughness,
    skip_weights,
    spread,
    uniform_entropy,
)
from memcomp.experiments.output.tables import markdown, write_json
from memcomp.experiments.processes import resolve_device
from memcomp.experiments.video import to_frame

CHANNELS = 10  # of M_s that are drawn


def inspect_memory(
    checkpoint: str,
    output: Path,
    sources: Sequence[Path] = (),
    driving: Path | None = None,
    *,
    identities: int = 6,
    pixels: Sequence[tuple[int, int]] = (),
    compare: str | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Draw what a memory holds and, if its host is there, what it does with faces.

    Args:
        checkpoint: a trained host with a memory (see `read_trained`), or a memory alone.
        output: folder to write the pictures and inspect.json into.
        sources, driving, identities, pixels: faces and places to look at: see `look`.
        compare: a second memory, drawn beside the first.
        device: auto, cpu, cuda or mps.

    Returns:
        the content of inspect.json.

    Raises:
        UserError: a file that cannot be read or written, or a host without memory.
    """
    memory, host, size = load_memory(checkpoint, device)
    other = load_memory(compare, device)[0] if compare else None
    seen = None if host is None else look(host, size, sources, driving, identities=identities, pixels=pixels)
    folder = writable_folder(output)

    value = memory.memory.value.detach().cpu()
    memory_picture(folder / "memory.png", value, f"The memory $M_o$ of {short(checkpoint)}")
    content: dict[str, Any] = {"format": "memcomp-inspection-1", "checkpoint": checkpoint}
    content |= {"config": memory.config.to_dict(), "memory": numbers(memory)}
    if compare and other is not None:
        second = other.memory.value.detach().cpu()
        two_memories_picture(folder / "compare.png", {short(checkpoint): value, short(compare): second})
        content["compare"] = {"checkpoint": compare, "memory": numbers(other)}
    if found := gates(memory):
        gates_picture(folder / "gates.png", found)
        content["gates"] = [size_of(scale, gate) for scale, gate in found.items()]
    if skips := skip_weights(memory):
        content["skips"] = [size_of(scale, weight) for scale, weight in skips.items()]
    if seen is not None:
        content |= draw(folder, seen)
    write_json(folder / "inspect.json", content)
    return content


def load_memory(path: str, device: str) -> tuple[MemoryCompensation, Host | None, int]:
    """Load the memory of a trained host, with the host and the size of its pictures; no host, size 0: memory alone.

    Raises:
        UserError: no such file, or a host without memory.
    """
    if metadata(Path(path)).get("format", "").startswith("memcomp-compensation"):  # of `memcomp.save`
        try:
            return from_file(path).to(resolve_device(device)).eval(), None, 0
        except ValueError as error:
            raise UserError(str(error)) from None
    trained = read_trained(path)
    host = trained.host(resolve_device(device))
    if host.memory is None:
        advice = "; `memcomp demo` trains one: runs/demo/host_memory" if path == "demo" else ""
        raise UserError(f"{path}: expected a checkpoint with a memory, its host has none{advice}")
    return host.memory, host, trained.size


def size_of(scale: int, values: Tensor) -> dict[str, Any]:
    """Root mean square and largest absolute value of a scale's weights."""
    values = values.cpu().double()
    return {"scale": scale, "rms": values.square().mean().sqrt().item(), "largest": values.abs().max().item()}


def short(path: str) -> str:
    """The last two names of a path, for titles."""
    return "/".join(Path(path).parts[-2:])


def numbers(memory: MemoryCompensation) -> dict[str, Any]:
    """Numbers that say what M_o is like."""
    value = memory.memory.value.detach().cpu()
    return {
        "shape": list(value.shape),
        "rms": value.double().square().mean().sqrt().item(),
        "rms_at_the_start": memory.memory.deviation,
        "roughness": roughness(value),
        "distinct_patterns": distinct_patterns(value),
        "varying_channels": varying_channels(value, 36),
        "random_channels": random_channels(value, 36),
    }


def draw(folder: Path, seen: Seen) -> dict[str, Any]:
    """Draw what the memory does with these faces; returns the numbers in the pictures."""
    sources = [to_frame(picture) for picture in seen.pictures]
    pictures = {"source": sources[0], "driving": to_frame(seen.driving), "output": to_frame(seen.output.prediction[0])}
    scales, rows = [], []
    for number, view in enumerate(seen.views):
        entry, entropy, change = scale_numbers(seen, number)
        scales.append(entry)
        rows.append(
            {
                f"entropy of attention, nats\nmean {entropy.mean():.2f} of at most {entry['largest_entropy']:.2f}": (
                    entropy,
                    entry["largest_entropy"],
                ),
                f"relative change by the memory\nmean {change.mean():.3g}": (change, float(change.max()) or 1.0),
            }
        )
        if len(sources) > 1:
            title = f"$M_s$ at scale {view.scale}, difference relative to its strength: between sources "
            title += f"{entry['spread_between_sources']:.2g}"
            if seen.poses:
                title += f", between poses of the first {entry['spread_between_poses']:.2g}"
            channels = varying_channels(view.memory.mean(0), CHANNELS)
            identities_picture(folder / f"identities_scale{view.scale}.png", sources, view.memory, channels, title)
    entropy_picture(folder / "entropy.png", pictures["output"], rows)
    maps = [[view.attention_at(place.x, place.y) for view in seen.views] for place in seen.places]
    attention_picture(folder / "attention.png", pictures, seen.places, maps)
    return {"sources": len(sources), "scales": scales, "places": [vars(place) for place in seen.places]}


def scale_numbers(seen: Seen, number: int) -> tuple[dict[str, Any], Tensor, Tensor]:
    """One scale in numbers; and, over the first output, the attention's entropy and the relative change (H, W)."""
    view = seen.views[number]
    attention = view.attention()
    used = attention.usage.cpu().double().mean(0)
    change = view.change[0] / view.part[0].square().mean().sqrt().clamp(min=1e-12)
    entry: dict[str, Any] = {
        "scale": view.scale,
        "places": list(view.part.shape[2:]),
        "largest_entropy": uniform_entropy(view.memory),
        "entropy": attention.entropy.cpu().double().mean().item(),
        "entropy_of_usage": torch.special.entr(used).sum().item(),
        "relative_change": change.cpu().double().mean().item(),
    }
    if seen.hidden is not None:
        entry |= by_visibility({"entropy": attention.entropy[0], "relative_change": change}, seen.hidden)
    if len(view.memory) > 1:
        entry["spread_between_sources"] = spread(view.memory)
    if seen.poses:
        entry["spread_between_poses"] = spread(torch.cat([pose[number].memory for pose in seen.poses]))
    return entry, attention.entropy[0], change


def by_visibility(maps: Mapping[str, Tensor], hidden: Tensor) -> dict[str, float]:
    """Means over the places that the source hides, and over the others; a map's place counts as hidden by its share."""
    found = {}
    for name, values in maps.items():
        share = F.interpolate(hidden[None, None].cpu().double(), values.shape, mode="area")[0, 0]
        for kind, weight in (("hidden", share), ("shown", 1 - share)):
            if float(weight.sum()) > 0:
                found[f"{name}_{kind}"] = ((values.cpu().double() * weight).sum() / weight.sum()).item()
    return found


def summary(content: Mapping[str, Any]) -> str:
    """The main numbers as text."""
    memory = content["memory"]
    lines = [
        f"M_o {'×'.join(map(str, memory['shape']))}: rms {memory['rms']:.4g} ({memory['rms_at_the_start']:.4g} at the "
        f"start), roughness {memory['roughness']:.2f}, distinct patterns {memory['distinct_patterns']:.1f}"
    ]
    titles = {
        "entropy": "entropy of attention",
        "largest_entropy": "at most",
        "entropy_of_usage": "of its mean",
        "relative_change": "relative change",
        "relative_change_hidden": "… where hidden",
        "spread_between_sources": "M_s: sources",
        "spread_between_poses": "M_s: poses",
    }
    starts = {gate["scale"]: f"{gate['rms']:.3g}" for gate in content.get("gates", ())}
    starts |= {skip["scale"]: f"skip {skip['rms']:.3g}" for skip in content.get("skips", ())}
    rows = [
        [
            str(entry["scale"]),
            *(f"{entry[key]:.3g}" if key in entry else "" for key in titles),
            starts.get(entry["scale"], "none"),
        ]
        for entry in content.get("scales", ())
    ]
    return "\n\n".join(lines + ([markdown(["scale", *titles.values(), "gate, rms"], rows)] if rows else []))
