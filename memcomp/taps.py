"""Taps: hooks that carry the warped features of any generator through a `MemoryCompensation`, its code untouched.

A tap names a submodule, whether its input or its output is the warped feature, and which of its channels are. The
source keypoints are read where the generator already receives them: at a call of its motion network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from memcomp.handle import Handle as Handle
    from memcomp.injection import check_attachable as check_attachable
    from memcomp.injection import inject as inject
else:  # where these names were before; what they do stands above the taps

    def __getattr__(name: str) -> Any:
        homes = {"Handle": "handle", "check_attachable": "injection", "inject": "injection"}
        if name not in homes:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"memcomp.{homes[name]}"), name)


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
    """A call at which the source keypoints (B, K, D), in [-1, 1], can be read."""

    module: str
    """Dotted name of the module called with them, below the root or below one of `inject`'s `beside`; "" = the root."""
    argument: str = "kp_source"
    """The argument of that module's `forward` that carries them; callers may pass it by position or by keyword."""
    key: str | None = "value"
    """The dict key or attribute of that argument which holds the tensor; None = the argument is the tensor."""
    driving: str | None = "kp_driving"
    """The argument that carries the driving keypoints likewise: read only if `CompensationConfig.driving` asks."""


@dataclass(frozen=True)
class VisibilityTap:
    """A call whose output tells what the source shows, (B, 1, h, w) in [0, 1], 1 = visible.

    Read only if `CompensationConfig.visibility` asks. It must have happened before the first tap is reached.
    """

    module: str
    """Dotted name of the module, below the root or below one of `inject`'s `beside`."""
    key: str | None = "occlusion_map"
    """The dict key or attribute of the output which holds the tensor, or several for features of several sizes."""


def tap_channels(root: nn.Module, taps: Sequence[Tap]) -> list[int]:
    """Channels of the warped feature at each tap: what `MemoryCompensation(channels, ...)` wants.

    Read off the first convolution or norm below the tapped module (in registration order) for an input, the last for an
    output; `Tap.channels` overrides. Raises ValueError if neither tells, or if an odd number is to be halved.
    """
    return [_channels(submodule(root, tap.module), tap) for tap in taps]


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


def submodule(root: nn.Module, name: str) -> nn.Module:
    """The submodule of that dotted name; ValueError, naming the root's children, if there is none."""
    try:
        return root.get_submodule(name)
    except AttributeError:
        children = ", ".join(child for child, _ in root.named_children())
        raise ValueError(f"{type(root).__name__} has no submodule '{name}' to tap; its children: {children}") from None
