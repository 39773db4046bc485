"""The compensation alone in one file: its tensors (safetensors), and in the file's metadata its config and a sha256."""

import ctypes
import hashlib
import json
import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from memcomp.compensation import MemoryCompensation
from memcomp.config import CompensationConfig
from memcomp.formats import weights_format
from memcomp.release import convert_release, release_levels

FORMAT = "memcomp-compensation-1"
SIZES = ("channels", "keypoints", "keypoint_dims")  # settings that are no fields of the config


class HasCompensation(Protocol):
    """A handle: what `memcomp.inject` returns."""

    @property
    def compensation(self) -> MemoryCompensation:
        """The compensation to save or load."""


def save(target: MemoryCompensation | HasCompensation, path: str | os.PathLike[str]) -> None:
    """Write the compensation of a handle, or a compensation, to `path`; an existing file is replaced at once.

    Raises:
        FileNotFoundError: if the folder does not exist.
        ValueError: if a weight is not finite; nothing is written then.
    """
    from safetensors.torch import save as serialize

    compensation, path = _unwrap(target), Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"no such folder: {path.parent}")
    tensors = {key: value.detach().cpu().contiguous() for key, value in compensation.state_dict().items()}
    refuse_non_finite(tensors, "the compensation")
    settings = compensation.settings()
    metadata = {"format": FORMAT, "settings": json.dumps(settings), "sha256": digest(settings, tensors)}
    write_whole(path, serialize(tensors, metadata))


def load(target: MemoryCompensation | HasCompensation, path: str | os.PathLike[str]) -> None:
    """Fill the compensation of a handle, or a compensation, from a file written by `save`; it keeps its own dtype.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, holds non-finite weights, or is of other settings: names the field. The
            target is unchanged then.
    """
    compensation = _unwrap(target)
    settings, tensors = _read(path)
    ours = compensation.settings()
    defaults = CompensationConfig().to_dict() | {"keypoint_dims": 2}  # of what an earlier version did not know
    settings = {name: defaults[name] for name in ours.keys() & defaults.keys()} | settings
    differing = [
        f"{name}: file {settings.get(name)!r}, here {ours.get(name)!r}"
        for name in sorted(ours.keys() | settings.keys())
        if settings.get(name) != ours.get(name)
    ]
    if differing:
        raise ValueError(f"{path} is of another compensation: {'; '.join(differing)}")
    fill(compensation, tensors, path)


def from_file(path: str | os.PathLike[str]) -> MemoryCompensation:
    """A new compensation with the settings and weights of a file written by `save`, in its dtype. Raises as `load`."""
    settings, tensors = _read(path)
    if "mode" in settings:
        raise ValueError(f"{path} is of mode {settings['mode']!r}: attach a memory of that mode, then load the file")
    try:
        sizes = {name: settings.pop(name) for name in SIZES if name in settings}
        compensation = MemoryCompensation(
            sizes["channels"], sizes["keypoints"], CompensationConfig.from_dict(settings), sizes.get("keypoint_dims", 2)
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} has settings that no compensation can have: {error}") from error
    take_dtypes(compensation, tensors)
    fill(compensation, tensors, path)
    return compensation


def from_release(state: Mapping[str, Tensor], prefix: str = "mbUnit.") -> MemoryCompensation:
    """The published memory unit, from the generator's state dict: every size is read off the weights.

    Scale i is the i-th smallest feature size of the unit (32, 64, 128 in the published model). Kernel temperature (34)
    and attention scale (1/4) are constants of the released code.

    Raises:
        ValueError: naming missing and unexpected keys below `prefix`, or a weight of a wrong shape.
    """
    tensors = convert_release(state, prefix)
    memory, code = tensors["memory.value"], tensors["iicm.0.mlp.2.weight"]
    config = CompensationConfig.release(
        memory_channels=memory.shape[0],
        memory_size=tuple(memory.shape[1:]),
        identity_hidden=code.shape[1],
        identity_code=code.shape[0],
        kernels=tensors["mcm.0.key_value.weight"].shape[0],
        kernel_hidden=tensors["mcm.0.key_value.attention.0.weight"].shape[0],
    )
    widths = [tensors[f"scales.{i}.projection.weight"].shape[1] for i in range(len(release_levels(state, prefix)))]
    keypoints = (tensors["iicm.0.mlp.0.weight"].shape[1] - memory.shape[0]) // 2
    compensation = MemoryCompensation([2 * width for width in widths], keypoints, config)
    compensation.to(memory.dtype)
    fill(compensation, tensors, "the released state")
    return compensation


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that a reader meets the previous one or the new one, never a part of it.

    Raises:
        OSError: it cannot be written; it names `path`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        temporary.write_bytes(content)
        with temporary.open("rb") as file:  # or a machine that goes down could have renamed an empty file
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:  # of a full disk: names no file, and the temporary name tells nobody anything
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def take_dtypes(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give the module's parameters and buffers the dtypes of a state dict that is to be loaded into it."""
    for key, value in (*module.named_parameters(), *module.named_buffers()):
        if key in tensors:
            value.data = value.data.to(tensors[key].dtype)


def _unwrap(target: MemoryCompensation | HasCompensation) -> MemoryCompensation:
    compensation = target if isinstance(target, MemoryCompensation) else getattr(target, "compensation", None)
    if not isinstance(compensation, MemoryCompensation):
        found = type(target if compensation is None else compensation).__name__  # a handle may hold another module
        raise TypeError(f"expected a MemoryCompensation or the handle of an attached one, not {found}")
    return compensation


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise FileNotFoundError(f"no such file: {path}")
    if weights_format(path) == "torch":
        raise ValueError(f"{path}: expected a file of memcomp.save (safetensors), found one of torch.save")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        settings = json.loads(metadata.get("settings", "null"))
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged or no safetensors file: {error}") from error
    if metadata.get("format") != FORMAT or not isinstance(settings, dict):
        raise ValueError(f"{path} was not written by memcomp.save (format {metadata.get('format')!r})")
    if metadata.get("sha256") != digest(settings, tensors):
        raise ValueError(f"{path} is damaged: its sha256 does not match")
    refuse_non_finite(tensors, path)
    return settings, tensors


def digest(about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Sha256 of contiguous tensors on the CPU with their keys, dtypes and shapes, and of what JSON says about them."""
    found = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for key in sorted(tensors):
        tensor = tensors[key]
        found.update(f"{key} {tensor.dtype} {list(tensor.shape)}".encode())
        found.update((ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr()))
    return found.hexdigest()


def refuse_non_finite(tensors: Mapping[str, Tensor], where: object) -> None:
    """Raise ValueError, naming the weights, if one holds infinity or NaN."""
    bad = [key for key, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise ValueError(f"{where} has non-finite weights: {', '.join(bad)}")


def fill(module: nn.Module, tensors: Mapping[str, Tensor], where: object) -> None:
    """Load a state dict after a check of all keys and shapes: raises ValueError naming `where` and what differs."""
    shapes = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in tensors.items()}
    wrong = [
        f"{key}: found {found.get(key)}, expected {shapes.get(key)}"
        for key in sorted(shapes.keys() | found.keys())
        if shapes.get(key) != found.get(key)
    ]
    if wrong:
        raise ValueError(f"{where} does not fit: {'; '.join(wrong)}")
    module.load_state_dict(dict(tensors))
