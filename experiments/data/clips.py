"""Folders of clips: videos, or folders of frames. Read through imageio (PyAV), cut to a square, resized to one size."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from memcomp.experiments.data.pairs import DamagedClip
from memcomp.experiments.errors import UserError
from memcomp.experiments.files import atomic_write

VIDEOS = (".mp4", ".mov", ".webm")
PICTURES = (".png", ".jpg", ".jpeg")


class Clips:
    """The clips of one folder (`root/train`, `root/test`), grouped by person.

    A person is the part of a clip's name before the first "#" (VoxCeleb's naming, as upstream samples) or, without
    one, before the first "_".

    Seeking in H.264 means decoding from the last key frame, so a video is decoded once, at the size that is asked for,
    into a file of raw frames in `cache`, as long as all of these stay below `cache_gb`; further videos are decoded
    every time, without being held in memory.

    Args:
        folder: of videos (.mp4, .mov, .webm) or folders of frames (.png, .jpg), or both.
        size: height and width of the frames given out.
        cache: folder for decoded frames; None = none.
        cache_gb: its size at most.

    Attributes:
        paths: of the clips, sorted by name.
        people: person → numbers of the person's clips.

    Raises:
        UserError: no such folder, or none of its entries is a clip.
    """

    def __init__(
        self, folder: str | os.PathLike[str], size: int, *, cache: Path | None = None, cache_gb: float = 4.0
    ) -> None:
        self.folder, self.size, self.cache, self.cache_bytes = Path(folder), size, cache, int(cache_gb * 1e9)
        if not self.folder.is_dir():
            raise UserError(f"{self.folder}: expected a folder of clips ({', '.join(VIDEOS)} or folders of frames)")
        self.paths = sorted(path for path in self.folder.iterdir() if _is_clip(path))
        if not self.paths:
            raise UserError(f"{self.folder}: expected clips ({', '.join(VIDEOS)} or folders of frames), found none")
        groups: dict[str, list[int]] = {}
        for number, path in enumerate(self.paths):
            groups.setdefault(person(path.name), []).append(number)
        self.people: Sequence[Sequence[int]] = list(groups.values())
        self._counts: dict[int, int] = {}
        self._damaged: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, clip: int) -> str:
        """File or folder name."""
        return self.paths[clip].name

    def count(self, clip: int) -> int:
        """Number of frames that the clip says it has.

        Raises:
            DamagedClip: it cannot be opened.
        """
        if clip not in self._counts:
            self._counts[clip] = self._guard(clip, lambda path: _count(path))
        return self._counts[clip]

    def read(self, clip: int, frames: Sequence[int]) -> Tensor:
        """Frames by number (each 0 … count - 1) → uint8 (len(frames), 3, size, size).

        Raises:
            DamagedClip: it cannot be decoded, or ends before 90 % of its frames.
        """
        count = self.count(clip)
        return self._guard(clip, lambda path: self._read(path, frames, count))

    def _guard(self, clip, work):  # type: ignore[no-untyped-def]
        path = self.paths[clip]
        if clip in self._damaged:  # do not open it again
            raise DamagedClip(self._damaged[clip])
        try:
            return work(path)
        except UserError as error:
            self._damaged[clip] = str(error)
        except Exception as error:  # every codec and plugin has exceptions of its own
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            self._damaged[clip] = f"{path}: expected a video or pictures that can be decoded ({reason})"
        raise DamagedClip(self._damaged[clip]) from None

    def _read(self, path: Path, frames: Sequence[int], count: int) -> Tensor:
        if path.is_dir():
            pictures = _pictures(path)
            return torch.stack([fit(_picture(pictures[frame]), self.size) for frame in frames])
        decoded = self._cached(path, count)
        if decoded is not None:
            _check_length(path, len(decoded), count)
            return torch.from_numpy(np.stack([decoded[min(frame, len(decoded) - 1)] for frame in frames]))
        wanted: dict[int, Tensor] = {}
        last, frame = -1, None
        for last, frame in enumerate(frames_of(path)):
            if last in frames:
                wanted[last] = fit(frame, self.size)
            if last >= max(frames):
                break
        if frame is None or last < max(frames):
            _check_length(path, last + 1, count)
            wanted[last] = fit(frame, self.size)
        return torch.stack([wanted[min(number, last)] for number in frames])

    def _cached(self, path: Path, count: int) -> np.ndarray | None:
        """The decoded frames (T, 3, size, size), mapped from the cache; None if the cache is full or not wanted."""
        if self.cache is None:
            return None
        frame_bytes = 3 * self.size**2
        status = path.stat()
        identity = f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}|{self.size}"
        file = self.cache / f"{hashlib.sha256(identity.encode()).hexdigest()[:24]}.frames"
        if not file.exists():
            self.cache.mkdir(parents=True, exist_ok=True)
            used = sum(entry.stat().st_size for entry in os.scandir(self.cache))
            if used + count * frame_bytes > self.cache_bytes:
                return None
            with atomic_write(file) as temporary, temporary.open("wb") as stream:
                for frame in frames_of(path):
                    stream.write(fit(frame, self.size).numpy().tobytes())
        return np.memmap(file, np.uint8, "r").reshape(-1, 3, self.size, self.size)


def frames_of(path: Path) -> Iterator[Tensor]:
    """Decode a video frame by frame: uint8 (3, H, W)."""
    for frame in iio.imiter(path, plugin="pyav", format="rgb24", thread_type="FRAME"):
        yield torch.from_numpy(frame).permute(2, 0, 1)


def fit(frame: Tensor, size: int) -> Tensor:
    """Cut uint8 (3, H, W) to its middle square and resize it with antialiasing → uint8 (3, size, size)."""
    height, width = frame.shape[1:]
    side = min(height, width)
    if (height, width) != (side, side):
        top, left = (height - side) // 2, (width - side) // 2
        frame = frame[:, top : top + side, left : left + side]
    if side == size:
        return frame.contiguous()
    resized = F.interpolate(frame[None].float(), (size, size), mode="bilinear", antialias=True)
    return resized[0].round().clamp(0, 255).to(torch.uint8)


def person(name: str) -> str:
    """Who a clip shows, by its name: what stands before the first "#" or, without one, the first "_"."""
    stem = Path(name).stem
    return stem.split("#" if "#" in stem else "_")[0]


def user_cache() -> Path:
    """The user's cache folder of memcomp: $MEMCOMP_CACHE or ~/.cache/memcomp."""
    return Path(os.environ.get("MEMCOMP_CACHE") or Path.home() / ".cache" / "memcomp")


def _is_clip(path: Path) -> bool:
    if path.is_dir():
        return bool(_pictures(path))
    return path.suffix.lower() in VIDEOS and not path.name.startswith(".")


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURES)


def _picture(path: Path) -> Tensor:
    return torch.from_numpy(np.array(iio.imread(path, mode="RGB"))).permute(2, 0, 1)


def _count(path: Path) -> int:
    if path.is_dir():
        return len(_pictures(path))
    said = iio.improps(path, plugin="pyav").shape[0]
    if said > 0:
        return said
    count = sum(1 for _ in frames_of(path))  # webm does not say how many frames it has
    if not count:
        raise UserError(f"{path}: expected a video, found no frames in it")
    return count


def _check_length(path: Path, found: int, count: int) -> None:
    # containers may promise a frame or two more than they hold; much more means that the end is lost
    if found < 0.9 * count or not found:
        raise UserError(f"{path}: ends after {found} of {count} frames")
