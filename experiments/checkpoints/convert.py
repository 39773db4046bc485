"""Upstream's checkpoints into pretrained folders of ours, and back.

Files are told by what is in them, not by their names. Pickles are read by torch's safe loading alone. A file that needs
more than tensors and plain values is refused; the error names what it asks for, and the command that writes its weights
anew in upstream's own environment.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from memcomp.adapters import Host
from memcomp.adapters.upstream.checkpoint import Checkpoint, Recognised, build, read_checkpoint, recognise
from memcomp.experiments.checkpoints.find import DEMO_HOST, is_upstream
from memcomp.experiments.checkpoints.trained import DEFAULT_SIZE, read_trained, takes_depth
from memcomp.experiments.errors import UserError
from memcomp.experiments.files import atomic_write, existing_file, sha256, writable_folder
from memcomp.experiments.recipe.load import load_recipe
from memcomp.handle import Handle

APART = {"depth_encoder": "encoder.pth", "depth_decoder": "depth.pth"}  # upstream keeps these sections in own files


@dataclass(frozen=True)
class _Source:
    """A host to convert, and what to say about it."""

    host: Host
    size: int
    source: dict[str, Any] | None
    training: dict[str, Any] | None
    lines: list[str]


def to_pretrained(
    files: Sequence[Path],
    output: Path,
    *,
    model: str | None = None,
    name: str | None = None,
    size: int | None = None,
    with_memory: bool = True,
) -> list[str]:
    """Write a pretrained folder.

    Args:
        files: of one upstream checkpoint, or one trained host of ours.
        output: folder to make.
        model: of upstream's: recipe, or YAML of upstream, with what the weights do not tell; None = as published.
        name: of upstream's: the host's; None = detected.
        size: height and width of its pictures; None = what is known.
        with_memory: False: write the host alone.

    Returns:
        what became of every part, a line each.

    Raises:
        UserError: a file that cannot be read, or is not what it is said to be; a size that the host refuses.
    """
    for file in files:
        if not file.is_dir() and str(file) != DEMO_HOST:
            existing_file(file, "checkpoint")
    if all(map(is_upstream, files)):
        made = _theirs(files, model, name)
    elif len(files) != 1:
        raise UserError(f"{files[-1]}: expected files of upstream, or one run of ours")
    elif model or name:
        raise UserError("--model, --host: expected upstream's checkpoint with them")
    else:
        made = _ours(files[0])
    if not with_memory:
        _drop_memory(made.host)
    if size:
        _check_size(made.host, size)
    size = size or made.size
    writable_folder(output.parent)
    try:
        made.host.save_pretrained(output, size=size, source=made.source, training=made.training)
    except ValueError as error:
        raise UserError(f"{output}: {error}") from None
    return [
        *made.lines,
        f"memory       {_memory(made.host)}",
        f"written      {output}: model.safetensors, config.json (pictures of {size}×{size})",
        f"next         memcomp animate --checkpoint {output} --source face.png --driving video.mp4 --output moved.mp4",
    ]


def to_upstream(path: Path, output: Path, *, with_memory: bool = True) -> list[str]:
    """Write a file for upstream's own code, and beside it the files of sections that upstream keeps apart.

    Args:
        path: trained host of ours.
        output: file to write.
        with_memory: False: write the host alone.

    Returns:
        what became of every part, a line each.

    Raises:
        UserError: `path` cannot be read, or has a memory of which upstream's code knows nothing; a file is there.
    """
    made = _ours(path)
    host = made.host
    if not with_memory:
        _drop_memory(host)
    sections = host.upstream_sections()
    if _attached(host) and not any(key.startswith("mbUnit.") for key in sections[host.generator_section]):
        raise UserError(
            f"{path}: has a memory ({_memory(host)}), of which upstream's code for {host.name} knows nothing; "
            "expected --without-memory to write the host alone"
        )
    # copies: torch.save would write the whole of a tensor of which one is a part
    states = {name: {key: value.clone() for key, value in state.items()} for name, state in sections.items()}
    apart = {output.parent / APART[name]: states.pop(name) for name in list(states) if name in APART}
    for file in apart:
        if file.exists():
            raise UserError(f"{file}: is to hold the depth network; expected a new name, it exists already")
    epoch = (made.source or {}).get("epoch") or 0  # upstream's code wants one to go on from
    for file, content in {output: states | {host.epoch_entry: epoch}, **apart}.items():
        # through a handle: torch makes a path's stem a name inside the file, and refuses some
        with atomic_write(file) as temporary, temporary.open("wb") as opened:
            torch.save(content, opened)
    lines = list(made.lines)
    for name, state in sections.items():
        lines.append(f"section      {name}: {len(state)} keys{', in ' + APART[name] if name in APART else ''}")
    lines.append(f"memory       {_memory(host)}")
    if made.size != DEFAULT_SIZE:
        lines.append(
            f"size         {made.size}×{made.size} has no place in it: to convert it back say --size {made.size}"
        )
    return [*lines, f"written      {', '.join(map(str, (output, *apart)))}, for upstream's own code"]


def _ours(path: Path) -> _Source:
    trained = read_trained(path)
    host, content = trained.build(), trained.content
    return _Source(host, trained.size, content.source, content.training, [f"host         {host.name}"])


def _theirs(files: Sequence[Path], model: str | None, name: str | None) -> _Source:
    known, given, size = (None, None, None) if model is None else _model(model)
    try:
        checkpoint = read_checkpoint(*files)
    except (ValueError, FileNotFoundError) as error:
        raise UserError(str(error)) from None
    try:
        recognised = recognise(checkpoint.sections, name or known, given)
        host = build(checkpoint, recognised)
    except ValueError as error:
        raise UserError(f"{', '.join(map(str, files))}: {error}") from None
    source = {"files": {file.name: sha256(file) for file in files}, "epoch": checkpoint.epoch}
    return _Source(host, size or DEFAULT_SIZE, source, None, _report(host, checkpoint, recognised, model))


def _model(file: str) -> tuple[str | None, dict[str, Any], int | None]:
    """The `model` in a recipe, with its host and the size of its pictures, or in upstream's YAML."""
    if Path(file).is_file():
        try:
            raw = yaml.safe_load(Path(file).read_bytes())
        except yaml.YAMLError as error:
            raise UserError(f"{file}: expected YAML ({str(error).splitlines()[0]})") from None
        if isinstance(raw, dict) and "model_params" in raw:
            if not isinstance(raw["model_params"], dict):
                raise UserError(f"{file}: model_params: expected a mapping, got {raw['model_params']!r}")
            return None, raw["model_params"], None
    recipe = load_recipe(file)
    return recipe.host.name, recipe.host.model, recipe.size


