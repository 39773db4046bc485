"""Folders of pictures and of clips: what in them is taken, and in which order.

A clip is a file with a suffix of `VIDEOS`, or a folder of `PICTURES`. Names that begin with a dot are passed over.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from memcomp.experiments.errors import UserError, few

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
VIDEOS: tuple[str, ...] = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg")
VIDEOS += (".ts", ".mts", ".m2ts", ".wmv", ".flv", ".3gp", ".ogv", ".gif")
CLIPS = f"clips ({', '.join(VIDEOS)}, or folders of {', '.join(PICTURES)}), or a folder of such clips for each person"


@dataclass(frozen=True)
class ClipFolder:
    """The clips of a folder: CLIP, or PERSON/CLIP."""

    clips: Sequence[Path]
    """Sorted by path, character by character: what is drawn from them depends on their order."""
    by_person: bool
    """Whether each lies in its person's folder."""
    unused: Sequence[str]
    """What is no clip, as named from the folder, hidden names last."""

    @classmethod
    def of(cls, folder: Path) -> ClipFolder:
        """Look into a folder.

        Raises:
            UserError: there is none; it holds no clip, or clips beside people's folders; one in it holds videos beside
                pictures.
        """
        if not folder.is_dir():
            raise UserError(f"{folder}: expected a folder of {CLIPS}")
        clips, others = _looked_into(folder)
        clip_names = {clip.name for clip in clips}
        inside = {name: _looked_into(folder / name) for name in _folders(_entries(folder)) if name not in clip_names}
        people = {name: found for name, found in inside.items() if found[0]}
        if clips and people:
            found = f"found clips ({few([clip.name for clip in clips])}) beside folders of clips ({few(list(people))})"
            raise UserError(f"{folder}: expected clips, or a folder of clips for each person, {found}")
        unused = [name for name in others if name not in people]
        for name, (theirs, rest) in people.items():
            clips += theirs
            unused += [f"{name}/{other}" for other in rest]
        unused.sort(key=lambda name: (_is_hidden(name), name))
        if not clips:
            raise UserError(f"{folder}: expected {CLIPS}, found none{_instead(folder, unused)}")
        return cls(sorted(clips), bool(people), unused)

    def __str__(self) -> str:
        return f"{len(self.unused)} of {len(self.clips) + len(self.unused)} entries"


def is_clip(path: Path) -> bool:
    """Whether a path is a video, by its name, or a folder with pictures; hidden ones are no clips."""
    if _is_hidden(path.name):
        return False
    return bool(pictures_in(path)) if path.is_dir() else path.suffix.lower() in VIDEOS


def pictures_in(folder: Path) -> list[Path]:
    """List the pictures of a folder in the order of the numbers in their names."""
    found = (entry.name for entry in _entries(folder) if _has(entry, PICTURES))
    return [folder / name for name in sorted(found, key=natural)]


def unused_beside_pictures(folder: Path) -> list[str]:
    """Name what lies in a folder of pictures and is none, but hidden names."""
    return [entry.name for entry in _entries(folder) if not _has(entry, PICTURES) and not _is_hidden(entry.name)]


def natural(name: str) -> tuple[tuple[tuple[int, str], ...], str]:
    """Key by which "frame2" comes before "frame10"."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return tuple((int(part), "") if part[0] in "0123456789" else (-1, part) for part in parts), name


def _looked_into(folder: Path) -> tuple[list[Path], list[str]]:
    """The clips directly in a folder, and the names of what is none, folders inside of clips among them."""
    clips, others = [], []
    for entry in _entries(folder):
        if entry.name in _folders([entry]):
            within = _entries(folder / entry.name)
            pictures, videos = ([one.name for one in within if _has(one, kind)] for kind in (PICTURES, VIDEOS))
            if pictures and videos:
                found = f"found videos ({few(videos)}) beside pictures ({few(pictures)})"
                raise UserError(f"{entry.path}: expected the pictures of one clip, or videos of one person, {found}")
            if pictures:
                clips.append(folder / entry.name)
                others += [f"{entry.name}/{name}" for name in _folders(within)]
                continue
        elif _has(entry, VIDEOS):
            clips.append(folder / entry.name)
            continue
        others.append(entry.name)
    return clips, others


def _instead(folder: Path, unused: Sequence[str]) -> str:
    """What a folder without clips holds."""
    if not unused:
        return ": it is empty"
    deeper = next((path for path in glob.iglob("*/*/*", root_dir=folder) if is_clip(folder / path)), None)
    held = f" among {len(unused)} {'entry' if len(unused) == 1 else 'entries'}: {few(unused)}"
    return held + (f"; {deeper} lies too deep" if deeper else "")


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _folders(entries: Iterable[os.DirEntry[str]]) -> list[str]:
    return [entry.name for entry in entries if entry.is_dir() and not _is_hidden(entry.name)]


def _has(entry: os.DirEntry[str], suffixes: tuple[str, ...]) -> bool:
    name = entry.name
    return os.path.splitext(name)[1].lower() in suffixes and not _is_hidden(name) and not entry.is_dir()


def _is_hidden(name: str) -> bool:
    return name.rpartition("/")[2].startswith(".")
