"""Checkpoints of the upstream projects: read without running their pickles, recognised, every entry accounted for."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from memcomp.adapters.base import Host
from memcomp.adapters.layout import Sections, bare_key
from memcomp.adapters.registry import create_host, host_class, host_classes
from memcomp.adapters.upstream.files import read_file


@dataclass(frozen=True)
class Checkpoint:
    """An upstream checkpoint, taken apart.

    Attributes:
        sections: upstream's section names → key → tensor, keys by `bare_key`.
        dropped: every other entry → what it is.
        epoch: the training epoch that it records, if it does.
    """

    sections: dict[str, dict[str, Tensor]]
    dropped: dict[str, str]
    epoch: int | None


@dataclass(frozen=True)
class Recognised:
    """Whose checkpoint it is.

    Attributes:
        host: a name that `create_host` knows.
        model: its `model`.
        assumed: dotted names of the parameters that leave no trace in the weights, as published or as given.
        overruled: of those that were given otherwise than the weights tell.
    """

    host: str
    model: dict[str, Any]
    assumed: tuple[str, ...]
    overruled: tuple[str, ...]


def read_checkpoint(*files: str | os.PathLike[str]) -> Checkpoint:
    """Read upstream's checkpoint, in one file or several (DaGAN keeps its depth networks apart), under any names.

    A section is a mapping with tensors; what has none, such as settings, is dropped, and so is an optimiser's state.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: as `memcomp.adapters.upstream.files.read_file`; an entry or a section that is no checkpoint's, a
            section that two files have, or a file without sections.
    """
    sections: dict[str, dict[str, Tensor]] = {}
    dropped: dict[str, str] = {}
    epoch: int | None = None
    for file in map(Path, files):
        entries = _entries(file)
        for name, entry in entries.items():
            if name.startswith("epoch") and isinstance(entry, int):
                epoch = entry
            if what := _no_weights(name, entry):
                dropped[name] = what
                continue
            if name in sections:
                raise ValueError(f"{file}: has a section {name!r}, and so has another of the files")
            sections[name] = _section(file, name, entry, dropped)
        if not entries.keys() & sections.keys():
            found = "; ".join(f"{name}, {dropped[name]}" for name in entries) or "nothing"
            raise ValueError(f"{file}: expected sections with weights, found {found}")
    return Checkpoint(sections, dropped, epoch)


def recognise(sections: Sections, host: str | None = None, model: Mapping[str, Any] | None = None) -> Recognised:
    """Tell whose sections these are, and with which parameters.

    Args:
        sections: of `read_checkpoint`.
        host: its name; None = recognised by the sections and their keys.
        model: what to take where the weights do not tell; None = what upstream published. Of a host that reads
            nothing off its weights it is taken as it is.

    Raises:
        ValueError: the sections of no host known here, or weights that do not tell what they must.
    """
    scores = {known: known.recognise(sections) for known in host_classes()}
    seen = max(scores, key=scores.__getitem__)  # of equals the first: ours
    named = seen if host is None else host_class(host)
    if host is None and not scores[seen]:
        known = ", ".join(known.name for known in scores if known.layouts)
        raise ValueError(f"not a checkpoint of {known}: it has {_outline(sections)}. Name the host, and its model")
    if named.layouts and named.recognise(sections) < scores[seen]:
        raise ValueError(
            f"expected a checkpoint of {host}, but it looks like {seen.name}'s: it has {_outline(sections)}"
        )
    name, base = named.name, copy.deepcopy(dict(named.published if model is None else model))
    try:
        read = named.read_model(sections, base)
    except (KeyError, IndexError) as error:
        looks = f"expected a checkpoint of {host}" if host else f"looks like a checkpoint of {name}"
        lacks = f"but it or its model lacks {error.args[0]}"
        raise ValueError(f"{looks}, {lacks}; it has {_outline(sections)}") from None
    merged = _merged(base, read) if read else base
    before, told = _leaves(base), _leaves(read)
    overruled = [key for key in before if key in told and before[key] != told[key]] if model is not None else []
    return Recognised(name, merged, tuple(sorted(_leaves(merged).keys() - told.keys())), tuple(sorted(overruled)))


def build(checkpoint: Checkpoint, recognised: Recognised) -> Host:
    """The host with the checkpoint's weights, in their dtype, in eval mode.

    Raises:
        ValueError: the weights do not fit, the keys being named, or a section is none of the host's.
    """
    try:
        host = create_host(recognised.host, recognised.model)
    except (KeyError, TypeError, RuntimeError) as error:  # what a host raises that does not check its model
        raise ValueError(f"the host {recognised.host!r} cannot be made of {recognised.model}: {error!r}") from error
    ours = host.sections()
    unknown = [name for name in checkpoint.sections if name not in ours]
    if unknown:
        raise ValueError(f"section {unknown[0]!r} is none of the host {host.name!r}; it has {', '.join(ours)}")
    dtypes = {value.dtype for state in checkpoint.sections.values() for value in state.values()}
    floating = {dtype for dtype in dtypes if dtype.is_floating_point}
    if len(floating) == 1:
        host.to(floating.pop())
    host.load_upstream(checkpoint.sections)
    return host.eval()


def _entries(file: Path) -> dict[str, Any]:
    """What the file holds, by section: of a network alone under its section's name, of a flat file by first names."""
    found = read_file(file)
    if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
        raise ValueError(f"{file}: expected sections by name, found {type(found).__name__}")
    keys = [key for key, value in found.items() if isinstance(value, Tensor)]
    if not keys or any(_no_weights(name, entry) == "" for name, entry in found.items()):
        return dict(found)
    apart = {section: pattern for host in host_classes() for section, pattern in host.section_files.items()}
    for section, pattern in apart.items():
        if all(pattern.fullmatch(bare_key(key)) for key in keys):
            return {section: found}
    known = {layout.section for host in host_classes() for layout in host.layouts} | apart.keys()
    grouped: dict[str, dict[str, Tensor]] = {}
    for key in keys:
        section, dot, name = bare_key(key).partition(".")
        if dot:
            grouped.setdefault(section, {})[name] = found[key]
    if not known & grouped.keys():
        raise ValueError(f"{file}: expected sections, found single weights such as {keys[0]!r}")
    return {name: entry for name, entry in found.items() if bare_key(name).partition(".")[0] not in grouped} | grouped


