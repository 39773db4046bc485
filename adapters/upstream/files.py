"""Files of weights, of `torch.save` or safetensors under any name, read without running what a pickle asks for."""

from __future__ import annotations

import _codecs
import argparse
import re
import struct
import tarfile
import threading
import types
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from memcomp.adapters.layout import bare_key
from memcomp.formats import weights_format

RESAVE = (  # by the environment rather than weights_only=False, which torch before 1.13 does not know
    "if you trust it, run in upstream's own environment: python -c \"import os, torch; "
    "os.environ['TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'] = '1'; c = torch.load('{name}', 'cpu'); "
    "f = lambda v: f(v.state_dict()) if hasattr(v, 'state_dict') else {{k: f(x) for k, x in v.items() "
    "if hasattr(x, 'items') or hasattr(x, 'state_dict') or torch.is_tensor(x)}} if hasattr(v, 'items') else v; "
    "torch.save(f(c), 'plain.pth.tar')\""
)
INTEGERS = dict(zip(("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"), "bhiqBHIQ", strict=True))
CODES = INTEGERS | {"b1": "?", "f2": "e", "f4": "f", "f8": "d"}  # numpy's of a number → struct's
SIZES = [f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)] + ["float16", "float32", "float64"]
INERT = (
    *(f"{module}.{name}" for module in ("pathlib", "pathlib._local") for name in ("PosixPath", "WindowsPath")),
    *(f"numpy.{kind}" for kind in ("ndarray", "bool", "bool_", "str_", *SIZES)),
    *(f"numpy.dtypes.{kind.capitalize().replace('Ui', 'UI')}DType" for kind in ("bool", "str", *SIZES)),
    "datetime.datetime",
    "datetime.timedelta",
    "torch.torch_version.TorchVersion",
)
_lock = threading.Lock()  # torch's list of what safe loading admits is one for all threads


class Inert:
    """Stands for a value of another package, which is told by its type and used for nothing."""

    def __init__(self, *args: object) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class DType(Inert):
    """Stands for `numpy.dtype`: the code of its numbers, and their order of bytes."""

    def __init__(self, code: str, *args: object) -> None:
        self.code, self.order = code, "<"

    def __setstate__(self, state: Any) -> None:
        self.order = ">" if state[1] == ">" else "<"


class Number(Inert):
    """Stands for a value of numpy that Python has no number for."""


def scalar(dtype: DType, raw: bytes | str = b"") -> object:
    """Stands for how numpy reads a number of its own: one of Python, or something inert."""
    code = CODES.get(dtype.code)
    raw = raw.encode("latin1") if isinstance(raw, str) else raw
    return Number() if code is None else struct.unpack(dtype.order + code, raw)[0]


def read_file(file: Path) -> Any:
    """What a file holds: of safetensors its tensors by name, of `torch.save` what it saved, with plain values.

    Safe loading makes tensors and plain containers. Here it also makes numpy's numbers, as Python's, argparse's
    namespaces, `defaultdict` and `deque` as dict and list, and things without any effect in the place of numpy's
    arrays and types, paths, dates and torch's version. Nothing that a pickle names is run.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a damaged file, something else than weights (see `memcomp.formats`), or one that safe loading
            refuses: names what it asks for, and a way out.
    """
    if not file.is_file():
        raise FileNotFoundError(f"no such file: {file}")
    if weights_format(file) == "safetensors":
        try:
            return load_file(file)
        except SafetensorError as error:
            raise ValueError(f"{file}: damaged, or no sound safetensors file ({error})") from None
    try:
        return _load_safely(file)
    except Exception as error:  # torch reports a damaged file by many kinds of exception
        name = str(file) if re.fullmatch(r"[\w ./+=@:,()~-]+", str(file)) else "FILE"  # others, a shell may change
        text, way_out = str(error), RESAVE.format(name=name)
        if asked := re.search(r"GLOBAL (\S+)", text):
            raise ValueError(f"{file}: safe loading refuses it, for it asks for {asked[1]}; {way_out}") from None
        if re.search("Unsupported operand|Can only|unrecognized function", text) or tarfile.is_tarfile(file):
            raise ValueError(f"{file}: safe loading does not know its kind of pickle; {way_out}") from None
        reason = re.split(r"\. |\n", text)[0]
        if " " not in reason:  # a bare opcode of the pickle
            reason = f"its pickle breaks off or makes no sense: {type(error).__name__} {reason}".rstrip()
        raise ValueError(f"{file}: damaged, or no file of torch.save ({reason})") from None


