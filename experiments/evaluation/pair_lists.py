"""Lists of pairs: CSV files that name frames, ours or upstream's, read against what is on this disk.

A row has `source`, `driving` and, if it is known, `best_frame` or `frame`: the driving clip's frame that is most like
the source. A value is one of

- `<clip>#<frame>`, frames from 0;
- `<clip>/<picture>`: a picture of a clip that is a folder, or, if the clip is a video here, the frame of that number
  (`0000075.png`, as in the lists of MCNet and DaGAN for VoxCeleb1 and CelebV);
- `<clip>`: a whole clip, of which the source is the first frame and the driving frame the one that `frame` numbers.

Whatever folders stand before it on somebody else's machine, a clip is looked for by the end of its path. Whom it shows
is told by the folder in which it is found, PERSON/CLIP, or, directly in test/, train/ or their root, by its name.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from memcomp.experiments.data.clips import Clips, person
from memcomp.experiments.data.heads_set import EvalPairs, HeadsSet
from memcomp.experiments.errors import UserError, few
from memcomp.experiments.evaluation.clip_pairs import ClipPair, Place
from memcomp.experiments.files import NAMES, atomic_write, existing_file
from memcomp.experiments.video import PICTURES, VIDEOS, is_clip

T = TypeVar("T")
Row = Mapping[str, str]  # column → value; a cell that the line lacks is not there


class Missing(UserError):
    """A row names a clip or a frame that is not on this disk."""


@dataclass
class ListReport:
    """What became of the rows of lists; the lines name file, line and what was expected."""

    rows: int = 0
    pairs: int = 0
    missing: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        text = f"Lists of pairs: {self.pairs} of {self.rows} rows taken"
        kinds = ((self.missing, "missing on disk"), (self.unreadable, "unreadable"))
        for lines, kind in kinds:
            text += f"; {len(lines)} {kind}" + (f" ({few(lines, '; ')})" if lines else "")
        return text + "."


def read_list(path: Path, pair: Callable[[Row], T], count: int | None, report: ListReport) -> list[T]:
    """The usable rows of a list, the first `count` of them; all rows are looked at.

    Args:
        path: of a CSV file with columns `source`, `driving`; each line is a row.
        pair: makes a pair of a row.
        count: pairs at most; None = all.
        report: is added to.

    Raises:
        UserError: no such file, a column is missing, or no row is usable.
    """
    pairs: list[T] = []
    unusable: list[str] = []
    with existing_file(path, "CSV file of pairs").open(encoding="utf-8-sig", errors=NAMES) as file:
        try:
            columns = _cells(next(file, ""))
        except UserError:
            columns = []
        for column in ("source", "driving"):
            if column not in columns:
                raise UserError(f"{path}: expected columns source, driving[, best_frame]; {column} is missing")
        for number, line in enumerate(file, 2):
            if not line.strip():
                continue
            report.rows += 1
            try:
                cells = _cells(line)
                if len(cells) > len(columns):
                    raise UserError(f"expected {len(columns)} cells at most, found {len(cells)}")
                pairs.append(pair(dict(zip(columns, cells, strict=False))))
            except UserError as error:
                undecoded = any("\udc80" <= sign <= "\udcff" for sign in line)  # nor is it the name of a clip here
                kind = report.missing if isinstance(error, Missing) and not undecoded else report.unreadable
                why = "expected text in UTF-8" if undecoded else str(error)
                unusable.append(f"{path.name}, line {number}: {why}")
                kind.append(unusable[-1])
            except OSError as error:  # such as a name that the file system does not take
                unusable.append(f"{path.name}, line {number}: {error.strerror or error}")
                report.unreadable.append(unusable[-1])
    if not pairs:
        why = "; " * bool(unusable) + few(unusable, "; ")
        raise UserError(f"{path}: expected pairs, found none{why}")
    pairs = pairs[:count]
    report.pairs += len(pairs)
    return pairs


def _cells(line: str) -> list[str]:
    if "\0" in line:
        raise UserError("expected text")
    try:
        return [cell.strip() for cell in next(csv.reader([line], strict=True), [])]
    except csv.Error as error:
        raise UserError(f"expected cells separated by commas ({error})") from None


class ListedClips:
    """Finds the frames that a list names, in clips anywhere below a folder.

    Args:
        folder: videos and folders of frames are below it; its `test/`, if it has one, is looked into first.
        size, cache, cache_gb: as `Clips`.
    """

    def __init__(self, folder: Path, size: int, *, cache: Path | None = None, cache_gb: float = 4.0) -> None:
        if not folder.is_dir():
            raise UserError(f"{folder}: expected the folder of the clips that a list names")
        self.clips = Clips(folder, size, cache=cache, cache_gb=cache_gb, paths=[])
        self._folders = [folder / "test", folder]
        self._found: dict[str, int | None] = {}
        self._frames: dict[int, dict[str, int]] = {}

    def pair(self, row: Row) -> ClipPair:
        """The frames of one row; raises `Missing`, or `UserError` where the row says something else than frames."""
        (source, first), (driving, frame) = (self._place(row, column) for column in ("source", "driving"))
        column = "best_frame" if row.get("best_frame") else "frame"
        start = 0
        if value := row.get(column):
            if (number := value.removesuffix(".0")).isdecimal():
                start = self._frame(driving, number, f"{column} {value!r}")
            else:
                clip, best = self._place(row, column)
                if clip != driving:
                    raise UserError(f"{column} {value!r}: expected a frame of the driving clip")
                start = best or 0
        return ClipPair(self.clips, (source, first or 0), (driving, start if frame is None else frame), start)

    def _place(self, row: Row, column: str) -> tuple[int, int | None]:
        """Numbers of clip and frame; no frame: the whole clip."""
        value = row.get(column, "").replace("\\", "/")
        told = f"{column} {row.get(column, '')!r}"
        expected = f"{told}: expected <clip>#<frame> or <clip>/<picture> of a clip below {self.clips.folder}"
        absent = f"{told}: no such clip below {self.clips.folder}"
        folder, _, picture = value.rpartition("/")
        if Path(picture).suffix.lower() in PICTURES:
            clip = self._clip(folder)
            if clip is None:
                raise Missing(absent)
            return clip, self._frame(clip, picture, told)
        clip = self._clip(value)
        if clip is not None:
            return clip, None
        name, _, number = value.rpartition("#")
        if Path(picture).suffix.lower() in VIDEOS:
            raise Missing(absent)
        if not name or not number.isdecimal():
            raise UserError(expected)
        clip = self._clip(name)
        if clip is None:
            raise Missing(absent)
        return clip, self._frame(clip, number, told)

    def _clip(self, name: str) -> int | None:
        if name not in self._found:
            parts = [part for part in name.split("/") if part not in ("", ".", "..")]
            first = max((i + 1 for i, part in enumerate(parts) if part[0] == "."), default=0)  # behind what is hidden
            ends = [folder.joinpath(*parts[i:]) for i in range(first, len(parts)) for folder in self._folders]
            if parts and "#" in parts[-1]:  # VoxCeleb's naming, of which `memcomp prepare` makes people's folders
                ends += [folder / person(Path(parts[-1])) / parts[-1] for folder in self._folders]
            path = next((path for path in ends if path.exists() and is_clip(path)), None)
            self._found[name] = None if path is None else self.clips.add(path, self._owner(path))
        return self._found[name]

    def _owner(self, path: Path) -> str | None:
        """The person in whose folder a clip lies; None if its name has to tell."""
        above = path.relative_to(self.clips.folder).parts[:-1]
        above = above[1:] if above[:1] in (("train",), ("test",)) else above
        if not above:
            return None
        # a folder may as well hold many people's clips in VoxCeleb's naming
        return f"{above[-1]}/{person(path)}" if "#" in path.name else above[-1]

    def _frame(self, clip: int, name: str, told: str) -> int:
        """Number of the frame that has this file name or, without one, this number."""
        stem = Path(name).stem
        number = int(stem) if stem.isdecimal() and len(stem) < 10 else None
        path, count = self.clips.paths[clip], self.clips.count(clip)
        if path.is_dir():
            if clip not in self._frames:
                names = self.clips.pictures(clip)
                self._frames[clip] = {name: i for i, name in enumerate(names)}
                if all((stem := Path(name).stem).isdecimal() for name in names):  # numbered, perhaps with gaps
                    self._frames[clip] |= {str(int(Path(name).stem)): i for i, name in enumerate(names)}
                else:
                    self._frames[clip] |= {str(i): i for i in range(count)}
            found = self._frames[clip].get(name)
            found = self._frames[clip].get(str(number)) if found is None else found
        else:
            found = number if number is not None and number < count else None
        if found is None:
            raise Missing(f"{told}: expected one of the {count} frames of {path}")
        return found


class ListedHeads:
    """Finds the frames that a list names among procedural heads: `<HeadsSet.clip_name>#<frame>`.

    The column `rate` must be the set's: with another one the same number is another pose.
    """

    def __init__(self, heads: HeadsSet) -> None:
        self.heads = heads
        self._numbers = {heads.clip_name(i): i for i in range(len(heads))}

    def pair(self, row: Row) -> tuple[int, int, int, int]:
        """An element of `EvalPairs.places`; raises `Missing`, or `UserError` where the row says something else."""
        if row.get("rate", "") != f"{self.heads.rate:g}":
            raise UserError(f"rate {row.get('rate', '')!r}: expected {self.heads.rate:g}, the recipe's data.rate")
        return self._place(row, "source") + self._place(row, "driving")

    def _place(self, row: Row, column: str) -> Place:
        name, _, frame = row.get(column, "").rpartition("#")
        clip, heads, told = self._numbers.get(name), self.heads, f"{column} {row.get(column, '')!r}"
        if not frame.isdecimal() or not name.startswith("head"):
            raise UserError(f"{told}: expected head<number>.mp4#<frame>, for the recipe's data are heads")
        if clip is None or len(frame) > 9 or int(frame) >= heads.length:
            raise Missing(
                f"{told}: expected {heads.clip_name(0)} … {heads.clip_name(len(heads) - 1)}, {heads.length} frames each"
            )
        return clip, int(frame)


def write_list(path: Path, pairs: Mapping[str, Sequence[object]]) -> None:
    """Write pairs, such as those that a seed drew, as a list that `read_list` takes on any machine.

    Args:
        path: of the CSV file.
        pairs: kind → `EvalPairs`, or `ClipPair`s, which are written relative to their folder.
    """
    header, rows = ["source", "driving", "best_frame"], []
    for chosen in pairs.values():
        if isinstance(chosen, EvalPairs):
            header, name, rate = ["source", "driving", "rate"], chosen.heads.clip_name, f"{chosen.heads.rate:g}"
            rows += [[f"{name(a)}#{s}", f"{name(b)}#{d}", rate] for a, s, b, d in chosen.places]
        for pair in () if isinstance(chosen, EvalPairs) else chosen:
            assert isinstance(pair, ClipPair)
            best = (pair.driving_at[0], pair.start)
            rows.append([_written(pair.clips, place) for place in (pair.source_at, pair.driving_at, best)])
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8", errors=NAMES) as file:
        csv.writer(file).writerows([header, *rows])


def _written(clips: Clips, place: Place) -> str:
    clip, frame = place
    name = clips.paths[clip].relative_to(clips.folder).as_posix()
    return f"{name}/{clips.pictures(clip)[frame]}" if clips.paths[clip].is_dir() else f"{name}#{frame}"
