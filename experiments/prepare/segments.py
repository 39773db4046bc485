"""Where segments begin and end: named policies over what each picture shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from memcomp.experiments.prepare.boxes import Box, between, iou
from memcomp.experiments.prepare.follow import Seen
from memcomp.experiments.prepare.options import PrepareOptions

END = "end of the video"


@dataclass
class Stretch:
    """Pictures `first` … `end` - 1 of a video: a segment of one head, or what is left out."""

    first: int
    end: int
    why: str
    """Which policy ended the segment, or left the pictures out."""
    boxes: list[Box] = field(default_factory=list)
    """Of a segment, one for each picture; empty = left out."""


@dataclass
class _Track:
    """A segment that is not over yet."""

    first: int
    boxes: list[Box]
    sure: int
    """The last picture of it that was looked at as a whole."""
    missing: int = 0
    """Pictures since then without the head."""

    @property
    def end(self) -> int:
        return self.first + len(self.boxes)


def _cut(track: _Track, seen: Seen, options: PrepareOptions) -> bool:
    """Another scene begins."""
    return seen.cut


def _no_face(track: _Track, seen: Seen, options: PrepareOptions) -> bool:
    """No head is seen, for longer than the gap that is bridged."""
    return not seen.boxes and track.missing >= options.gap


def _two_faces(track: _Track | None, seen: Seen, options: PrepareOptions) -> bool:
    """A second head is seen that is not too small to matter."""
    return sum(box.height >= options.least for box in seen.boxes) > 1


def _too_small(track: _Track, seen: Seen, options: PrepareOptions) -> bool:
    """The head is smaller than the least that is taken."""
    return bool(seen.boxes) and _head(seen, track.boxes[-1]).height < STILL * options.least


def _moved(track: _Track, seen: Seen, options: PrepareOptions) -> bool:
    """The head has left its first place, or jumps: perhaps it is another's."""
    if not seen.boxes:
        return False
    head = _head(seen, track.boxes[-1])
    return min(iou(head, track.boxes[0]), iou(head, track.boxes[-1])) < options.iou


POLICIES: Mapping[str, Callable[[_Track, Seen, PrepareOptions], bool]] = {
    "cut": _cut,
    "no-face": _no_face,
    "two-faces": _two_faces,
    "too-small": _too_small,
    "moved": _moved,
}
STILL = 0.85  # share of the least height below which a segment ends, so that it does not end and begin all the time
NEEDED = ("no-face",)  # cannot be ignored


def stretches(pictures: Sequence[Seen], options: PrepareOptions) -> list[Stretch]:
    """Divide a video into segments and what is left out; every picture is in one stretch.

    A segment ends by the first of `POLICIES` that says so. As a second head may be noticed only when the whole picture
    is looked at, a segment that it ends goes back to the look before.
    """
    found: list[Stretch] = []
    track: _Track | None = None
    for number, seen in enumerate(pictures):
        if track is not None:
            why = _ended_by(track, seen, options)
            if why is None:
                _go_on(track, seen, number)
                continue
            _close(found, track, why, number)
            track = None
        why = _unusable(seen, options)
        if why is None:
            head = _head(seen, None)
            track = _Track(number, [head], number)
        else:
            _leave_out(found, number, number + 1, why)
    if track is not None:
        _close(found, track, END, len(pictures))
    return [part for one in found for part in _fit(one, options)]


def _ended_by(track: _Track, seen: Seen, options: PrepareOptions) -> str | None:
    for name, ends in POLICIES.items():
        if name not in options.ignore and ends(track, seen, options):
            return name
    return None


def _unusable(seen: Seen, options: PrepareOptions) -> str | None:
    """Why no segment can begin here."""
    if not seen.boxes:
        return "no-face"
    if "two-faces" not in options.ignore and _two_faces(None, seen, options):
        return "two-faces"
    small = _head(seen, None).height < options.least
    return "too-small" if small and "too-small" not in options.ignore else None


def _head(seen: Seen, before: Box | None) -> Box:
    """The head that is followed: the one nearest to where it was, or the largest."""
    if before is None:
        return seen.boxes[0]
    return max(seen.boxes, key=lambda box: iou(box, before))


def _go_on(track: _Track, seen: Seen, number: int) -> None:
    if not seen.boxes:
        track.missing += 1
        return
    last, head, steps = track.boxes[-1], _head(seen, track.boxes[-1]), track.missing + 1
    track.boxes += [between(last, head, step / steps) for step in range(1, steps + 1)]
    track.missing = 0
    track.sure = number if seen.whole else track.sure


def _close(found: list[Stretch], track: _Track, why: str, number: int) -> None:
    """End a segment before picture `number`; what its end loses is left out."""
    if why == "two-faces":
        track.boxes = track.boxes[: track.sure + 1 - track.first]
    found.append(Stretch(track.first, track.end, why, track.boxes))
    if track.end < number:
        _leave_out(found, track.end, number, why if why == "two-faces" else "no-face")


def _leave_out(found: list[Stretch], first: int, end: int, why: str) -> None:
    if found and not found[-1].boxes and found[-1].why == why and found[-1].end == first:
        found[-1].end = end
    else:
        found.append(Stretch(first, end, why))


def _fit(one: Stretch, options: PrepareOptions) -> list[Stretch]:
    """Divide what is too long; leave out what is too short."""
    if not one.boxes:
        return [one]
    parts = []
    for first in range(one.first, one.end, options.max_frames):
        end = min(first + options.max_frames, one.end)
        why = one.why if end == one.end else f"{options.max_frames} frames"
        boxes = one.boxes[first - one.first : end - one.first]
        if end - first < options.min_frames:
            boxes, why = [], f"shorter than {options.min_frames} frames, ended by: {why}"
        parts.append(Stretch(first, end, why, boxes))
    return parts
