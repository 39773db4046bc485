"""A host, memory included, as a folder: its weights in `model.safetensors`, all that they need in `config.json`."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from memcomp.adapters.attachment.attach import attach
from memcomp.adapters.base import Host
from memcomp.adapters.registry import create_host
from memcomp.checkpoint import fill, refuse_non_finite, take_dtypes, write_whole
from memcomp.compensation import CompensationConfig, MemoryCompensation
from memcomp.handle import Handle

FORMAT = "memcomp-pretrained-1"
WEIGHTS, CONFIG = "model.safetensors", "config.json"
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@dataclass(frozen=True)
class Pretrained:
    """A pretrained folder, read.

    Attributes:
        host, model: what `create_host` takes.
        memory: None, or what `attach` takes: "config" (fields of `CompensationConfig`; None of a control without
            memory), "mode", "scales", "keypoints".
        size: height and width of the pictures that it was trained with, if known.
        source: where the weights came from, if known; of upstream's, "files" (name → sha256) and "epoch" (or None).
        tensors: the host's state dict, in the file's dtypes.
    """

    host: str
    model: dict[str, Any]
    memory: dict[str, Any] | None
    size: int | None
    source: dict[str, Any] | None
    tensors: dict[str, Tensor]


def save_pretrained(
    host: Host,
    folder: str | os.PathLike[str],
    *,
    size: int | None = None,
    source: Mapping[str, Any] | None = None,
) -> None:
    """Write a host, with its memory if one is attached, as a folder that `from_pretrained` reads.

    The folder is made if need be; files of the same names are replaced, each at once. Weights keep their dtype.

    Args:
        host: to write.
        folder: to write into.
        size: height and width of the pictures that it was trained with.
        source: where the weights came from; anything JSON can hold.

    Raises:
        OSError: the folder cannot be made or written.
        ValueError: a weight is not finite, the model is nothing that JSON can hold, or the memory was not put in place
            by `attach`. Nothing is written then.
    """
    from safetensors.torch import save

    tensors = {
        key: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, value in host.state_dict().items()
    }
    refuse_non_finite(tensors, f"the host {host.name!r}")
    weights = save(tensors, {"format": FORMAT})
    about = {
        "format": FORMAT,
        "host": host.name,
        "model": host.model,
        "memory": _memory(host),
        "size": size,
        "sha256": hashlib.sha256(weights).hexdigest(),
        "source": None if source is None else dict(source),
    }
    try:
        text = json.dumps(about, indent=1, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ValueError(f"the model of the host {host.name!r} cannot be written as JSON: {error}") from None
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / WEIGHTS, weights)
    write_whole(folder / CONFIG, text.encode())


def from_pretrained(folder_or_hub_id: str | os.PathLike[str], *, revision: str | None = None) -> Host:
    """The host of a pretrained folder, its memory attached if it has one, in the file's dtype, in eval mode.

    Args:
        folder_or_hub_id: a folder that `save_pretrained` wrote or, if there is none of this name, the ``owner/name``
            of a repository on the Hugging Face hub with the same two files (needs the extra ``hub``).
        revision: of the repository: branch, tag or commit.

    Raises:
        FileNotFoundError: no such folder, and nothing to be had from the hub.
        ModuleNotFoundError: a hub id without the package ``huggingface_hub``.
        ValueError: as `read_pretrained`; or the weights do not fit the host that the config describes.
    """
    folder = Path(folder_or_hub_id)
    if not folder.is_dir():
        folder = _from_hub(os.fspath(folder_or_hub_id), revision)
    return build_pretrained(read_pretrained(folder), folder)


def build_pretrained(read: Pretrained, folder: Path) -> Host:
    """The host that `read_pretrained` found in `folder`; as `from_pretrained`.

    Raises:
        ValueError: the weights do not fit the host that the config describes, or there is no such host.
    """
    try:
        host = create_host(read.host, read.model)
        if read.memory is not None:
            memory = dict(read.memory)
            config = memory.pop("config")
            attach(host, None if config is None else CompensationConfig.from_dict(config), **memory)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{folder / CONFIG} describes no host that can be made: {error}") from error
    take_dtypes(host, read.tensors)
    fill(host, read.tensors, folder / WEIGHTS)
    return host.eval()


def read_pretrained(folder: str | os.PathLike[str]) -> Pretrained:
    """The contents of a pretrained folder, checked.

    Raises:
        FileNotFoundError: one of the two files is missing.
        ValueError: a damaged file, a config of another format or with a wrong key, weights that are not those of the
            config (their sha256 differs) or not finite.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    folder = Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder}: expected a pretrained folder with {CONFIG} and {WEIGHTS}; no {name}")
    about = _config(folder / CONFIG)
    weights = (folder / WEIGHTS).read_bytes()
    found = hashlib.sha256(weights).hexdigest()
    if found != about["sha256"]:
        raise ValueError(
            f"{folder / WEIGHTS}: sha256 {found[:12]}…, {CONFIG} says {about['sha256'][:12]}…: damaged, or another file"
        )
    try:
        tensors = load(weights)
    except SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS} is no safetensors file: {error}") from error
    refuse_non_finite(tensors, folder / WEIGHTS)
    return Pretrained(tensors=tensors, **{key: about[key] for key in ("host", "model", "memory", "size", "source")})


