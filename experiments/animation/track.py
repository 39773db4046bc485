"""The keypoints of a driving video over time: its frame that is most like the source, and smoothing."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, replace

import numpy as np
import torch
from torch import Tensor

from memcomp.adapters import Keypoints
from memcomp.adapters.shared.transfer import hull_area


class Track:
    """Keypoints of all frames of a driving video, a few hundred bytes a frame, on the CPU.

    Args:
        parts: keypoints of its frames in order, (B, K, D) each.
        times: seconds of every frame.

    Attributes:
        times: (T,) float64.
    """

    def __init__(self, parts: Iterable[Keypoints], times: Sequence[float] = ()) -> None:
        # in a few long arrays: a small tensor kept from each batch would lie between what the host lets go of again,
        # and the process would grow by that much
        numbers, shapes, form = dict[str, array](), dict[str, Sequence[int]](), Keypoints(torch.empty(0, 2, 2))
        for part in parts:
            form = part
            for name, tensor in tensors_of(part).items():
                numbers.setdefault(name, array("f")).extend(tensor.flatten().tolist())
                shapes[name] = tensor.shape[1:]
        found = {name: torch.tensor(np.asarray(row)).view(-1, *shapes[name]) for name, row in numbers.items()}
        self._keypoints = replace(form, **found)
        self.times = torch.tensor([float(time) for time in times], dtype=torch.float64)

    def __len__(self) -> int:
        return len(self.value)

    @property
    def value(self) -> Tensor:
        """(T, K, D)."""
        return self._keypoints.value

    @property
    def jacobian(self) -> Tensor | None:
        """(T, K, D, D) or None."""
        return self._keypoints.jacobian

    def keypoints(self, start: int, stop: int | None = None) -> Keypoints:
        """Those of frames `start` … `stop` - 1, of the one frame if there is no `stop`."""
        part = slice(start, start + 1 if stop is None else stop)
        return self._keypoints.each(lambda x: x[part])

    def smooth(self, seconds: float) -> None:
        """Average over about `seconds` before and after each frame alike, so that nothing comes later than it did.

        The exponential filter of `CausalSmoother` runs forwards, then backwards.
        """
        self._keypoints = self._keypoints.each(lambda x: _both_ways(x, self.times, seconds))

    def best_frame(self, source: Keypoints) -> int:
        """The number of the frame whose head is most like the source's.

        Compared are the host's own keypoints as the picture shows them, (x, y), each set moved to its centre and scaled
        to a hull of area 1.
        """
        wanted = normalised(source.value[0, :, :2].float().cpu())
        distances = [float((normalised(points[:, :2]) - wanted).square().sum()) for points in self.value]
        return min(range(len(distances)), key=distances.__getitem__)


class CausalSmoother:
    """Smooths keypoints as they come, for live use: an exponential filter, which answers about `seconds` late.

    Args:
        seconds: time constant, above 0.
        frame_rate: frames per second, of frames that come without times.
    """

    def __init__(self, seconds: float, frame_rate: float) -> None:
        self.seconds, self.step = seconds, 1 / frame_rate
        self._last: dict[str, Tensor] | None = None
        self._time = 0.0

    def __call__(self, keypoints: Keypoints, times: Sequence[float] | None = None) -> Keypoints:
        """Smooth the next keypoints (B, K, D), one frame after the other, at `times` in seconds."""
        smoothed = list[dict[str, Tensor]]()
        for number in range(len(keypoints.value)):
            now = {name: value[number : number + 1] for name, value in tensors_of(keypoints).items()}
            last, time = self._last, self._time + self.step if times is None else times[number]
            if last is not None:
                keep = math.exp((self._time - time) / self.seconds)
                now = {name: torch.lerp(value, last[name], keep) for name, value in now.items()}
            self._last, self._time = now, time
            smoothed.append(now)
        return replace(keypoints, **{name: torch.cat([one[name] for one in smoothed]) for name in smoothed[0]})


def tensors_of(keypoints: Keypoints) -> dict[str, Tensor]:
    """The tensors of keypoints of any kind, by the names of their fields."""
    found = {field.name: getattr(keypoints, field.name) for field in fields(keypoints)}
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def normalised(points: Tensor) -> Tensor:
    """Points (K, 2) about their mean, with a hull of area 1; of no hull, about their mean."""
    centred = points - points.mean(0)
    area = hull_area(points)
    return centred / math.sqrt(area) if area > 0 else centred


def _both_ways(values: Tensor, times: Tensor, seconds: float) -> Tensor:
    """The exponential filter of time constant `seconds` along the first dimension, forwards and backwards."""
    forward = torch.stack(list(_filtered(values, times, seconds)))
    backward = torch.stack(list(_filtered(forward.flip(0), -times.flip(0), seconds)))
    return backward.flip(0)


def _filtered(values: Tensor, times: Tensor, seconds: float) -> Iterator[Tensor]:
    last, before = values[0], float(times[0])
    for value, time in zip(values, times.tolist(), strict=True):
        last, before = torch.lerp(value, last, math.exp((before - time) / seconds)), time
        yield last
