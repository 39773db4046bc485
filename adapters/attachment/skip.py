"""Mode "skip": the paper's multi-layer generation for generators that warp the feature of one size only (FOMM, DaGAN).

At each finer size the encoder's feature is warped by the generator's own `deform_input` with the flow of the call in
progress, dimmed by its occlusion map, compensated (MCNet Fig. 2), and added to the decoder's through a 1×1 convolution
that starts at zero. The control leaves the compensation out: it tells the memory's gain from the skip's.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memcomp.calls import KeepsCallState
from memcomp.compensation import CompensationConfig, MemoryCompensation, Scale
from memcomp.record import Record
from memcomp.taps import Tap, tap_channels

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle


def encoder_taps(generator: nn.Module, taps: Sequence[Tap]) -> list[Tap | None]:
    """Name the encoder's output of the size of each tap of mode "inplace", coarse to fine; None for the coarsest.

    The coarsest feature is the one that the generator warps itself. Of vox-256 at 256×256: None, `down_blocks.0`
    (128 channels, 128×128), `first` (64 channels, 256×256).
    """
    blocks = len(list(generator.get_submodule("down_blocks").children()))
    encoder = ["first", *(f"down_blocks.{index}" for index in range(blocks))]  # fine to coarse
    finer = [Tap(encoder[max(blocks - scale, 0)], where="output") for scale in range(1, len(taps))]
    return [None, *finer]


@dataclass
class _Call:
    """What a call of the generator in progress has shown so far."""

    generator: nn.Module
    depth: int
    """Depth of Python's stack at its start."""
    features: dict[int, Tensor] = field(default_factory=dict)
    motion: Any = None


class _Calls(threading.local):
    __slots__ = ()  # see memcomp/calls.py

    def __init__(self) -> None:
        self.stack: list[_Call] = []


