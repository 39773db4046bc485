"""Evaluation pairs of real clips, drawn from a seed; those that a file names: `pair_lists.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from memcomp.experiments.data.clips import Clips, warn_of_conversions
from memcomp.experiments.data.pairs import seeded
from memcomp.experiments.errors import UserError

Place = tuple[int, int]  # number of the clip, number of the frame


@dataclass(frozen=True)
class ClipPair:
    """Two frames of real clips, read when they are asked for; images are (3, H, W) float in [0, 1].

    For one person the driving frame is also the target. For two people there is none: `driving` tells only the pose.
    """

    clips: Clips
    source_at: Place
    driving_at: Place
    start: int
    """The driving clip's frame that is most like the source: relative motion counts from it."""

    @property
    def name(self) -> str:
        """Which frames these are."""
        return "_".join(f"{self.clips.label(clip)}#{frame}" for clip, frame in (self.source_at, self.driving_at))

    @property
    def source(self) -> Tensor:
        """The face to move."""
        return self._read(self.source_at)

    @property
    def driving(self) -> Tensor:
        """The pose to take."""
        return self._read(self.driving_at)

    @property
    def target(self) -> Tensor:
        """The driving frame: the truth for pairs of one person."""
        return self.driving

    @property
    def disoccluded(self) -> None:
        """Unknown in real clips."""
        return None

    def driving_clip(self, most: int) -> tuple[list[Tensor], list[Fraction]]:
        """Up to `most` frames of the driving clip from `start` on, and their times: seconds from the first."""
        clip = self.driving_at[0]
        times = self.clips.times(clip)[self.start : self.start + most]
        frames = self.clips.read(clip, range(self.start, self.start + len(times))).float() / 255
        return list(frames), [time - times[0] for time in times]

    def _read(self, place: Place) -> Tensor:
        clip, frame = place
        return self.clips.read(clip, [frame])[0].float() / 255


def draw_pairs(clips: Clips, count: int, seed: int, *, cross: bool) -> list[ClipPair]:
    """`count` pairs: of two different frames of one clip, or (`cross`) of frames of two people's clips.

    People are drawn first, then clips, then frames, so that someone with many clips does not weigh more.

    Raises:
        UserError: `cross` with a single person; a clip that cannot be read or has one frame only.
    """
    if cross and len(clips.people) < 2:
        raise UserError(f"{clips.folder}: cross-identity pairs need clips of two people, found one")
    pairs = []
    for number in range(count):
        generator = seeded(seed, "cross identity" if cross else "same identity", number)
        people = torch.randperm(len(clips.people), generator=generator).tolist()
        mine, other = (_pick(clips.people[person], generator) for person in (people[0], people[1 if cross else 0]))
        if cross:
            driving = (other, _draw(clips.count(other), generator))
            pairs.append(ClipPair(clips, (mine, _draw(clips.count(mine), generator)), driving, 0))
            continue
        length = clips.count(mine)
        if length < 2:
            raise UserError(f"{clips.paths[mine]}: expected a clip of two frames or more, it has {length}")
        first, second = torch.randperm(length, generator=generator)[:2].tolist()
        pairs.append(ClipPair(clips, (mine, first), (mine, second), first))
    return pairs


def is_cross(pair: ClipPair) -> bool:
    """Whether the pair shows two people."""
    source, driving = (pair.clips.owners[clip] for clip, _ in (pair.source_at, pair.driving_at))
    return source != driving


def tell_conversions(pairs: Sequence[ClipPair]) -> None:
    """Warn once of the clips in pairs that reading converts."""
    used = {(pair.clips, clip) for pair in pairs for clip, _ in (pair.source_at, pair.driving_at)}
    warn_of_conversions(clips.notes(clip) for clips, clip in used)


def _pick(items: Sequence[int], generator: torch.Generator) -> int:
    return items[_draw(len(items), generator)]


def _draw(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator))