def _no_weights(name: str, entry: object) -> str:
    """What an entry is that is no section; nothing if it is one."""
    if name.startswith("epoch"):
        return f"of training, {entry}"
    if isinstance(entry, Tensor):
        return "a tensor of no section"
    if not isinstance(entry, Mapping):
        return f"of type {type(entry).__name__}"
    if name.startswith("optimizer") or entry.keys() >= {"state", "param_groups"}:
        return "state of an optimiser"
    return "" if any(isinstance(value, Tensor) for value in entry.values()) else "without a tensor of its own"


def _section(file: Path, name: str, entry: Mapping[Any, Any], dropped: dict[str, str]) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for key, value in entry.items():
        if isinstance(key, str) and isinstance(value, Tensor):
            if bare_key(key) in state:
                raise ValueError(f"{file}: {name} has {key} and the same key with or without 'module.' or '_orig_mod.'")
            state[bare_key(key)] = value
        elif note := next((host.not_weights[key] for host in host_classes() if key in host.not_weights), None):
            dropped[f"{name}.{key}"] = note
        else:
            raise ValueError(f"{file}: {name}.{key} is of type {type(value).__name__}, expected weights alone")
    return state


def _merged(published: Mapping[str, Any], read: Mapping[str, Any]) -> dict[str, Any]:
    """`read` over `published`; None takes an entry away."""
    merged = dict(published)
    for key, value in read.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = _merged(merged[key], value)
        else:
            merged[key] = value
    return {key: value for key, value in merged.items() if value is not None}


def _leaves(params: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in params.items():
        leaves |= _leaves(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return leaves


def _outline(sections: Sections) -> str:
    return (
        "; ".join(f"{name} with {next(iter(state), 'nothing')} …" for name, state in sections.items()) or "no section"
    )
