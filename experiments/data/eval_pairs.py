"""Evaluation pairs of real clips: drawn from a seed, or named in a CSV file."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from memcomp.experiments.data.clips import PICTURES, Clips
from memcomp.experiments.data.pairs import seeded
from memcomp.experiments.errors import UserError
from memcomp.experiments.files import existing_file

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
        return "_".join(f"{self.clips.paths[clip].stem}#{frame}" for clip, frame in (self.source_at, self.driving_at))

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

    def driving_clip(self, most: int) -> list[Tensor]:
        """Up to `most` frames of the driving clip from `start` on."""
        clip = self.driving_at[0]
        frames = range(self.start, min(self.start + most, self.clips.count(clip)))
        return list(self.clips.read(clip, frames).float() / 255)

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


def read_pairs(path: str | Path, clips: Clips, count: int, left_out: list[str] | None = None) -> list[ClipPair]:
    """The first `count` usable pairs of a CSV with columns `source`, `driving` and, if known, `best_frame` or `frame`.

    A value is `<clip>#<frame>`, frames from 0, or, as in upstream's lists of VoxCeleb, `<folder>/<clip>/<picture>`: the
    clip is a folder of frames, or a video whose frames the pictures' numbers count. Clips are found by their name in
    the folder that `clips` reads, whatever folders stand before it in the list. `frame` may be a number alone.

    Args:
        path: of the CSV.
        clips: to find the frames in.
        count: pairs at most.
        left_out: gets a line for each row that cannot be used, such as a clip that is not there; None = no row may be.

    Raises:
        UserError: no such file, a column is missing, no row is usable, or one is not and `left_out` is None.
    """
    pairs: list[ClipPair] = []
    with existing_file(path, "CSV file of pairs").open(newline="", encoding="utf-8", errors="replace") as file:
        reader = csv.DictReader(line.replace("\0", "\ufffd") for line in file)  # csv of Python 3.10 refuses NUL
        for column in ("source", "driving"):
            if column not in (reader.fieldnames or ()):
                raise UserError(f"{path}: expected columns source, driving[, best_frame]; {column} is missing")
        names = {clip.name: number for number, clip in enumerate(clips.paths)}
        for line, row in enumerate(reader, 2):
            if len(pairs) == count:
                break
            try:
                pairs.append(_pair(row, clips, names))
            except UserError as error:
                problem = f"{path}, line {line}: {error}"
                if left_out is None:
                    raise UserError(problem) from None
                left_out.append(problem)
    if not pairs:
        why = f"; {left_out[0]}" if left_out else ""
        raise UserError(f"{path}: expected pairs, found none{why}")
    return pairs


def _pair(row: Mapping[str, str | None], clips: Clips, names: Mapping[str, int]) -> ClipPair:
    source, driving = (_place(row, column, clips, names) for column in ("source", "driving"))
    start = 0
    for column in ("best_frame", "frame"):
        value = row.get(column) or ""
        if value.isdecimal() and int(value) < clips.count(driving[0]):
            start = int(value)
        elif value:
            best = _place(row, column, clips, names)
            if best[0] != driving[0]:
                raise UserError(f"{column} is not of the driving clip")
            start = best[1]
    return ClipPair(clips, source, driving, start)


def _place(row: Mapping[str, str | None], column: str, clips: Clips, names: Mapping[str, int]) -> Place:
    value = row[column] or ""
    folder, _, picture = value.rpartition("/")
    is_picture = Path(picture).suffix.lower() in PICTURES
    name, _, number = (folder, "", Path(picture).stem) if is_picture else value.rpartition("#")
    clip = names.get(name.rpartition("/")[2])
    if clip is not None and is_picture and clips.paths[clip].is_dir():  # by its name: a frame before it may be missing
        found = clips.pictures(clip)
        frame = found.index(picture) if picture in found else None
    else:
        frame = int(number) if number.isdecimal() else None
    if clip is None or frame is None or frame >= clips.count(clip):
        raise UserError(
            f"{column} {value!r}: expected <clip>#<frame> or <clip>/<frame>.png of a clip in {clips.folder}"
        )
    return clip, frame


def is_cross(pair: ClipPair) -> bool:
    """Whether the pair shows two people."""
    owner = {clip: person for person, numbers in enumerate(pair.clips.people) for clip in numbers}
    return owner[pair.source_at[0]] != owner[pair.driving_at[0]]


def _pick(items: Sequence[int], generator: torch.Generator) -> int:
    return items[_draw(len(items), generator)]


def _draw(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator))