def _config(file: Path) -> dict[str, Any]:
    kinds = {"host": str, "model": dict, "memory": (dict, type(None)), "size": (int, type(None)), "sha256": str}
    kinds["source"] = (dict, type(None))
    try:
        about = json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file} is no JSON: {error}") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        found = about.get("format") if isinstance(about, dict) else None
        raise ValueError(f"{file}: expected format {FORMAT!r}, found {found!r}")
    for key, kind in kinds.items():
        if key not in about or not isinstance(about[key], kind):  # type: ignore[arg-type]
            raise ValueError(f"{file}: {key!r} is {about.get(key, 'missing')!r}")
    if about["size"] is not None and about["size"] < 1:
        raise ValueError(f"{file}: 'size' must be 1 or more, not {about['size']}")
    if unknown := sorted(about.keys() - kinds.keys() - {"format"}):
        raise ValueError(f"{file}: unknown key {unknown[0]!r}; known: {', '.join(kinds)}")
    if about["memory"] is not None and set(about["memory"]) != {"config", "mode", "scales", "keypoints"}:
        raise ValueError(f"{file}: 'memory' must have config, mode, scales and keypoints, not {about['memory']!r}")
    if about["memory"] is not None and not _are_indices(about["memory"]["scales"]):
        raise ValueError(f"{file}: the memory's 'scales' must be indices of taps, not {about['memory']['scales']!r}")
    return about


def _are_indices(value: Any) -> bool:
    return isinstance(value, list) and all(type(index) is int for index in value)


def _memory(host: Host) -> dict[str, Any] | None:
    """How to attach a memory like the host's."""
    handle = Handle.of(host.sections()[host.generator_section])
    if handle is None:
        return None
    if handle.mode == "inplace":
        taps = host.taps()[0]
        if handle.taps != tuple(taps[scale] for scale in handle.scales):
            raise ValueError("the memory's taps are not the host's: save it alone, by memcomp.save")
    about: dict[str, Any] = {"config": None, "mode": handle.mode, "scales": list(handle.scales), "keypoints": None}
    if isinstance(handle.compensation, MemoryCompensation):  # not the control of mode "skip"
        about |= {"config": handle.compensation.config.to_dict(), "keypoints": handle.compensation.keypoints}
    return about


def _from_hub(name: str, revision: str | None) -> Path:
    if not HUB_ID.fullmatch(name):
        raise FileNotFoundError(f"no such folder: {name}")
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"no such folder: {name}. To look for it on the Hugging Face hub: pip install 'memcomp[hub]'",
            name="huggingface_hub",
        ) from None
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=[CONFIG, WEIGHTS]))
    except Exception as error:  # no such repository, no connection, a proxy in between: many kinds of exception
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FileNotFoundError(f"no folder {name}, nor to be had from the hub (are you offline?): {reason}") from error
