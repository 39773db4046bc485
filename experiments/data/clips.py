"""Folders of clips: videos, or folders of frames, cut to their middle square and resized to one size."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import get_worker_info

from memcomp.experiments.data.cache import keep
from memcomp.experiments.data.pairs import DamagedClip
from memcomp.experiments.errors import UserError, few, warn
from memcomp.experiments.video import (
    DECODER_VERSION,
    FOLDER_RATE,
    BrokenOff,
    ClipFolder,
    Frame,
    FrameList,
    Frames,
    pictures_in,
    read_picture,
    sought,
)

SHORTEST = 0.9  # a video that breaks off before this share of its promised frames is damaged

T = TypeVar("T")


class Clips:
    """The clips of one folder (`root/train`, `root/test`), grouped by person.

    A clip is a video, by its suffix, or a folder of pictures, which are its frames in the order of the numbers in their
    names; names that begin with a dot are passed over (see `ClipFolder`). Clips lie in the folder itself, and then the
    person is the part of a clip's name before the first "#" (VoxCeleb's naming, as upstream samples) or, without one,
    before the first "_"; or they lie one level deeper, PERSON/CLIP, in a folder that is named for the person. What is
    not used is told in one warning.

    A video is decoded once, at the size that is asked for, into a file of raw frames in `cache`, as long as all of them
    stay below `cache_gb`. Of further videos the frames asked for are decoded every time, from the key frame before each
    (see `memcomp.experiments.video.seeking`) or, where that is not sure, from the first frame on. No clip is ever held
    in memory.

    Args:
        folder: of clips, or of people's folders of clips.
        size: height and width of the frames given out.
        cache: folder for decoded frames; None = none.
        cache_gb: its size at most.
        paths: the clips, if they are not all those in `folder`; more can be added.

    Attributes:
        paths: of the clips, sorted by name unless given.
        people: person → numbers of the person's clips.
        owners: of each clip, the name of the person.

    Raises:
        UserError: no such folder, it holds no clips, or both of clips and people.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        size: int,
        *,
        cache: Path | None = None,
        cache_gb: float = 4.0,
        paths: Sequence[Path] | None = None,
    ) -> None:
        self.folder, self.size, self.cache, self.cache_bytes = Path(folder), size, cache, int(cache_gb * 1e9)
        self.paths: list[Path] = []
        self.owners: list[str] = []
        self.people: Sequence[Sequence[int]] = []
        self._groups: dict[str, list[int]] = {}
        self._above: list[str] = []  # what stands before the name of a clip in a person's folder
        found = ClipFolder.of(self.folder) if paths is None else ClipFolder(paths, by_person=False, unused=())
        for path in found.clips:
            self.add(path, path.parent.name if found.by_person else None)
        if found.unused:
            warn(f"{found} of {folder} not used: {few(found.unused)}")
        self._counts: dict[int, int] = {}
        self._lists: dict[Path, FrameList] = {}
        self._uncached: set[Path] = set()  # found no room in the cache
        self._said_full = False
        self._damaged: dict[int, str] = {}
        self._notes: dict[int, str] = {}
        self._pictures: dict[Path, list[Path]] = {}

    def __len__(self) -> int:
        return len(self.paths)

    def add(self, path: Path, owner: str | None = None) -> int:
        """Add a clip of a person, whom its name tells unless `owner` does; returns its number."""
        number = len(self.paths)
        self.paths.append(path)
        self._above.append("" if owner is None else f"{path.parent.name}/")
        who = owner or person(path)
        self.owners.append(who)
        if who not in self._groups:
            self._groups[who] = []
            self.people = list(self._groups.values())
        self._groups[who].append(number)
        return number

    def name(self, clip: int) -> str:
        """File or folder name of a clip, after the person's where that is a folder."""
        return self._above[clip] + self.paths[clip].name

    def label(self, clip: int) -> str:
        """As `name`, but without suffix; CelebV's clips, `<person>/Image`, by the person alone."""
        path = self.paths[clip]
        return label(path) if path.name == "Image" else self._above[clip] + path.stem

    def pictures(self, clip: int) -> list[str]:
        """File names of the frames of a clip that is a folder."""
        return [path.name for path in self._pictures_of(self.paths[clip])]

    def notes(self, clip: int) -> str:
        """What reading a clip converts, in words that name it, looked up once; empty if nothing."""
        if clip not in self._notes:
            said: list[str] = []
            with suppress(UserError):
                next(iter(Frames(self.paths[clip], said.append)), None)
            self._notes[clip] = "; ".join(said)
        return self._notes[clip]

    def count(self, clip: int) -> int:
        """Number of frames that the clip shows.

        Raises:
            DamagedClip: it cannot be opened, or breaks off.
        """
        if clip not in self._counts:
            self._counts[clip] = self._guarded(clip, self._count)
        return self._counts[clip]

    def times(self, clip: int) -> list[Fraction]:
        """When each frame of a clip is shown, in seconds; those of a folder are 25 a second.

        Raises:
            DamagedClip: it cannot be opened, or breaks off.
        """
        return self._guarded(clip, self._times)

    def read(self, clip: int, frames: Sequence[int]) -> Tensor:
        """Read frames by number (each 0 … count - 1) → uint8 (len(frames), 3, size, size).

        Raises:
            DamagedClip: it cannot be decoded, or breaks off before 90 % of its frames.
        """
        count = self.count(clip)
        return self._guarded(clip, lambda path: self._read(path, frames, count))

    def _guarded(self, clip: int, work: Callable[[Path], T]) -> T:
        if clip not in self._damaged:
            try:
                return work(self.paths[clip])
            except UserError as error:
                self._damaged[clip] = str(error)  # not opened again
        raise DamagedClip(self._damaged[clip])

    def _times(self, path: Path) -> list[Fraction]:
        if path.is_dir():
            return [number / FOLDER_RATE for number in range(len(self._pictures_of(path)))]
        try:
            return Frames(path).times()
        except BrokenOff as error:
            if not _is_long_enough(error):
                raise
        return [shown.time for shown in _tolerant(Frames(path).timed())]

    def _count(self, path: Path) -> int:
        if not path.is_dir():
            with suppress(BrokenOff):  # which `times` judges
                found = Frames(path).listed()
                if found is not None:
                    self._lists[path] = found
                    return len(found.stamps)
        return len(self._times(path))

    def _pictures_of(self, path: Path) -> list[Path]:
        """List a folder's pictures, looked up once: CelebV has tens of thousands in one."""
        if path not in self._pictures:
            self._pictures[path] = pictures_in(path)
        return self._pictures[path]

    def _read(self, path: Path, frames: Sequence[int], count: int) -> Tensor:
        if path.is_dir():
            pictures = self._pictures_of(path)
            return torch.stack([self._fit(read_picture(pictures[frame])) for frame in frames])
        cached = self._cached(path, count)
        if cached is not None:
            # a decoder may give a frame or two less than a container's list has
            return torch.from_numpy(np.stack([cached[min(frame, len(cached) - 1)] for frame in frames]))
        found = self._sought(path, frames)
        return self._in_order(path, frames) if found is None else found

    def _sought(self, path: Path, frames: Sequence[int]) -> Tensor | None:
        """Read frames of a video by seeking; None, and never tried again, where that is not sure."""
        found = self._lists.get(path)
        if found is None or max(frames) >= len(found.stamps):
            return None
        pictures = sought(path, set(frames), found)
        if pictures is None:
            del self._lists[path]
            return None
        return torch.stack([self._fit(pictures[frame]) for frame in frames])

    def _in_order(self, path: Path, frames: Sequence[int]) -> Tensor:
        kept: dict[int, Tensor] = {}
        number = -1
        for number, draw in enumerate(_tolerant(Frames(path).undrawn())):
            latest = draw
            if number in frames:
                kept[number] = self._fit(draw())
            if number >= max(frames):
                break
        if number < max(frames):
            kept[number] = self._fit(latest())
        return torch.stack([kept[min(frame, number)] for frame in frames])

    def _cached(self, path: Path, count: int) -> np.ndarray | None:
        """Map the decoded frames (T, 3, size, size) from the cache; None if it is full, not wanted or not writable."""
        if self.cache is None:
            return None
        frame_bytes, status = 3 * self.size**2, path.stat()
        identity = f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}|{self.size}|{DECODER_VERSION}"
        file = self.cache / f"{hashlib.sha256(os.fsencode(identity)).hexdigest()[:24]}.frames"
        if not file.exists():
            if path in self._uncached:
                return None
            used = sum(map(_size, self.cache.glob("*.frames")))
            if used + count * frame_bytes > self.cache_bytes:
                self._uncached.add(path)
                self._say_full(count * frame_bytes)
                return None
            if not keep(file, partial(self._decode, path)):
                return None
        return np.memmap(file, np.uint8, "r").reshape(-1, 3, self.size, self.size)

    def _say_full(self, clip_bytes: int) -> None:
        """Say once that the cache is full, and the size that all clips would need, by the mean of those met so far."""
        worker = get_worker_info()
        if self._said_full or self.cache_bytes == 0 or (worker is not None and worker.id != 0):
            return  # said, meant so, or for the first worker to say
        self._said_full = True
        known = [3 * self.size**2 * count for count in self._counts.values()] or [clip_bytes]
        need, given = len(self) * sum(known) / len(known) / 1e9, self.cache_bytes / 1e9
        warn(
            f"{self.cache}: the cache of decoded frames is full; the {len(self)} clips of {self.folder} need about "
            f"{need:.2g} GB (data.cache_gb is {given:.2g}); what has no room is decoded every time"
        )

    def _decode(self, path: Path, file: Path) -> None:
        with file.open("wb") as stream:
            for frame in _tolerant(Frames(path)):
                stream.write(self._fit(frame).numpy().tobytes())

    def _fit(self, frame: Frame) -> Tensor:
        return fit(torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1), self.size)


