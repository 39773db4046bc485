"""Taps: hooks that carry the warped features of any generator through a `MemoryCompensation`, its code untouched.

A tap names a submodule, whether its input or its output is the warped feature, and which of its channels are. The
source keypoints are read where the generator already receives them: at a call of its motion network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from memcomp.handle import CHILD, Handle

if TYPE_CHECKING:
    from memcomp.compensation import MemoryCompensation

ORDER = "convert SyncBN → attach → optimiser → DDP → compile"

# Told by name: importing torch._dynamo only to recognise its wrapper would cost every user seconds.
_WRAPPERS = {
    "OptimizedModule": "is compiled: hooks added now would be silently ignored",
    "DistributedDataParallel": "is wrapped by DDP: the memory's gradients would silently not be synchronised",
    "DataParallel": "is wrapped by DataParallel, which the memory does not support; use DDP",
    "FullyShardedDataParallel": "is wrapped by FSDP: the memory's gradients would silently not be synchronised",
}


@dataclass(frozen=True)
class Tap:
    """A place where a warped feature (B, C, H, W) passes through the generator."""

    module: str
    """Dotted name of a submodule of the root, as in `root.get_submodule`."""
    where: str = "input"
    """"input" (the module's first argument) or "output"."""
    part: str = "all"
    """"all", or "second_half": only the second half of the tensor's channels is the warped feature."""
    channels: int | None = None
    """Channels of that whole tensor; None = read off the module's convolutions and norms (see `tap_channels`)."""

    def __post_init__(self) -> None:
        for name, allowed in (("where", ("input", "output")), ("part", ("all", "second_half"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"Tap.{name} must be one of {allowed}, not {getattr(self, name)!r}")


@dataclass(frozen=True)
class KeypointTap:
    """A call at which the source keypoints (B, K, 2), in [-1, 1], can be read."""

    module: str
    """Dotted name of the module called with them, below the root or below one of `inject`'s `beside`; "" = the root."""
    argument: str = "kp_source"
    """The argument of that module's `forward` that carries them; callers may pass it by position or by keyword."""
    key: str | None = "value"
    """The dict key or attribute of that argument which holds the tensor; None = the argument is the tensor."""


def tap_channels(root: nn.Module, taps: Sequence[Tap]) -> list[int]:
    """Channels of the warped feature at each tap: what `MemoryCompensation(channels, ...)` wants.

    Read off the first convolution or norm below the tapped module (in registration order) for an input, the last for an
    output; `Tap.channels` overrides. Raises ValueError if neither tells, or if an odd number is to be halved.
    """
    return [_channels(_submodule(root, tap.module), tap) for tap in taps]


def _channels(module: nn.Module, tap: Tap) -> int:
    found = [
        channels
        for layer in module.modules()
        if (channels := _input_channels(layer) if tap.where == "input" else _output_channels(layer))
    ]
    total = tap.channels or (found[0 if tap.where == "input" else -1] if found else 0)
    if not total:
        raise ValueError(f"cannot read the channels at the {tap.where} of '{tap.module}': say Tap(..., channels=N)")
    if tap.part == "second_half" and total % 2:
        raise ValueError(f"the {tap.where} of '{tap.module}' has {total} channels: an odd number has no second half")
    return total // 2 if tap.part == "second_half" else total


def _input_channels(layer: nn.Module) -> int:
    return layer.in_channels if isinstance(layer, nn.modules.conv._ConvNd) else _norm_channels(layer)


def _output_channels(layer: nn.Module) -> int:
    return layer.out_channels if isinstance(layer, nn.modules.conv._ConvNd) else _norm_channels(layer)


def _norm_channels(layer: nn.Module) -> int:
    if isinstance(layer, nn.modules.batchnorm._NormBase):
        return layer.num_features
    return layer.num_channels if isinstance(layer, nn.GroupNorm) else 0


def check_attachable(module: nn.Module) -> None:
    """Raise ValueError if `module`, or anything in it, is compiled, wrapped for parallel training, or has a memory."""
    for name, part in module.named_modules():
        where = f"'{name}' of this {type(module).__name__}" if name else f"this {type(module).__name__}"
        reasons = [_WRAPPERS[base.__name__] for base in type(part).__mro__ if base.__name__ in _WRAPPERS]
        if getattr(part, "_compiled_call_impl", None) is not None:
            reasons.append(_WRAPPERS["OptimizedModule"])
        if reasons:
            raise ValueError(f"cannot attach: {where} {reasons[0]}. The order is: {ORDER}.")
        if hasattr(part, CHILD) or Handle.of(part) is not None:
            raise ValueError(f"{where} has a memory already: call remove() of its handle first. The order is: {ORDER}.")


def inject(
    root: nn.Module,
    compensation: MemoryCompensation,
    taps: Sequence[Tap],
    keypoints: KeypointTap,
    *,
    beside: Mapping[str, nn.Module] | None = None,
) -> Handle:
    """Send the features that pass `taps` of `root` through `compensation`, scale i at `taps[i]`.

    The compensation becomes `root.memory_compensation` (moved to the root's device and dtype), so `.to`, `.train`,
    optimisers, DDP and the state dict see it. `beside` gives modules that are not below the root but called with the
    keypoints before it, by the name that `keypoints.module` starts with. The order is: convert SyncBN → attach →
    optimiser → DDP → compile. Raises ValueError, leaving everything as it was, if that order is not kept (see
    `check_attachable`) or if taps, keypoints and compensation do not fit the root.
    """
    taps = tuple(taps)
    source = _keypoint_module(root, keypoints, beside or {})
    for module in (root, source):
        check_attachable(module)
    if any(module is compensation for module in root.modules()):
        raise ValueError("this compensation is a submodule of the root already: it must have one owner, one key")
    if len(taps) != len(compensation.channels):
        raise ValueError(f"{len(taps)} taps for {len(compensation.channels)} scales of the compensation: give one each")
    tapped = [_submodule(root, tap.module) for tap in taps]
    if len({(module, tap.where) for module, tap in zip(tapped, taps, strict=True)}) != len(taps):
        raise ValueError(f"the same place is tapped twice: {[(tap.module, tap.where) for tap in taps]}")
    for tap, module, channels in zip(taps, tapped, compensation.channels, strict=True):
        if tap.channels is not None and _channels(module, tap) != channels:
            raise ValueError(f"{tap} gives {_channels(module, tap)} channels, the compensation's scale has {channels}")
    return Handle(root, compensation, taps, tapped, keypoints, source)


def _submodule(root: nn.Module, name: str) -> nn.Module:
    try:
        return root.get_submodule(name)
    except AttributeError:
        children = ", ".join(child for child, _ in root.named_children())
        raise ValueError(f"{type(root).__name__} has no submodule '{name}' to tap; its children: {children}") from None


def _keypoint_module(root: nn.Module, keypoints: KeypointTap, beside: Mapping[str, nn.Module]) -> nn.Module:
    first, _, rest = keypoints.module.partition(".")
    return _submodule(beside[first], rest) if first in beside else _submodule(root, keypoints.module)
