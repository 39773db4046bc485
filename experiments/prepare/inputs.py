"""What `memcomp prepare` reads: a video, a folder of them, a folder of frames, or a metadata CSV."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from memcomp.experiments.errors import UserError, few, warn
from memcomp.experiments.prepare.metadata import Part, read_metadata
from memcomp.experiments.prepare.options import PrepareOptions
from memcomp.experiments.video import VIDEOS, ClipFolder, is_clip, pictures_in


@dataclass(frozen=True)
class Input:
    """A video or a folder of frames."""

    name: str
    """Unique among the inputs: the path within the folder of inputs, or the video's id."""
    path: Path | None
    """None = a video that is still to be downloaded."""
    person: str | None = None
    """Who it shows, None = not said."""
    parts: tuple[Part, ...] = ()
    """Its parts, if metadata name them; else heads are looked for."""
    folder: Path | None = None
    """Where it is downloaded to."""

    @property
    def video(self) -> str:
        """Name of the video in names of clips."""
        return fit_for_names(Path(self.name).stem if self.path and self.path.is_file() else Path(self.name).name)

    @property
    def anonymous(self) -> bool:
        """Whether someone is in it of whom nothing says who it is."""
        return self.person is None and (not self.parts or any(part.person is None for part in self.parts))

    def stamp(self) -> list[int]:
        """Sizes and times of what is read, by which a change is noticed."""
        if self.path is None or not self.path.exists():
            return []
        files = pictures_in(self.path) if self.path.is_dir() else [self.path]
        found = [file.stat() for file in files]
        return [len(found), sum(one.st_size for one in found), max((one.st_mtime_ns for one in found), default=0)]


def find_inputs(path: Path, options: PrepareOptions) -> tuple[list[Input], str]:
    """List the inputs, and say what tells who people are: folders, metadata, or nothing.

    Raises:
        UserError: there is nothing of use.
    """
    if path.suffix.lower() == ".csv" and not path.is_dir():
        folder = options.videos or path.parent
        videos = read_metadata(path, options.shared_people)
        known = {} if not folder.is_dir() else {one.stem: one for one in sorted(folder.iterdir()) if is_clip(one)}
        inputs = [Input(name, known.get(name), None, tuple(parts), folder) for name, parts in videos.items()]
        _different_names(inputs)
        return inputs, "metadata"
    if options.videos is not None:
        raise UserError(f"--videos {options.videos}: expected with a metadata CSV as INPUT, got {path}")
    if not path.is_dir():
        if not path.is_file() or path.suffix.lower() not in VIDEOS:
            held = "another file" if path.is_file() else "nothing"
            raise UserError(
                f"{path}: expected a video ({', '.join(VIDEOS)}), a folder, or a metadata CSV, found {held}"
            )
        return [Input(path.name, path)], ""
    if pictures_in(path):
        return [Input(os.path.basename(os.path.abspath(path)), path)], ""
    found = ClipFolder.of(path)
    if found.unused:
        warn(f"{found} of {path} not used: {few(found.unused)}")
    inputs = [
        Input(str(clip.relative_to(path)), clip, clip.parent.name if found.by_person else None) for clip in found.clips
    ]
    _different_names(inputs)
    return inputs, "folders" if found.by_person else ""


def fit_for_names(text: str) -> str:
    """A text without what separates the parts of a clip's name or its path."""
    kept = "".join("_" if sign in '#/\\:*?"<>|' or not sign.isprintable() else sign for sign in text.strip())
    return kept.lstrip(".") or "_"


def _different_names(inputs: Sequence[Input]) -> None:
    """Refuse people, or videos of one person, whose names are the same once they fit into names of files.

    Raises:
        UserError: names both.
    """
    people: dict[str, str] = {}
    for name in (person for one in inputs for person in (one.person, *(part.person for part in one.parts)) if person):
        if (other := people.setdefault(fit_for_names(name), name)) != name:
            raise UserError(f"{name!r} and {other!r}: expected people whose names differ in letters or digits")
    videos: dict[tuple[str | None, str], str] = {}
    for one in inputs:
        if (other := videos.setdefault((one.person, one.video), one.name)) != one.name:
            raise UserError(
                f"{one.path or one.name}: expected another name than {other}'s, whose clips would be called the same"
            )
