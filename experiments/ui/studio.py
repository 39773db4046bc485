"""What a page can be asked for by many browsers at once: jobs, frames and pixels of their results."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from memcomp.experiments.animation import Motion
from memcomp.experiments.errors import UserError
from memcomp.experiments.ui.attention import (
    Look,
    farthest,
    look,
    memory_maps,
    read_pixel,
    reader_maps,
    still,
    words,
)
from memcomp.experiments.ui.jobs import Moved, Order, Report, Result, of_rendered_heads, run_job
from memcomp.experiments.ui.limits import Limits
from memcomp.experiments.ui.models import Choice
from memcomp.experiments.ui.sessions import Sessions
from memcomp.experiments.video import Frame

NONE = "none"  # in place of a second host
SMOOTHEST = 2.0  # seconds
HEADS_SIZE = 128  # pixels, at least, of rendered heads


@dataclass
class Shown:
    """What a page shows.

    Attributes:
        result: of its last job.
        folder: of its files.
        seen: the frame whose pixels can be clicked on, once there is one.
    """

    result: Result
    folder: Path
    seen: Look | None = None


@dataclass(frozen=True)
class Asked:
    """What a page asks for, as its browser says it: anything may be in it.

    Attributes:
        source, driving: paths of uploaded files.
        first, second: names of choices; the second may be `NONE`.
        motion: see `Motion`.
        best_frame, smooth, crop: see `Order`.
    """

    source: str | None
    driving: str | None
    first: str
    second: str = NONE
    motion: str = "relative"
    best_frame: bool = True
    smooth: float = 0
    crop: bool = False


@dataclass(frozen=True)
class Picked:
    """What a click on a pixel shows: files of pictures, and a table in Markdown."""

    still: Path
    memory: Path
    readers: Path
    words: str


class Studio:
    """Does what pages ask for. Several threads may call it at once.

    Args:
        choices: hosts to choose from.
        limits: what files may be.
        sessions: of the open pages.
    """

    def __init__(self, choices: Sequence[Choice], limits: Limits, sessions: Sessions[Shown]) -> None:
        self.limits, self.sessions = limits, sessions
        self.choices = {choice.name: choice for choice in choices}

    def animate(self, key: str, asked: Asked, report: Report = lambda done, total, what: None) -> Result:
        """Run a job for a page; its result takes the place of the page's last one.

        Raises:
            UserError: as `run_job`, of files by their names alone.
            Stopped: the page was closed.
        """
        order = self._order(key, asked)
        session = self.sessions.of(key)
        with session.working() as folder, _by_name(order.source, order.driving):
            result = run_job(order, self.limits, folder, report, session.gone.is_set)
            result = replace(result, words=_plain(result.words, order.driving))
            before, session.result = session.result, Shown(result, folder)
            if before is not None:
                session.drop(before.folder)
        return result

    def heads(self, key: str) -> tuple[Path, Path]:
        """Render a head and a clip of another, other ones each time, as if a page had brought them."""
        size = max(HEADS_SIZE, *(choice.model.size for choice in self.choices.values())) // 2 * 2
        return of_rendered_heads(self.sessions.of(key).new_folder(), secrets.randbelow(10_000), size)

    def usual_frame(self, key: str) -> int:
        """The frame of a result to begin with; 0 if no memory acted."""
        moved = self._shown(key).result.remembering()
        return 0 if moved is None else farthest(moved)

    def frame(self, key: str, number: int) -> Path:
        """A frame of a page's result, large enough to be clicked on.

        Raises:
            UserError: as `look`; there is no result.
        """
        shown = self._shown(key)
        shown.seen = look(self._remembering(shown), number)
        return _write(shown.folder, "frame", still(shown.seen))

    def pick(self, key: str, x: float, y: float) -> Picked:
        """What the place (x, y) of that frame reads, in [0, 1], y downwards.

        Raises:
            UserError: there is no result, no memory, or no such place.
        """
        shown = self._shown(key)
        if not (0 <= x < 1 and 0 <= y < 1):
            raise UserError("place: expected one inside of the picture")
        if shown.seen is None:
            moved = self._remembering(shown)
            shown.seen = look(moved, farthest(moved))
        seen, readings = shown.seen, read_pixel(shown.seen, x, y)
        return Picked(
            _write(shown.folder, "frame", still(seen, x, y)),
            _write(shown.folder, "memory", memory_maps(readings)),
            _write(shown.folder, "readers", reader_maps(seen, readings, x, y)),
            words(readings),
        )

    def _order(self, key: str, asked: Asked) -> Order:
        names = [name for name in (asked.first, asked.second) if name != NONE]
        for name in names:
            if name not in self.choices:
                raise UserError(f"host: expected one of {', '.join(self.choices)}, got {name!r}")
        if not 0 <= asked.smooth <= SMOOTHEST:
            raise UserError(f"smoothing: expected 0 … {SMOOTHEST:g} seconds, got {asked.smooth}")
        return Order(
            source=self.sessions.file(key, asked.source, "source picture"),
            driving=self.sessions.file(key, asked.driving, "driving clip"),
            choices=tuple(self.choices[name] for name in dict.fromkeys(names)),
            motion=Motion(asked.motion),
            best_frame=asked.best_frame,
            smooth=asked.smooth,
            crop=asked.crop,
        )

    def _shown(self, key: str) -> Shown:
        shown = self.sessions.of(key).result
        if shown is None:
            raise UserError("result: expected one to look at, there is none yet")
        return shown

    def _remembering(self, shown: Shown) -> Moved:
        moved = shown.result.remembering()
        if moved is None:
            raise UserError("memory: expected a host whose memory acts, choose one and animate again")
        return moved


def _write(folder: Path, kind: str, picture: Frame) -> Path:
    """Write a picture under a name of its own, for browsers keep what they loaded; the one before goes."""
    for before in folder.glob(f"{kind}_*.png"):
        before.unlink(missing_ok=True)
    path = folder / f"{kind}_{secrets.token_hex(4)}.png"
    Image.fromarray(picture).save(path)
    return path


def _plain(text: str, *files: Path) -> str:
    """A text that names uploaded files by their names alone."""
    for file in files:
        text = text.replace(f"{file.parent}/", "")
    return text


@contextmanager
def _by_name(*files: Path) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(_plain(str(error), *files)) from None
