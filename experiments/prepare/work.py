"""One input made into clips: looked through once for heads, read again to be cropped."""

from __future__ import annotations

import shutil
from collections.abc import Generator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from memcomp.experiments.backends.base import Backend, NotFound
from memcomp.experiments.errors import CannotWrite, UserError
from memcomp.experiments.files import atomic_write, writable_folder
from memcomp.experiments.prepare.boxes import Box, Square, square_around, union_of
from memcomp.experiments.prepare.follow import WINDOW, Follower, by_clock
from memcomp.experiments.prepare.inputs import Input
from memcomp.experiments.prepare.metadata import download
from memcomp.experiments.prepare.options import PrepareOptions
from memcomp.experiments.prepare.segments import Stretch, stretches
from memcomp.experiments.video import BrokenOff, Frame, Frames, write_video

LOOKS = 3  # pictures of each clip on the contact sheet
LOOK_SIZE = 96  # their side
CODED = 5  # pictures of each clip by which its person is told
NO_SQUARE = "no square in the picture holds the boxes"


@dataclass
class Piece:
    """A stretch of an input, and the square that was cropped of it."""

    first: int
    end: int
    why: str
    square: Square | None = None
    """None = left out."""
    boxes: list[Box] = field(default_factory=list)
    """Of heads that were followed, one for each picture."""
    person: str | None = None
    partition: str | None = None
    code: list[float] | None = None
    """Identity code, where the input does not say who it is."""
    number: int = 0
    """Among the input's pieces: rows of metadata may show two people at the same time."""
    named_end: int | None = None
    """What metadata give as its end, for its name; None = no metadata do."""


@dataclass
class Result:
    """What became of an input."""

    frames: int = 0
    size: tuple[int, int] = (0, 0)
    """Width and height of its pictures."""
    failed: str = ""
    """Why it could not be read at all, or not to its end."""
    pieces: list[Piece] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """As `from_json` reads it; without the boxes, which nothing asks for later."""
        return {**vars(self), "pieces": [{**vars(one), "boxes": []} for one in self.pieces]}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Result:
        """Read what `as_json` wrote."""
        pieces = [Piece(**{**one, "square": one["square"] and Square(*one["square"])}) for one in content["pieces"]]
        return cls(**{**content, "size": tuple(content["size"]), "pieces": pieces})


@dataclass(frozen=True)
class Tools:
    """What each process works with."""

    heads: Backend | None
    """None = nothing has to be found."""
    identity: Backend | None
    """None = nobody has to be told apart."""


def clip_file(folder: Path, piece: Piece) -> Path:
    """Where the clip of a piece waits for its person."""
    return folder / f"{piece.number:04d}#{piece.first:06d}#{piece.end - 1:06d}.mp4"


def look_file(folder: Path, piece: Piece) -> Path:
    """Where some of its pictures, side by side, wait for the contact sheet."""
    return clip_file(folder, piece).with_suffix(".png")


def fetched(one: Input, folder: Path) -> Path:
    """Where an input is, after it was downloaded if need be.

    Raises:
        UserError: it can be neither found nor downloaded.
    """
    return one.path or download(one.name, writable_folder(one.folder or folder))


def prepare_input(one: Input, path: Path, folder: Path, options: PrepareOptions, tools: Tools) -> Result:
    """Write the clips of an input, which is at `path`, into a folder of its own, which is emptied before.

    Raises:
        CannotWrite: the disk is full, or refuses.
    """
    if folder.exists():
        shutil.rmtree(folder)
    result = Result()
    try:
        if one.parts:
            _take_parts(one, path, options, result)
        else:
            _find_segments(path, options, tools, result)
        for number, piece in enumerate(result.pieces):
            piece.number = number
        if any(piece.square for piece in result.pieces):
            _write(path, folder, options, tools, result)
    except CannotWrite:
        raise
    except UserError as error:
        result.failed, result.pieces = str(error), []
    result.failed = result.failed.replace(str(path), one.name)
    return result


def _read(path: Path, rate: Fraction, result: Result) -> Generator[Frame, None, None]:
    """The pictures of an input by the clock; one that breaks off just ends, and is said to."""
    result.frames = 0
    try:
        for picture in by_clock(Frames(path).timed(), rate):
            if result.frames == 0:
                result.size = picture.shape[1], picture.shape[0]
            if (picture.shape[1], picture.shape[0]) != result.size:
                raise UserError(f"{path}: frame {result.frames} is of another size than the first")
            result.frames += 1
            yield picture
    except BrokenOff as error:
        result.failed = str(error)


def _find_segments(path: Path, options: PrepareOptions, tools: Tools, result: Result) -> None:
    assert tools.heads is not None
    follow = Follower(tools.heads, options.least, options.every)
    seen = [follow(picture) for picture in _read(path, Fraction(options.rate), result)]
    for stretch in stretches(seen, options):
        result.pieces.append(_piece(stretch, options, result.size))


def _piece(stretch: Stretch, options: PrepareOptions, size: tuple[int, int]) -> Piece:
    if not stretch.boxes:
        return Piece(stretch.first, stretch.end, stretch.why)
    square = square_around(union_of(stretch.boxes), options.increase, *size)
    why = f"ended by: {stretch.why}" if square else NO_SQUARE
    return Piece(stretch.first, stretch.end, why, square, stretch.boxes)


