"""The frames around an evaluation pair: the driving head moves, the pair's own frame is one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from memcomp.experiments.data.heads.pose import FRAME_RATE
from memcomp.experiments.data.heads_set import EvalPairs
from memcomp.experiments.evaluation.clip_pairs import ClipPair
from memcomp.experiments.evaluation.options import SAME
from memcomp.experiments.evaluation.scores import Pair
from memcomp.experiments.video import rate_of

FRAMES = 32  # of a clip, more than a second


@dataclass(frozen=True)
class PairClip:
    """A source and consecutive driving frames; pictures in [0, 1]."""

    source: Tensor
    """(3 or 4, H, W)."""
    driving: Tensor
    """(T, 3 or 4, H, W)."""
    target: Tensor | None
    """(T, 3, H, W): what the prediction should be; None = unknown."""
    at: int
    """Which frame is the pair's."""
    times: list[float]
    """When each driving frame is shown, seconds from the first."""

    @property
    def rate(self) -> float:
        """Frames per second, on average."""
        return float(rate_of(self.times))

    @property
    def time(self) -> float:
        """The middle of the time at which the pair's frame is shown: no player rounds it to the frame before."""
        ends = [*self.times[1:], self.times[-1] + 1 / self.rate]
        return (self.times[self.at] + ends[self.at]) / 2


def clip_of(pairs: Sequence[Pair], number: int, kind: str, frames: int = FRAMES) -> PairClip:
    """Consecutive frames around the driving frame of a pair.

    Args:
        pairs: as `evaluation_pairs` gives them.
        number: which pair.
        kind: of the pairs.
        frames: at most so many.
    """
    if isinstance(pairs, EvalPairs):
        return _of_heads(pairs, number, frames)
    pair = pairs[number]
    assert isinstance(pair, ClipPair)
    clip, frame = pair.driving_at
    first, last = window(frame, frames, pair.clips.count(clip))
    driving = pair.clips.read(clip, range(first, last)).float() / 255
    target = driving[:, :3] if kind == SAME else None
    times = pair.clips.times(clip)[first:last]
    return PairClip(pair.source, driving, target, frame - first, [float(time - times[0]) for time in times])


def _of_heads(pairs: EvalPairs, number: int, frames: int) -> PairClip:
    """A set's clips have few frames a second: the same motion is drawn with whole steps between them."""
    heads, (a, source, b, driving) = pairs.heads, pairs.places[number]
    steps = max(1, round(FRAME_RATE / heads.rate))
    middle = driving * steps
    first, last = window(middle, frames, None)
    poses = heads.poses(b, last, steps)[first:]
    who, driver = heads.identity(a), heads.identity(b)
    target = heads.render(who, poses)
    return PairClip(
        source=heads.render(who, heads.poses(a)[source])[0],
        driving=target if a == b else heads.render(driver, poses),
        target=target[:, :3],
        at=middle - first,
        times=[number / (heads.rate * steps) for number in range(last - first)],
    )


def window(middle: int, frames: int, length: int | None) -> tuple[int, int]:
    """First frame and the one after the last, of up to `frames` around `middle` that lie in a clip of `length`."""
    first = max(0, middle - frames // 2)
    if length is None:
        return first, first + frames
    first = max(0, min(first, length - frames))
    return first, min(length, first + frames)
