"""What a host costs: parameters that a frame needs, floating-point operations of a frame, time of a frame.

A frame is what animating a video repeats: keypoints of the driving frame and the generation from a source whose
keypoints are known.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from memcomp.adapters import Host
from memcomp.handle import CHILD

NOT_COUNTED = "normalisation, activations, softmax, resizing, warping and other element-wise work are not counted"


class Counted(TorchDispatchMode):
    """Adds up the operations of convolutions and matrix products by torch's own formulas.

    In-place ones too, which `FlopCounterMode` passes over: the gradients of the memory's attention are such.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flop = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count it."""
        result = func(*args, **(kwargs or {}))
        packet = getattr(torch.ops.aten, func.overloadpacket.__name__.removesuffix("_"), func.overloadpacket)
        if formula := flop_registry.get(packet):
            given = {name: value for name, value in (kwargs or {}).items() if name != "out"}
            self.flop += formula(*args, **given, out_val=result)
        return result


@dataclass(frozen=True)
class Cost:
    """What one frame costs, one picture at a time."""

    host_parameters: int
    """Parameters that a frame uses: no discriminator, nothing that only training needs."""
    memory_parameters: int
    gflop: float
    """10⁹ operations of convolutions, matrix products and attention; a multiplication and its addition are two."""


class _Used(TorchDispatchMode):
    """Notes the storage of every tensor that an operation reads."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in tree_leaves((args, kwargs or {})):
            if isinstance(leaf, Tensor):
                self.storages.add(leaf.untyped_storage()._cdata)  # also of tensors without values
        return func(*args, **(kwargs or {}))


def cost(host: Host, size: int, channels: int = 3) -> Cost:
    """Count parameters and operations of one frame.

    Args:
        host: in eval mode, with or without a memory.
        size: height and width of the picture.
        channels: 4 for a host that wants the disparity as well.
    """
    call = frame(host, size, channels)
    return Cost(*_parameters(host, call), _gflop(host, call))


def amount(host: Host, what: str, size: int, channels: int = 3) -> float:
    """What one frame needs: its "parameters", the memory's included, or its "flops", 10⁹ operations."""
    call = frame(host, size, channels)
    return _gflop(host, call) if what == "flops" else sum(_parameters(host, call))


def _parameters(host: Host, call: Callable[[], None]) -> tuple[int, int]:
    """Parameters that a frame uses: the host's, and the memory's."""
    with _Used() as used:
        call()
    sizes = {True: 0, False: 0}
    for name, parameter in host.named_parameters():
        if parameter.untyped_storage()._cdata in used.storages:
            sizes[CHILD in name.split(".")] += parameter.numel()
    return sizes[False], sizes[True]


def _gflop(host: Host, call: Callable[[], None]) -> float:
    with _frozen(host), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / 1e9


@contextlib.contextmanager
def _frozen(host: Host) -> Iterator[None]:
    """No parameter asks for gradients: torch's counter stumbles over a module that returns a view of one."""
    asking = [parameter for parameter in host.parameters() if parameter.requires_grad]
    host.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)


def frame(host: Host, size: int, channels: int = 3) -> Callable[[], None]:
    """A function that generates one frame of a video whose source is known already."""
    device = next(host.parameters()).device
    generator = torch.Generator().manual_seed(0)
    source, driving = torch.rand(2, 1, channels, size, size, generator=generator).to(device)
    with torch.no_grad():
        keypoints = host.keypoints(source)

    @torch.no_grad()
    def call() -> None:
        host.generate(source, keypoints, host.keypoints(driving))

    return call


def milliseconds(calls: Mapping[str, Callable[[], None]], device: torch.device, repeats: int) -> dict[str, float]:
    """Median time of each function in milliseconds, measured in turns so that a busy machine slows all alike.

    Args:
        calls: name → function; each is called once more before, untimed.
        device: where they work.
        repeats: timed calls of each.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(repeats + 1):
        for name, call in calls.items():
            with _timed(device) as seconds:
                call()
            if number:
                times[name] += seconds
    return {name: 1000 * statistics.median(found) for name, found in times.items() if found}


@contextlib.contextmanager
def _timed(device: torch.device) -> Iterator[list[float]]:
    seconds: list[float] = []
    _wait(device)
    start = time.perf_counter()
    yield seconds
    _wait(device)
    seconds.append(time.perf_counter() - start)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def device_name(device: torch.device) -> str:
    """What the times were measured on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return "a Mac's GPU (MPS)"
    return f"CPU, {torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"