class EncoderSkips(KeepsCallState, nn.Module):
    """The skips of some scales: reads encoder and flow while the generator runs, warps, and adds through convolutions.

    Args:
        widths: scale → (channels of the encoder's feature, channels of the decoder's).
    """

    _call_state, _earlier = _Calls, ("_calls",)

    def __init__(self, widths: Mapping[int, tuple[int, int]]) -> None:
        super().__init__()
        self.convs = nn.ModuleDict({str(scale): nn.Conv2d(*pair, 1) for scale, pair in widths.items()})
        for parameter in self.parameters():
            nn.init.zeros_(parameter)
        self._call = _Calls()

    def has(self, scale: int) -> bool:
        """Whether a scale is a skip. No special method: torch.compile of torch 2.4 knows no `in` of a module."""
        return str(scale) in self.convs

    def watch(self, generator: nn.Module, motion: nn.Module, encoder: Mapping[int, nn.Module]) -> list[RemovableHandle]:
        """Read `encoder` (scale → module) and the motion network whenever `generator` is called, until removed.

        Nothing is kept when the call has ended, and no reference to the generator between its calls.
        """
        return [
            generator.register_forward_pre_hook(self._enter),
            *(module.register_forward_hook(partial(self._see_feature, scale)) for scale, module in encoder.items()),
            motion.register_forward_hook(self._see_motion),
            generator.register_forward_hook(self._leave, always_call=True),
        ]

    def warped(self, scale: int) -> Tensor:
        """The encoder's feature (B, C_e, H, W) of the call in progress: warped, and occluded if the host does that.

        Raises:
            RuntimeError: outside a call, or before the generator has called the encoder and its motion network.
        """
        call = self._call.stack[-1] if self._call.stack else None
        if call is None or call.motion is None or scale not in call.features:
            raise RuntimeError(
                f"the skip of scale {scale} was reached before the generator's encoder and motion network: call the "
                "generator itself, which must call these as modules. Checkpoint activations of the whole module only."
            )
        warped = cast(Any, call.generator).deform_input(call.features[scale], _entry(call.motion, "deformation"))
        visible = _entry(call.motion, "occlusion_map")  # (B, 1, h, w)
        if visible is None:
            return warped
        if visible.shape[2:] != warped.shape[2:]:
            visible = F.interpolate(visible, size=warped.shape[2:], mode="bilinear")
        return warped * visible

    def forward(self, decoded: Tensor, feature: Tensor, scale: int) -> Tensor:
        """Decoder (B, C_d, H, W) plus the convolved feature (B, C_e, H, W)."""
        return decoded + self.convs[str(scale)](feature).to(decoded.dtype)

    def _enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        # a call that is no deeper than this one cannot be around it: it was cut off, by KeyboardInterrupt
        stack = self._call.stack
        depth = len(stack) if torch.compiler.is_compiling() else _stack_depth()
        while stack and stack[-1].depth >= depth:
            stack.pop()
        stack.append(_Call(module, depth))

    def _see_feature(self, scale: int, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if self._call.stack:
            self._call.stack[-1].features[scale] = output

    def _see_motion(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._call.stack:
            self._call.stack[-1].motion = output

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._call.stack:
            self._call.stack.pop()


class SkipCompensation(MemoryCompensation):
    """A memory whose finer scales are skips: there `forward` gives the decoder's feature plus the convolved F_cpt.

    `compensate(feature, ...)` is that of the warped feature itself, at every scale. `config.start` is that of the
    coarsest scale; the finer ones replace their half (start "paper"), for their convolution is a start of its own.

    Args:
        channels: of the tensor at each tap, the decoder's.
        encoder: channels of the encoder's feature of each scale; None = compensated in place.
        keypoints: K.
        config, keypoint_dims: as of `MemoryCompensation`, and its ValueErrors.
    """

    def __init__(
        self,
        channels: Sequence[int],
        encoder: Sequence[int | None],
        keypoints: int,
        config: CompensationConfig | None = None,
        keypoint_dims: int = 2,
    ) -> None:
        pairs = list(zip(channels, encoder, strict=True))
        widths = [decoded if coded is None else coded for decoded, coded in pairs]
        super().__init__(widths, keypoints, config, keypoint_dims)
        self.channels = tuple(channels)
        self.skips = EncoderSkips({i: (coded, decoded) for i, (decoded, coded) in enumerate(pairs) if coded})
        for index, scale in enumerate(self.scales):
            if self.skips.has(index):
                cast(Scale, scale).gate = None

    def forward(self, feature: Tensor, keypoints: Tensor, *, scale: int, **given: Tensor | None) -> Tensor:
        """The tapped tensor (B, C, H, W) compensated, or with the compensated skip of that scale added to it."""
        if not self.skips.has(scale):
            return super().forward(feature, keypoints, scale=scale, **given)
        compensated = super().forward(self.skips.warped(scale), keypoints, scale=scale, **given)
        return self.skips(feature, compensated, scale)

    def settings(self) -> dict[str, Any]:
        """What makes two memories' weights interchangeable: as `MemoryCompensation.settings`, and the mode."""
        return super().settings() | {"mode": "skip"}


class SkipControl(nn.Module):
    """`SkipCompensation` with the identity for its memory: in place nothing happens, the skips are as they are warped.

    It is no `MemoryCompensation`: a host with it has no memory, and Eq. 4 is zero.

    Args:
        channels, encoder: as of `SkipCompensation`.
    """

    def __init__(self, channels: Sequence[int], encoder: Sequence[int | None]) -> None:
        super().__init__()
        self.channels = tuple(channels)
        pairs = enumerate(zip(channels, encoder, strict=True))
        self.skips = EncoderSkips({i: (coded, decoded) for i, (decoded, coded) in pairs if coded})

    def forward(self, feature: Tensor, keypoints: Tensor, *, scale: int) -> Tensor:
        """The tapped tensor (B, C, H, W), or with the skip of that scale added to it; `keypoints` has no effect."""
        return self.skips(feature, self.skips.warped(scale), scale) if self.skips.has(scale) else feature

    @contextmanager
    def recording(self) -> Iterator[Record]:
        """Give a record whose loss is zero, as a memory without consistency does."""
        yield Record(enabled=False)


def encoder_channels(generator: nn.Module, taps: Sequence[Tap | None]) -> list[int | None]:
    """Channels of the encoder's features, None where there is none."""
    return [None if tap is None else tap_channels(generator, [tap])[0] for tap in taps]


def _entry(motion: Any, name: str) -> Any:
    """A dict's entry or an object's attribute, None if there is none."""
    return motion.get(name) if isinstance(motion, Mapping) else getattr(motion, name, None)


def _stack_depth() -> int:
    frame, depth = sys._getframe(1).f_back, 1
    while frame is not None:
        frame, depth = frame.f_back, depth + 1
    return depth
