"""The format of a pretrained folder: weights that describe themselves, and a readable copy of the description.

`model.safetensors` holds the host's state dict and, in its metadata, the description with a digest of both: it is
complete alone, and it is replaced at once. `config.json` is written after it: the same description, and the sha256 of
the whole file. Where a writer was stopped between the two, the sha256 is another file's and the weights' own
description counts; so the folder always holds the old host or the new one. Weights without a description (version
0.1.0 wrote such) are only read with their config.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from memcomp.checkpoint import digest, refuse_non_finite, write_whole
from memcomp.formats import weights_format

FORMAT = "memcomp-pretrained-1"
WEIGHTS, CONFIG = "model.safetensors", "config.json"
NONE = type(None)
KINDS: dict[str, tuple[type, ...]] = {
    "host": (str,),
    "model": (dict,),
    "memory": (dict, NONE),
    "size": (int, NONE),
    "source": (dict, NONE),
    "training": (dict, NONE),
}


@dataclass(frozen=True)
class Pretrained:
    """What a pretrained folder holds.

    Attributes:
        host, model: what `create_host` takes.
        memory: None, or what `attach` takes: "config" (fields of `CompensationConfig`; None of a control without
            memory), "mode", "scales", "keypoints" and, unless it is 2, "keypoint_dims".
        size: height and width of the pictures that it was trained with, if known.
        source: where the weights came from, if known; of upstream's, "files" (name → sha256) and "epoch" (or None).
        tensors: the host's state dict, in the file's dtypes.
        training: how it was trained, if known: anything JSON can hold, by name.
    """

    host: str
    model: dict[str, Any]
    memory: dict[str, Any] | None
    size: int | None
    source: dict[str, Any] | None
    tensors: Mapping[str, Tensor]
    training: dict[str, Any] | None = None


def write_pretrained(folder: str | os.PathLike[str], content: Pretrained) -> None:
    """Write a pretrained folder. It is made if need be; files of the same names are replaced, each at once.

    Raises:
        OSError: the folder cannot be made or written.
        ValueError: a weight is not finite, or the description is nothing that JSON can hold. Nothing is written then.
    """
    from safetensors.torch import save

    tensors = {
        key: value.detach().cpu().clone(memory_format=torch.contiguous_format) for key, value in content.tensors.items()
    }
    refuse_non_finite(tensors, f"the host {content.host!r}")
    about = {key: getattr(content, key) for key in KINDS if key != "training" or content.training is not None}
    try:
        about = json.loads(json.dumps(about, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"the model of the host {content.host!r} cannot be written as JSON: {error}") from None
    metadata = {"format": FORMAT, "about": json.dumps(about), "sha256": digest(about, tensors)}
    weights = _with_metadata(save(tensors), metadata)
    config = {"format": FORMAT, "sha256": hashlib.sha256(weights).hexdigest(), **about}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / WEIGHTS, weights)  # first: see the module's text
    write_whole(folder / CONFIG, (json.dumps(config, indent=1) + "\n").encode())


def read_pretrained(folder: str | os.PathLike[str]) -> Pretrained:
    """Read a pretrained folder and check it.

    Raises:
        FileNotFoundError: one of the two files is missing, and the other is not complete alone.
        ValueError: a damaged file, a config of another format or with a wrong key, weights that are neither those of
            the config (their sha256 differs) nor described by themselves, or weights that are not finite.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    folder = Path(folder)
    file, config = folder / WEIGHTS, folder / CONFIG
    absent = f"{folder}: expected a pretrained folder with {CONFIG} and {WEIGHTS}; no "
    if not file.is_file():
        raise FileNotFoundError(absent + WEIGHTS)
    weights_format(file)  # or says what it is, such as a pointer of Git LFS
    about = _config(config) if config.is_file() else None
    weights = file.read_bytes()
    found = hashlib.sha256(weights).hexdigest()
    says = "nothing" if about is None else about["sha256"]
    if about is None or says != found:  # a writer was stopped in between, or this is damaged
        own = _own_description(weights)
        if own is None and about is None:
            try:
                load(weights)
            except SafetensorError as error:
                raise ValueError(f"{file} is damaged, and {CONFIG} is not there: {error}") from error
            raise FileNotFoundError(absent + CONFIG)
        if own is None:
            raise ValueError(f"{file}: sha256 {found[:12]}…, {CONFIG} says {says[:12]}…: damaged, or another file")
        about = _checked(own, file)
    try:
        tensors = load(weights)
    except SafetensorError as error:
        raise ValueError(f"{file} is no safetensors file: {error}") from error
    refuse_non_finite(tensors, file)
    return Pretrained(tensors=tensors, **{key: about.get(key) for key in KINDS})  # type: ignore[arg-type]


def _with_metadata(weights: bytes, metadata: dict[str, str]) -> bytes:
    """A safetensors file with metadata, the same bytes every time: the library writes them in an order by chance."""
    start = 8 + int.from_bytes(weights[:8], "little")
    header = json.dumps({"__metadata__": metadata, **json.loads(weights[8:start])}).encode()
    header += b" " * (-len(header) % 8)  # the tensors stay aligned
    return len(header).to_bytes(8, "little") + header + weights[start:]


def _own_description(weights: bytes) -> dict[str, Any] | None:
    """What the metadata of a weights' file describes; None if nothing, or if the file is not sound."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(weights)
        metadata = json.loads(weights[8 : 8 + int.from_bytes(weights[:8], "little")]).get("__metadata__", {})
        about = json.loads(metadata["about"])
    except (SafetensorError, KeyError, ValueError):
        return None
    return about if metadata.get("sha256") == digest(about, tensors) else None


def _config(file: Path) -> dict[str, Any]:
    try:
        about = json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file} is no JSON: {error}") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        found = about.get("format") if isinstance(about, dict) else None
        raise ValueError(f"{file}: expected format {FORMAT!r}, found {found!r}")
    del about["format"]
    return _checked(about, file, sha256=(str,))


def _checked(about: dict[str, Any], file: Path, **further: tuple[type, ...]) -> dict[str, Any]:
    """A description with all its keys, each of its kind.

    Raises:
        ValueError: naming the first that is not.
    """
    kinds = KINDS | further
    for key, kind in kinds.items():
        if not isinstance(about.get(key), kind) or (key not in about and key != "training"):
            raise ValueError(f"{file}: {key!r} is {about.get(key, 'missing')!r}")
    if about["size"] is not None and (about["size"] is True or about["size"] < 1):
        raise ValueError(f"{file}: 'size' must be 1 or more, not {about['size']}")
    if unknown := sorted(about.keys() - kinds.keys()):
        raise ValueError(f"{file}: unknown key {unknown[0]!r}; known: {', '.join(kinds)}")
    memory = about["memory"]
    if memory is not None and {*memory, "keypoint_dims"} != {"config", "mode", "scales", "keypoints", "keypoint_dims"}:
        raise ValueError(f"{file}: 'memory' must have config, mode, scales and keypoints, not {memory!r}")
    scales = [] if memory is None else memory["scales"]
    if not isinstance(scales, list) or not all(type(index) is int for index in scales):
        raise ValueError(f"{file}: the memory's 'scales' must be indices of taps, not {scales!r}")
    return about