def fit(frame: Tensor, size: int) -> Tensor:
    """Cut uint8 (3, H, W) to its middle square and resize it with antialiasing → uint8 (3, size, size)."""
    height, width = frame.shape[1:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    frame = frame[:, top : top + side, left : left + side]
    if side == size:
        return frame.contiguous()
    resized = F.interpolate(frame[None].float(), (size, size), mode="bilinear", antialias=True)
    return resized[0].round().to(torch.uint8)


def label(path: Path) -> str:
    """Label a clip by its name without suffix; CelebV's, `<person>/Image`, by the person."""
    return path.parent.name if path.name == "Image" else path.stem


def person(path: Path) -> str:
    """Name the person that a clip shows, by its label: what stands before the first "#" or, without one, the first "_".

    Not so in CelebV, where the label is the person.
    """
    name = label(path)
    return name if path.name == "Image" else name.split("#" if "#" in name else "_")[0]


def held_out_folder(root: Path) -> Path:
    """Where clips below `root` are that training does not see: its test/, or itself where nothing is split."""
    split = any((root / name).is_dir() for name in ("train", "test"))
    return root / "test" if split else root


def warn_of_conversions(notes: Iterable[str]) -> None:
    """Warn once of all clips that reading converted: see `Clips.notes`."""
    if found := sorted(set(notes) - {""}):
        warn(f"{len(found)} {'clip was' if len(found) == 1 else 'clips were'} converted: {few(found, '; ')}")


def _tolerant(frames: Iterable[T]) -> Iterator[T]:
    """Iterate over a video's frames; one that breaks off near its end just ends."""
    try:
        yield from frames
    except BrokenOff as error:
        if not _is_long_enough(error):
            raise


def _is_long_enough(error: BrokenOff) -> bool:
    return error.shown >= SHORTEST * error.promised


def _size(file: Path) -> int:
    """Bytes of a file; 0 if another process has just renamed it: the cache may pass its limit by a clip."""
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0
