"""The keypoints of a driving video over time: its frame that is most like the source, and smoothing."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from memcomp.adapters import Keypoints
from memcomp.adapters.shared.transfer import hull_area


class Track:
    """Keypoints of all frames of a driving video, a few hundred bytes a frame, on the CPU.

    Args:
        parts: keypoints of its frames in order, (B, K, 2) each.
        times: seconds of every frame.

    Attributes:
        value: (T, K, 2).
        jacobian: (T, K, 2, 2) or None.
        times: (T,) float64.
    """

    def __init__(self, parts: Iterable[Keypoints], times: Sequence[float] = ()) -> None:
        # in two long arrays: a small tensor kept from each batch would lie between what the host lets go of again, and
        # the process would grow by that much
        values, jacobians, count = array("f"), array("f"), 2
        for part in parts:
            count = part.value.shape[1]
            values.extend(part.value.flatten().tolist())
            if part.jacobian is not None:
                jacobians.extend(part.jacobian.flatten().tolist())
        self.value = torch.tensor(np.asarray(values)).view(-1, count, 2)
        self.jacobian = torch.tensor(np.asarray(jacobians)).view(-1, count, 2, 2) if jacobians else None
        self.times = torch.tensor([float(time) for time in times], dtype=torch.float64)

    def __len__(self) -> int:
        return len(self.value)

    def keypoints(self, start: int, stop: int | None = None) -> Keypoints:
        """Those of frames `start` … `stop` - 1, of the one frame if there is no `stop`."""
        part = slice(start, start + 1 if stop is None else stop)
        return Keypoints(self.value[part], None if self.jacobian is None else self.jacobian[part])

    def smooth(self, seconds: float) -> None:
        """Average over about `seconds` before and after each frame alike, so that nothing comes later than it did.

        The exponential filter of `CausalSmoother` runs forwards, then backwards.
        """
        self.value = _both_ways(self.value, self.times, seconds)
        if self.jacobian is not None:
            self.jacobian = _both_ways(self.jacobian, self.times, seconds)

    def best_frame(self, source: Keypoints) -> int:
        """The number of the frame whose head is most like the source's.

        Compared are the host's own keypoints, each set moved to its centre and scaled to a hull of area 1.
        """
        wanted = normalised(source.value[0].float().cpu())
        distances = [float((normalised(points) - wanted).square().sum()) for points in self.value]
        return min(range(len(distances)), key=distances.__getitem__)


class CausalSmoother:
    """Smooths keypoints as they come, for live use: an exponential filter, which answers about `seconds` late.

    Args:
        seconds: time constant, above 0.
        frame_rate: frames per second.
    """

    def __init__(self, seconds: float, frame_rate: float) -> None:
        self.keep = math.exp(-1 / (seconds * frame_rate))
        self._last: Keypoints | None = None

    def __call__(self, keypoints: Keypoints) -> Keypoints:
        """Smooth the next keypoints (B, K, 2), one frame after the other."""
        values, jacobians = list[Tensor](), list[Tensor]()
        for number in range(len(keypoints.value)):
            jacobian = None if keypoints.jacobian is None else keypoints.jacobian[number]
            value, last = keypoints.value[number], self._last
            if last is not None:
                value = torch.lerp(value, last.value, self.keep)
                if jacobian is not None and last.jacobian is not None:
                    jacobian = torch.lerp(jacobian, last.jacobian, self.keep)
            self._last = Keypoints(value, jacobian)
            values.append(value)
            jacobians += [] if jacobian is None else [jacobian]
        return Keypoints(torch.stack(values), torch.stack(jacobians) if jacobians else None)


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