def _take_parts(one: Input, path: Path, options: PrepareOptions, result: Result) -> None:
    """The parts that metadata name, their boxes as they are."""
    rate = Fraction(options.rate)
    for _ in _read(path, rate, result):  # to know how many there are, and where they break off
        pass
    width, height = result.size
    for part in sorted(one.parts, key=lambda part: (part.start, part.line)):
        first, end = round(part.start * rate), round(part.end * rate)
        last = min(end, result.frames)
        box = Box(part.box.left * width, part.box.top * height, part.box.right * width, part.box.bottom * height)
        square = square_around(box.within(width, height), 0.0, width, height)
        for begin in range(first, max(last, first + 1), options.max_frames):
            stop = max(min(begin + options.max_frames, last), begin)
            why = f"line {part.line}" + f", which ends at {end}: the video has {last} frames" * (last < end)
            short = stop - begin < options.min_frames
            if short:
                why = f"shorter than {options.min_frames} frames, {why}"
            piece = Piece(begin, stop, why if square or short else NO_SQUARE, None if short else square)
            piece.person, piece.partition = part.person, part.partition
            piece.named_end = end if stop == last else stop
            result.pieces.append(piece)


def _write(path: Path, folder: Path, options: PrepareOptions, tools: Tools, result: Result) -> None:
    """Read the input once more and write its clips, several at once where they overlap."""
    writable_folder(folder)
    waiting = sorted((piece for piece in result.pieces if piece.square), key=lambda piece: piece.first)
    open_now: list[_Clip] = []
    with ExitStack() as stack:
        frames = _read(path, Fraction(options.rate), Result(size=result.size))
        for number, picture in enumerate(frames):
            while waiting and waiting[0].first == number:
                piece = waiting.pop(0)
                open_now.append(
                    _Clip(stack.enter_context(ExitStack()), piece, clip_file(folder, piece), options, tools)
                )
            for clip in open_now:
                clip.add(number, picture)
            for clip in [clip for clip in open_now if number + 1 == clip.piece.end]:
                clip.finish(look_file(folder, clip.piece))
                open_now.remove(clip)
            if not waiting and not open_now:
                break
        frames.close()
        if waiting or open_now:
            raise UserError(f"{path}: read for a second time, it ends earlier")


class _Clip:
    """A clip while it is written, with what is kept of it for the contact sheet and for telling its person."""

    def __init__(self, stack: ExitStack, piece: Piece, file: Path, options: PrepareOptions, tools: Tools) -> None:
        self.piece, self._stack, self._size, self._tools = piece, stack, options.size, tools
        rate = Fraction(options.rate)
        self._append = stack.enter_context(write_video(file, rate, key_frames=options.key_frames, threads=1))
        self._looked = _spread(piece, LOOKS)
        self._coded = _spread(piece, CODED) if tools.identity and piece.person is None else []
        self._looks: list[Frame] = []
        self._faces: list[Frame] = []

    def add(self, number: int, picture: Frame) -> None:
        """Crop the picture and append it."""
        assert self.piece.square is not None
        x, y, side = self.piece.square
        crop = Image.fromarray(np.ascontiguousarray(picture[y : y + side, x : x + side]))
        small = crop.resize((self._size, self._size), Image.Resampling.BICUBIC)
        self._append(np.asarray(small))
        if number in self._looked:
            self._looks.append(np.asarray(small.resize((LOOK_SIZE, LOOK_SIZE), Image.Resampling.BICUBIC)))
        if number in self._coded:
            self._faces.append(self._around(number, picture))

    def finish(self, look: Path) -> None:
        """Close the file, keep the looks, and tell the person's code."""
        self._stack.close()
        with atomic_write(look) as temporary:
            Image.fromarray(np.concatenate(self._looks, 1)).save(temporary, "png")
        if self._tools.identity and self._faces:
            codes = [code for code in self._tools.identity(self._faces) if not isinstance(code, NotFound)]
            self.piece.code = [round(x, 6) for x in np.mean(codes, 0).tolist()] if codes else None

    def _around(self, number: int, picture: Frame) -> Frame:
        """The head with what is around it: a detector needs more than its crop."""
        boxes, square = self.piece.boxes, self.piece.square
        assert square is not None
        x, y, side = square
        box = boxes[number - self.piece.first] if boxes else Box(x, y, x + side, y + side)
        dx, dy = (WINDOW - 1) / 2 * box.width, (WINDOW - 1) / 2 * box.height
        wide = Box(box.left - dx, box.top - dy, box.right + dx, box.bottom + dy)
        left, top, right, bottom = (round(edge) for edge in wide.within(picture.shape[1], picture.shape[0]))
        return np.ascontiguousarray(picture[top:bottom, left:right])


def _spread(piece: Piece, count: int) -> Sequence[int]:
    """Some pictures of a piece, evenly spread, each once."""
    return sorted({piece.first + (2 * k + 1) * (piece.end - piece.first) // (2 * count) for k in range(count)})