def read_state(file: Path) -> dict[str, Tensor]:
    """The state dict that a file holds, alone or as its only entry with tensors; `bare_key` of its names.

    Raises:
        FileNotFoundError, ValueError: as `read_file`; or it holds something else.
    """
    found = read_file(file)
    if isinstance(found, Mapping) and not _is_state(found):
        states = [entry for entry in found.values() if _is_state(entry)]
        found = states[0] if len(states) == 1 else None
    if not _is_state(found):
        raise ValueError(f"{file}: expected a state dict, names with tensors")
    return {bare_key(name): value for name, value in found.items()}


def fill(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give every entry of a network's state dict the value that a file's has; others of the file are not used.

    Raises:
        ValueError: a tensor is missing or has another shape; it is named.
    """
    own = network.state_dict()
    # older checkpoints do not count the batches
    given = {name: value for name, value in own.items() if name.endswith("num_batches_tracked")} | dict(state)
    for name, value in own.items():
        if name not in given or given[name].shape != value.shape:
            have = f"has shape {tuple(given[name].shape)}" if name in given else "is missing"
            raise ValueError(f"{name} {have}, expected {tuple(value.shape)}")
    network.load_state_dict({name: given[name] for name in own})


def _is_state(entry: object) -> bool:
    return isinstance(entry, Mapping) and all(isinstance(n, str) and isinstance(v, Tensor) for n, v in entry.items())


def _load_safely(file: Path) -> Any:
    """Load with stand-ins admitted under the names of what they stand for; afterwards the list is as it was."""
    names = {_name(one) for one in STAND_INS}
    with _lock, warnings.catch_warnings():  # about pickles of other protocols, which safe loading refuses
        warnings.simplefilter("ignore")
        before = torch.serialization.get_safe_globals()
        try:
            torch.serialization.clear_safe_globals()  # `safe_globals`, a context, came with torch 2.5
            torch.serialization.add_safe_globals([one for one in before if _name(one) not in names])
            torch.serialization.add_safe_globals(STAND_INS)
            with file.open("rb") as opened:  # a handle: of a path, newer torch goes by the suffix
                return torch.load(opened, map_location="cpu", weights_only=True)
        finally:
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals(before)


def _name(admitted: Any) -> str:
    return admitted[1] if isinstance(admitted, tuple) else f"{admitted.__module__}.{admitted.__qualname__}"


def _named(name: str, made: Any) -> Any:
    """Give a class or function of ours the name that a pickle asks for."""
    made.__module__, _, made.__name__ = name.rpartition(".")
    made.__qualname__ = made.__name__
    return made


def _function(name: str, function: Callable[..., object]) -> Any:
    return _named(name, lambda *args: function(*args))


STAND_INS: list[Any] = [
    argparse.Namespace,
    types.SimpleNamespace,
    *(bool, int, float, str, list, dict),  # what a defaultdict makes
    *(set, frozenset, bytearray, complex, Counter, _codecs.encode),  # some known to newer torch; the last makes bytes
    *(_named(name, type("Inert", (Inert,), {})) for name in INERT),
    _named("numpy.dtype", type("Inert", (DType,), {})),
    *(_function(f"numpy.{core}.multiarray.scalar", scalar) for core in ("core", "_core")),
    *(_function(f"numpy.{core}.multiarray._reconstruct", lambda kind, *args: kind()) for core in ("core", "_core")),
    *(_function(f"numpy.{core}._DType_reconstruct", lambda kind, *args: kind) for core in ("core", "_core")),
    _function("collections.defaultdict", lambda *args: {}),
    _function("collections.deque", lambda *args: []),
]