def _check_size(host: Host, size: int) -> None:
    """Networks that halve a picture several times refuse some sizes, or give back another."""
    blank = torch.zeros(1, 3 + takes_depth(host.model), size, size)
    with torch.no_grad():
        try:
            found = tuple(copy.deepcopy(host).float()(blank, blank).prediction.shape[2:])
        except (ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"--size {size}: the host {host.name!r} takes no pictures of this size ({reason})"
            ) from None
    if found != (size, size):
        made = "×".join(map(str, found))
        raise UserError(f"--size {size}: the host {host.name!r} makes {made} of it; expected a size that it keeps")


def _drop_memory(host: Host) -> None:
    handle = _attached(host)
    if handle is not None:
        handle.remove()


def _attached(host: Host) -> Any:
    return Handle.of(host.sections()[host.generator_section])


def _memory(host: Host) -> str:
    handle = _attached(host)
    if handle is None:
        return "none"
    variant = "no memory" if host.memory is None else f"variant {host.memory.config.variant}"
    return f"{variant}, mode {handle.mode}, scales {', '.join(map(str, handle.scales))}"


def _report(host: Host, checkpoint: Checkpoint, recognised: Recognised, file: str | None) -> list[str]:
    """What became of every entry of upstream's checkpoint."""
    lines = [f"host         {host.name}"]
    for name, state in checkpoint.sections.items():
        count = sum(value.numel() for value in state.values()) / 1e6
        lines.append(f"loaded       {name}: {len(state)} keys, {count:.2f} M numbers")
    lines += [f"dropped      {name}: {what}" for name, what in checkpoint.dropped.items()]
    origin = f"as {file} says" if file else "as published; no weight tells it"
    lines += [f"parameter    {name}: {origin}" for name in recognised.assumed]
    lines += [f"parameter    {name}: read off the weights, not as {file} says" for name in recognised.overruled]
    return lines
