"""Injection: hanging a compensation on the taps of a generator, after a check that this can work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import nn

from memcomp.handle import CHILD, Handle
from memcomp.taps import KeypointTap, Tap, submodule, tap_channels

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
    tapped = [submodule(root, tap.module) for tap in taps]
    if len({(module, tap.where) for module, tap in zip(tapped, taps, strict=True)}) != len(taps):
        raise ValueError(f"the same place is tapped twice: {[(tap.module, tap.where) for tap in taps]}")
    for tap, channels in zip(taps, compensation.channels, strict=True):
        if tap.channels is not None and (found := tap_channels(root, [tap])[0]) != channels:
            raise ValueError(f"{tap} gives {found} channels, the compensation's scale has {channels}")
    return Handle(root, compensation, taps, tapped, keypoints, source)


def _keypoint_module(root: nn.Module, keypoints: KeypointTap, beside: Mapping[str, nn.Module]) -> nn.Module:
    first, _, rest = keypoints.module.partition(".")
    return submodule(beside[first], rest) if first in beside else submodule(root, keypoints.module)
