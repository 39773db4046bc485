"""One memory, N scales (MCNet Fig. 2): split -> project -> condition -> attend -> merge; `record.py` has Eq. 4."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memcomp.calls import KeepsCallState
from memcomp.config import RUNTIME, CompensationConfig
from memcomp.iicm import IICM
from memcomp.layers import split
from memcomp.mcm import MCM
from memcomp.memory import MetaMemory
from memcomp.placed import PlacedMCM
from memcomp.record import Record
from memcomp.release import ReleaseIICM, ReleaseMCM
from memcomp.scale import CompensationOutput, Conditioned, Given, Scale

__all__ = ["CompensationConfig", "CompensationOutput", "MemoryCompensation", "Record", "Scale"]


class _Call(threading.local):
    __slots__ = ()  # see memcomp/calls.py

    def __init__(self) -> None:  # torch.compile sees no later change of an attribute that the instance lacks
        self.record: Record | None = None
        self.noise: tuple[Tensor, ...] | None = None  # of each scale
        self.passed: dict[int, Tensor] | None = None  # by scale; a dict = features pass uncompensated


class MemoryCompensation(KeepsCallState, nn.Module):
    """Compensates warped features of several scales by one learned memory.

    Args:
        channels: C_i of each scale's feature; even unless `config.split == "none"`.
        keypoints: K, number of source keypoints.
        config: `CompensationConfig.paper()` by default.
        keypoint_dims: D, coordinates of a keypoint.

    Raises:
        ValueError: no scale, odd channels with a split, no keypoint, or keypoints without coordinates.
    """

    _call_state, _earlier = _Call, ("_record",)
    keypoint_dims: int = 2  # here, for pickles of version 0.1.0 lack it

    def __init__(
        self,
        channels: Sequence[int],
        keypoints: int,
        config: CompensationConfig | None = None,
        keypoint_dims: int = 2,
    ) -> None:
        super().__init__()
        config = config or CompensationConfig.paper()
        self.channels, self.keypoints, self.config = tuple(channels), keypoints, config
        self.keypoint_dims = keypoint_dims
        if not self.channels or min(self.channels) < 1 or keypoints < 1:
            raise ValueError(
                f"expected channels >= 1 for at least one scale and keypoints >= 1, got {channels}, {keypoints}"
            )
        if keypoint_dims < 1:
            raise ValueError(f"expected keypoint_dims >= 1, got {keypoint_dims}")
        if config.split != "none" and any(c % 2 for c in self.channels):
            raise ValueError(f"split={config.split!r} needs an even number of channels at every scale, got {channels}")
        deviation = 1.0 if config.memory_init == "unit" else None
        self.memory = MetaMemory(config.memory_channels, config.memory_size, deviation)
        units = 1 if config.sharing == "networks" else len(self.channels)
        conditioned = config.identity_conditioning
        count = units if conditioned else 0
        self.iicm = nn.ModuleList(_make_iicm(config, keypoints, keypoint_dims) for _ in range(count))
        self.mcm = nn.ModuleList(_make_mcm(config, self.memory.deviation) for _ in range(units))
        self.scales = nn.ModuleList(Scale(c, config) for c in self.channels)
        self._call = _Call()

    def forward(
        self,
        feature: Tensor,
        keypoints: Tensor,
        *,
        scale: int,
        noise: Tensor | None = None,
        driving: Tensor | None = None,
        visibility: Tensor | None = None,
    ) -> Tensor:
        """The compensated feature F_cpt of one scale.

        Args:
            feature: warped feature (B, C_i, H, W).
            keypoints: source keypoints (B, K, D) or (1, K, D), (x, y) or (x, y, z) in [-1, 1].
            scale: i, from 0.
            noise: (B or 1, 1, H_m, W_m), only for variant "release"; None = none.
            driving: driving keypoints, as the source's; where `config.driving`.
            visibility: (B or 1, 1, h, w) in [0, 1] of any size, 1 = the source shows it; where `config.visibility`.

        Returns:
            (B, C_i, H, W) in the feature's dtype, device and memory format.

        Raises:
            ValueError: scale out of range, a tensor of another shape, or a feature of integers.
        """
        if self._call.passed is not None:
            self._call.passed[scale] = feature.detach().clone()  # a host may change its own in place
            return feature
        record, supplied = self._call.record, self._call.noise
        noise = supplied[scale] if noise is None and supplied is not None else noise
        given = Given(keypoints, noise, driving, visibility)
        feature_out, value, target = self._compensate(feature, given, scale, record is not None)
        if record is not None and value is not None and target is not None:
            record.add(scale, CompensationOutput(feature_out, value, target))
            if record.complete is not None:
                record.add_taught(scale, *self._taught(feature_out, value, record.complete[scale], scale))
        return feature_out

    def compensate(
        self,
        feature: Tensor,
        keypoints: Tensor,
        scale: int,
        noise: Tensor | None = None,
        driving: Tensor | None = None,
        visibility: Tensor | None = None,
    ) -> CompensationOutput:
        """Compensate one scale and give the tensors of Eq. 4 too, arguments as `forward`'s; nothing is recorded."""
        given = Given(keypoints, noise, driving, visibility)
        out, value, target = self._compensate(feature, given, scale, with_value=True)
        assert value is not None and target is not None
        return CompensationOutput(out, value, target)

    @contextmanager
    def recording(self, complete: Mapping[int, Tensor] | None = None) -> Iterator[Record]:
        """Collect the terms of Eq. 4: `with m.recording() as record: host(...)`, then `record.consistency_loss()`.

        It hears the calls of its own thread. With activation checkpointing it belongs inside the checkpointed function,
        see `memcomp/calls.py`.

        Args:
            complete: what `passing` gave: a teacher's terms are collected too, for `record.teacher_loss()`.

        Raises:
            RuntimeError: inside another recording of this thread.
            ValueError: `complete` lacks a scale.
        """
        if self._call.record is not None:
            raise RuntimeError("this compensation is recording already: recordings do not nest")
        lacking = set() if complete is None else set(range(len(self.channels))) - set(complete)
        if lacking:
            raise ValueError(f"no complete feature of scale {min(lacking)}: call the host inside `passing()`")
        record = self._call.record = Record(self.config.consistency, complete)
        try:
            yield record
        finally:
            self._call.record = None

    @contextmanager
    def passing(self) -> Iterator[dict[int, Tensor]]:
        """Let features pass uncompensated, and give them, detached: scale → (B, C_i, H, W) of the last call.

        Of `host(driving, driving)` that is F_*, the complete feature of the driving frame at every tap: nothing is
        hidden, nothing moved. `recording(F_*)` compares with it what the compensation gives of another source::

            with torch.no_grad(), memory.passing() as complete:
                host(driving, driving)
            with memory.recording(complete) as record:
                output = host(source, driving)

        Nothing is recorded inside. It holds for the calls of its own thread, outside of `handle.disabled()`.
        """
        before, self._call.passed = self._call.passed, {}
        try:
            yield self._call.passed
        finally:
            self._call.passed = before

    @contextmanager
    def supplying(self, noise: Sequence[Tensor]) -> Iterator[None]:
        """Inside of the block, and of its thread, `forward` runs scale i with `noise[i]` unless it is given another.

        Raises:
            ValueError: another number of scales.
        """
        if len(noise) != len(self.channels):
            raise ValueError(f"noise must be one tensor for each of {len(self.channels)} scales, not {len(noise)}")
        before, self._call.noise = self._call.noise, tuple(noise)
        try:
            yield
        finally:
            self._call.noise = before

    def settings(self) -> dict[str, Any]:
        """What makes two memories' weights interchangeable, as plain values; a file of weights carries it."""
        fields = {name: value for name, value in self.config.to_dict().items() if name not in RUNTIME}
        sizes = {"channels": list(self.channels), "keypoints": self.keypoints, "keypoint_dims": self.keypoint_dims}
        return sizes | fields

    def condition(
        self,
        feature: Tensor,
        keypoints: Tensor,
        scale: int,
        noise: Tensor | None = None,
        driving: Tensor | None = None,
        visibility: Tensor | None = None,
    ) -> Conditioned:
        """Split a feature, describe it by GAP(F_proj) and condition M_o by it: the first half of `compensate`."""
        return self._condition(feature, Given(keypoints, noise, driving, visibility), scale)

    def attention(self, scale: int) -> "MCM | ReleaseMCM | PlacedMCM":
        """The MCM of a scale: its `keys`, and its `query` after the scale's `projection`, tell where it looks."""
        return cast("MCM | ReleaseMCM | PlacedMCM", self.mcm[self._unit(scale)])

    def _condition(self, feature: Tensor, given: Given, scale: int) -> Conditioned:
        if not 0 <= scale < len(self.channels):
            raise ValueError(f"scale must be in 0..{len(self.channels) - 1}, not {scale}")
        layer = cast(Scale, self.scales[scale])
        layer.check(feature, given, scale, (self.keypoints, self.keypoint_dims), self.config)
        kept, replaced = split(feature, self.config.split)
        part = layer.computed(replaced)
        visibility = self._visibility(given, part)
        descriptor = layer.describe(part, visibility)
        memory = self.memory()
        if self.config.identity_conditioning:
            poses = [given.keypoints] if given.driving is None else [given.keypoints, given.driving]
            keypoints = torch.cat([pose.expand(feature.shape[0], -1, -1) for pose in poses], dim=1)
            noise = () if given.noise is None else (given.noise,)
            memory = self.iicm[self._unit(scale)](memory, descriptor, keypoints, *noise)
        return Conditioned(kept, replaced, part, descriptor, memory, visibility)

    def _taught(
        self, feature: Tensor, value: Tensor, complete: Tensor, scale: int
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """What a teacher compares: F_cpt^1 with F_*^1, and F_V with what Eq. 4's target would be of F_*^1."""
        if feature.shape != complete.shape:
            shapes = f"{tuple(complete.shape)}, not {tuple(feature.shape)}"
            raise ValueError(f"the complete feature of scale {scale} is {shapes} as the compensated one")
        layer, wanted = cast(Scale, self.scales[scale]), split(complete.detach(), self.config.split)[1]
        target = layer.target(layer.computed(wanted), self.config.memory_size)
        return (split(feature, self.config.split)[1], wanted), (value, target)

    def _visibility(self, given: Given, part: Tensor) -> Tensor | None:
        """(B, 1, H, W) at the size of the feature, or None where the config does not ask for it."""
        if given.visibility is None:
            return None
        visible = given.visibility.to(part.dtype)
        if visible.shape[2:] != part.shape[2:]:
            visible = F.interpolate(visible, size=part.shape[2:], mode="bilinear", align_corners=False)
        return visible.expand(part.shape[0], -1, -1, -1)

    def _compensate(
        self, feature: Tensor, given: Given, scale: int, with_value: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        step = self._condition(feature, given, scale)
        layer, attend = cast(Scale, self.scales[scale]), self.attention(scale)
        further = {} if step.visibility is None else {"visibility": step.visibility}
        compensated, value = attend(
            step.part, step.memory, step.descriptor, layer.projection, layer.output, with_value=with_value, **further
        )  # (B, C, H, W), (B, C_m, H_m, W_m)
        target = layer.target(step.part, self.config.memory_size) if with_value else None
        return layer.merge(step.replaced, step.kept, compensated, feature), value, target

    def _unit(self, scale: int) -> int:
        """Index of the IICM and the MCM that serve a scale."""
        return 0 if self.config.sharing == "networks" else scale


def _make_iicm(config: CompensationConfig, keypoints: int, dims: int) -> IICM:
    channels, hidden = config.memory_channels, config.identity_hidden
    if config.variant == "paper":
        return IICM(channels, keypoints * (1 + config.driving), hidden, dims)
    return ReleaseIICM(channels, keypoints, hidden, config.identity_code, config.noise, dims)


def _make_mcm(config: CompensationConfig, deviation: float) -> MCM | ReleaseMCM | PlacedMCM:
    channels = config.memory_channels
    hidden = config.kernel_hidden or max(channels // 4 + 1, 16)
    if config.reads_by_place:
        return PlacedMCM(config, hidden, deviation)
    if config.variant == "paper":
        return MCM(channels, config.kernels, config.temperature, hidden, config.attention_scale, deviation)
    return ReleaseMCM(channels, config.kernels, config.temperature, hidden, config.attention_scale)
