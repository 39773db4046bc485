"""Files that break off: a download or a recording that was interrupted."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

from memcomp.experiments.errors import UserError

# what an AVI says that was written into a pipe, where its header cannot be filled in afterwards
ENDLESS = 1 << 30  # frames
UNKNOWN = (1 << 32) - 1  # bytes


class BrokenOff(UserError):
    """A video ends before what it promises.

    Attributes:
        shown: whole frames that it holds.
        promised: frames that it should hold, as far as it says.
    """

    def __init__(self, path: Path, shown: int, promised: int | None, reason: str = "") -> None:
        self.shown, self.promised = shown, max(promised or 0, shown + 1)
        whole = f"{self.promised} frames" if promised else f"{self.promised} frames or more"
        super().__init__(f"{path}: damaged after frame {shown - 1}, {shown} of {whole}" + f" ({reason})" * bool(reason))


def promised_frames(container: Any, stream: Any) -> int | None:
    """How many frames a file says it shows; None if it does not say, as transport streams and fragments do not."""
    movie, entries = container.format.name.startswith("mov,"), getattr(stream, "index_entries", None)
    if container.format.name == "mpegts" or (movie and not stream.frames):
        return None
    if movie and entries:  # what its edit list has left
        return sum(not entry.is_discard for entry in entries)
    if stream.frames and not movie:
        return None if stream.frames >= ENDLESS else int(stream.frames)
    duration = stream.duration * stream.time_base if stream.duration else Fraction(container.duration or 0, 1_000_000)
    return round(duration * (stream.average_rate or 0)) or None


def breaks_off(path: Path, form: str) -> bool:
    """Whether the file's own structure goes on beyond its end.

    Args:
        path: file.
        form: libavformat's name of the container.
    """
    with path.open("rb") as file:
        return broken_off(file, path.stat().st_size, form)


def broken_off(file: BinaryIO, size: int, form: str) -> bool:
    """Whether what an open file of so many bytes says of its structure goes on beyond them; see `breaks_off`."""
    if form.startswith("mov,"):
        return _boxes_end(file, size) > size
    if form.startswith("matroska"):
        return _segment_end(file) > size
    if form == "avi":
        head = file.read(8)
        return size < int.from_bytes(head[4:], "little") + 8 < UNKNOWN
    if form == "mpegts":
        return size % 188 != 0 and size % 192 != 0 and size % 204 != 0
    if form == "gif":
        file.seek(max(0, size - 16))
        return b";" not in file.read()
    return False


def lacks_index(path: Path) -> bool:
    """Whether it is an mp4 file that broke off before its index was written, without which nothing can be read."""
    with path.open("rb") as file:
        head = file.read(12)
        return head[4:8] == b"ftyp" and _boxes_end(file, path.stat().st_size) >= path.stat().st_size


def _boxes_end(file: BinaryIO, size: int) -> int:
    """Where the last box of an mp4 file ends."""
    place = 0
    while place + 8 <= size:
        file.seek(place)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:], "big")
        if length < 8:  # to the end of the file, or no box at all
            return size
        place += length
    return place


def _segment_end(file: BinaryIO) -> int:
    """Where the segment of a Matroska file ends; 0 if it does not say."""
    file.seek(4)
    file.seek(_number(file) or 0, 1)  # over the header
    if file.read(4) != b"\x18\x53\x80\x67":
        return 0
    length = _number(file)
    return 0 if length is None else file.tell() + length


def _number(file: BinaryIO) -> int | None:
    """Read an EBML number; None = unknown."""
    first = (file.read(1) or b"\xff")[0]
    more = 8 - first.bit_length()
    value = int.from_bytes(bytes([first & (0x7F >> more)]) + file.read(more), "big")
    return None if value == (1 << 7 * (more + 1)) - 1 else value
