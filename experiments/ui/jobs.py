"""What one click on Animate does: a picture and a clip in, videos of each chosen host out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from memcomp.experiments.animation import Animator, Motion
from memcomp.experiments.animation.square import Square, find_square
from memcomp.experiments.animation.track import Track
from memcomp.experiments.data.batching import batched
from memcomp.experiments.errors import UserError, counted
from memcomp.experiments.files import untaken
from memcomp.experiments.output.figures import caption
from memcomp.experiments.ui.limits import Limits
from memcomp.experiments.ui.models import Choice
from memcomp.experiments.video import Frame, Timetable, even, keep_audio, rate_of, to_frame, write_frames

BATCH = 8  # frames generated at once
SOURCE = 480  # pixels, at least, of the source as it is shown: browsers leave pictures small, and enlarge videos
TITLE_WIDTH = 9  # pixels of a column for each letter of its title
TOGETHER = "side_by_side"  # name of the file with all beside each other
SYNTHETIC = "synthetic: made by memcomp ui"
ANOTHER = "bring another, or leave 'find the face in both' out"  # what to do about a picture without one face
Report = Callable[[int, int, str], None]


class Stopped(Exception):
    """The page was closed while its job ran."""


@dataclass(frozen=True)
class Order:
    """What a job is asked for."""

    source: Path
    """Picture."""
    driving: Path
    """Video."""
    choices: tuple[Choice, ...]
    """Hosts to move it with."""
    motion: Motion = field(default_factory=Motion)
    best_frame: bool = True
    """Let relative motion count from the driving frame most like the source, not from the first."""
    smooth: float = 0
    """Seconds over which the driving keypoints are averaged; 0 = not."""
    crop: bool = False
    """Take the square around the face, found in both; otherwise the largest centred one."""


@dataclass(frozen=True)
class Clip:
    """A driving clip that was read: a few seconds of small pictures.

    Attributes:
        pictures: height and width → its frames, (size, size, 3) uint8.
        times: seconds from the first frame, and how long each lasts.
        start: time of the first frame on the file's clock.
        broken: why there is no more, if the file breaks off.
    """

    pictures: dict[int, list[Frame]]
    times: list[tuple[Fraction, Fraction]]
    start: Fraction
    broken: str | None

    def poses(self, size: int) -> list[Tensor]:
        """Its frames as a host takes them, (3, size, size) in [0, 1] each."""
        return [_tensor(picture) for picture in self.pictures[size]]


@dataclass(frozen=True)
class Moved:
    """The source moved by one host.

    Attributes:
        choice: the host.
        source: what it was given of the picture, (3, H, W) in [0, 1].
        motion: how motion was transferred.
        track: keypoints of the driving clip.
        reference: the frame that relative motion counts from.
        video: file for a browser.
        download: file to keep.
    """

    choice: Choice
    source: Tensor
    motion: Motion
    track: Track
    reference: int
    video: Path
    download: Path


@dataclass(frozen=True)
class Result:
    """What a job made.

    Attributes:
        source: the square of the picture.
        driving: the squares of the clip, for a browser.
        moved: one for each host.
        together: all beside each other, to keep.
        words: what to say of it.
    """

    source: Path
    driving: Path
    moved: tuple[Moved, ...]
    together: Path
    words: str

    def remembering(self) -> Moved | None:
        """The last one whose memory acted."""
        return next((moved for moved in reversed(self.moved) if moved.choice.memory), None)


def run_job(
    order: Order,
    limits: Limits,
    folder: Path,
    report: Report = lambda done, total, what: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Result:
    """Move a picture with every chosen host, and write what a page shows.

    Args:
        order: what is asked for.
        limits: what files may be.
        folder: to write into.
        report: told frames done, frames of all, and of what.
        stopped: whether to give up.

    Raises:
        UserError: a file that cannot be used; what a host refuses.
        Stopped: it was told to.
    """
    for choice in order.choices:
        order.motion.check(choice.model.host)
    frame = limits.picture(order.source)
    square = _square(order.source, frame, order)
    sizes = sorted({choice.model.size for choice in order.choices})
    clip = read_clip(order, limits, sizes, stopped)
    writer = _Writer(order, clip, folder)
    made, columns, files = list[Moved](), list[list[Frame]](), [TOGETHER]
    for number, choice in enumerate(order.choices):
        picture = square.cut(frame, choice.model.size)

        def noted(done: int, name: str = choice.name, before: int = number) -> None:
            report(before * len(clip.times) + done, len(order.choices) * len(clip.times), name)
            if stopped():
                raise Stopped

        track, reference, results = _move(choice, picture, clip, order, noted)
        # one of the videos that play together has the sound
        last = number == len(order.choices) - 1
        video = writer.write(f"result_{number}.webm", results, sound=last)
        files.append(untaken(_file_name(choice.name), files))
        download = writer.write(f"{files[-1]}.mp4", results, sound=True)
        made.append(Moved(choice, picture, order.motion, track, reference, video, download))
        columns.append(results)
    shown = folder / "source.png"
    Image.fromarray(to_frame(square.cut(frame, max(SOURCE, sizes[-1])))).save(shown)
    driving = writer.write("driving.webm", clip.pictures[sizes[-1]], sound=False)
    titles = ["source", "driving", *(choice.name for choice in order.choices)]
    still = [to_frame(square.cut(frame, sizes[-1]))] * len(clip.times)
    beside = _beside([still, clip.pictures[sizes[-1]], *columns], titles)
    together = writer.write(f"{TOGETHER}.mp4", beside, sound=True)
    return Result(shown, driving, tuple(made), together, _words(clip, made, order, sound=writer.sound))


def read_clip(order: Order, limits: Limits, sizes: Sequence[int], stopped: Callable[[], bool]) -> Clip:
    """Read a driving clip and cut its squares, once for all hosts.

    Raises:
        UserError: it cannot be used.
        Stopped: it was told to.
    """
    table, square = Timetable(), None
    pictures: dict[int, list[Frame]] = {size: [] for size in sizes}
    times: list[tuple[Fraction, Fraction]] = []
    for frame in table.pictures(limits.clip(order.driving)):
        if stopped():
            raise Stopped
        if square is None:
            square = _square(order.driving, frame, order)
        for size in sizes:
            pictures[size].append(to_frame(square.cut(frame, size)))
        times.append(table.next())
    if not times:
        raise UserError(f"{order.driving}: expected a video, it holds no frame")
    return Clip(pictures, times, table.start, str(table.broken) if table.broken else None)


def _square(path: Path, frame: Frame, order: Order) -> Square:
    if not order.crop:
        return Square.centred(frame)
    return find_square(path, frame, "auto", numbered=False, otherwise=ANOTHER)


def _move(
    choice: Choice, picture: Tensor, clip: Clip, order: Order, noted: Callable[[int], None]
) -> tuple[Track, int, list[Frame]]:
    """Keypoints of the clip, the frame that motion counts from, and what the host makes of the picture."""
    poses, results = clip.poses(choice.model.size), list[Frame]()
    with choice.acting() as host:
        animator = Animator(host, picture, order.motion)
        found = [animator.detect(group).to("cpu") for group in batched(poses, BATCH)]
        track = Track(found, [float(time) for time, _ in clip.times])
        if order.smooth > 0:
            track.smooth(order.smooth)
        counts = order.best_frame and order.motion.mode == "relative"
        reference = track.best_frame(animator.keypoints) if counts else 0
        for first in range(0, len(poses), BATCH):
            noted(first)
            moved = track.keypoints(first, min(first + BATCH, len(poses)))
            made = animator.render(moved, track.keypoints(reference), f"the driving clip's frame {reference}")
            results += [to_frame(one) for one in made]
    noted(len(poses))
    return track, reference, results


class _Writer:
    """Writes videos at the times of a clip, with its sound."""

    def __init__(self, order: Order, clip: Clip, folder: Path) -> None:
        self.order, self.clip, self.folder = order, clip, folder
        self.sound = False  # whether the last video that was to have sound has it
        self.rate = rate_of([float(time) for time, _ in clip.times])

    def write(self, name: str, frames: Sequence[Frame], *, sound: bool) -> Path:
        path = self.folder / name
        with write_frames(path, self.rate, SYNTHETIC) as append:
            for frame, (time, lasts) in zip(frames, self.clip.times, strict=True):
                append(even(frame), time, lasts)
        if sound:
            end = append.end if self.clip.broken else None
            self.sound = keep_audio(path, self.order.driving, path, self.clip.start, end)
        return path


def _beside(columns: Sequence[Sequence[Frame]], titles: Sequence[str]) -> list[Frame]:
    """Videos beside each other, as large as the largest, or as their titles need."""
    side = max([max(len(column[0]) for column in columns), *(TITLE_WIDTH * len(title) for title in titles)])
    side += side % 2
    head = torch.from_numpy(caption(titles, side).copy())
    frames = []
    for row in zip(*columns, strict=True):
        shown = [F.interpolate(_tensor(one)[None], (side, side), mode="bilinear", antialias=True)[0] for one in row]
        body = torch.from_numpy(to_frame(torch.cat(shown, dim=-1)))
        frames.append(torch.cat([head, body]).numpy())
    return frames


def _tensor(picture: Frame) -> Tensor:
    return torch.from_numpy(picture.copy()).permute(2, 0, 1).float() / 255


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name)


def _words(clip: Clip, made: Sequence[Moved], order: Order, *, sound: bool) -> str:
    count = len(clip.times)
    heard = "with the clip's sound" if sound else "without sound: the clip has none that can be read"
    lines = [f"{counted(count, 'frame')} in {float(clip.times[-1][0] + clip.times[-1][1]):.2f} s, {heard}"]
    if order.motion.mode == "relative" and order.best_frame:
        frames = {f"frame {one.reference} ({float(one.track.times[one.reference]):.2f} s)" for one in made}
        lines.append(f"motion counts from {' and '.join(sorted(frames))}, most like the source")
    if clip.broken:
        lines.append(f"incomplete: {clip.broken}")
    return "; ".join([*lines, "synthetic, and its files say so"])


def of_rendered_heads(folder: Path, seed: int, size: int) -> tuple[Path, Path]:
    """Write a picture of one procedural head and a clip of another, to try a page with nobody's face.

    Args:
        folder: to write into.
        seed: which heads.
        size: height and width, an even number of pixels.

    Returns:
        the picture and the clip.
    """
    from memcomp.experiments.data.heads import Poses
    from memcomp.experiments.data.heads_set import HeadsSet

    heads = HeadsSet("test", 2, 50, size, seed)
    picture, clip = folder / "rendered_head.png", folder / "rendered_clip.mp4"
    Image.fromarray(to_frame(heads.render(heads.identity(0), Poses.make())[0])).save(picture)
    with write_frames(clip, Fraction(25), "rendered by memcomp heads") as append:
        for one in heads.render(heads.identity(1), heads.poses(1)):
            append(to_frame(one))
    return picture, clip
