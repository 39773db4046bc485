"""`memcomp prepare` on raw videos that are made of clips of real faces, of which it is known who is where and when.

`python -m memcomp.experiments.studies.raw_clips --clips FOLDER --output FOLDER [--videos N] [--json FILE]`

Each video is 1280×720: a clip of one person moves over a wall, the wall stays alone for a while, then (another wall) a
clip of another person moves, and in every third video a third person comes in beside at the end. Needs the extra
`faces`. Boxes are compared with those that the same detector finds in the clip alone, moved to where the clip is shown.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from memcomp.experiments.backends.base import NotFound
from memcomp.experiments.backends.dlib_faces import DlibHeads
from memcomp.experiments.data.clips import Clips
from memcomp.experiments.errors import UserError
from memcomp.experiments.output.tables import versions, write_json
from memcomp.experiments.prepare.boxes import Box, iou
from memcomp.experiments.prepare.inputs import Input
from memcomp.experiments.prepare.options import PrepareOptions
from memcomp.experiments.prepare.prepare import prepare
from memcomp.experiments.prepare.work import Tools, prepare_input
from memcomp.experiments.video import Frame, write_video

WIDTH, HEIGHT, RATE = 1280, 720, 25
FRAMES = 80  # of each person in a video
ALONE = 20  # frames of the wall alone
BESIDE = 20  # frames with a third person
OPTIONS = PrepareOptions(size=128, least_head=130, test_share=0.2)


@dataclass(frozen=True)
class Shown:
    """What a frame of a video truly shows: clips by number, where, and which frame of each."""

    clips: Sequence[tuple[int, int, int, int]]
    """Clip, left, top, frame of the clip."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the videos, prepare them, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=Path, required=True, help="folder of clips of faces, by person")
    parser.add_argument("--output", type=Path, required=True, help="folder: gets raw/ and prepared/")
    parser.add_argument("--videos", type=int, default=12, help="how many to make (default: %(default)s)")
    parser.add_argument("--boxes", type=int, default=4, help="of how many to compare boxes (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    args = parser.parse_args(arguments)
    clips = Clips(args.clips, 256)
    truth = make_videos(clips, args.output / "raw", args.videos)
    made = prepare(args.output / "raw", args.output / "prepared", OPTIONS)
    numbers: dict[str, Any] = {
        "videos": args.videos,
        "clips": made.clips,
        "people shown": len({clips.owners[one[0]] for frames in truth.values() for f in frames for one in f.clips}),
        **told_apart(clips, truth, args.output / "prepared" / "manifest.csv"),
        **boxes(clips, truth, args.output, args.boxes),
        "versions": versions(),
    }
    for name, value in numbers.items():
        print(f"{name}: {value}")
    if args.json:
        write_json(args.json, numbers)


def make_videos(clips: Clips, folder: Path, count: int) -> dict[str, list[Shown]]:
    """Write the videos, as far as they are not there, and return what each frame shows.

    Raises:
        UserError: there are too few people with clips that are long enough.
    """
    long = [[clip for clip in own if clips.count(clip) >= FRAMES] for own in clips.people]
    first = [own[0] for own in long if own]
    if len(first) < 3:
        raise UserError(f"{clips.folder}: expected clips of {FRAMES} frames of three people, found {len(first)}")
    folder.mkdir(parents=True, exist_ok=True)
    truth = {}
    for number in tqdm(range(count), unit="video", desc="making raw videos"):
        cast = [first[(2 * number + place) % len(first)] for place in range(3)]
        name = f"video{number:03d}.mp4"
        shots = list(script(number, cast))
        truth[name] = [shown for _, shown in shots]
        if not (folder / name).exists():
            pictures = {clip: clips.read(clip, range(FRAMES)).permute(0, 2, 3, 1).numpy() for clip in cast}
            with write_video(folder / name, RATE) as append:
                for behind, shown in shots:
                    append(draw(behind, shown, pictures))
    return truth


def script(number: int, cast: Sequence[int]) -> Iterator[tuple[int, Shown]]:
    """Wall and content of each frame of a video."""
    generator = np.random.default_rng(number)
    for shot, clip in enumerate(cast[:2]):
        x, y = int(generator.integers(60, 500)), int(generator.integers(40, 300))
        for frame in range(FRAMES):
            shown = [(clip, x + frame, y + frame // 3, frame)]
            if shot == 1 and number % 3 == 2 and frame >= FRAMES - BESIDE:
                shown.append((cast[2], 960, 200, frame))
            yield 2 * number + shot, Shown(shown)
        if shot == 0:
            for _ in range(ALONE):
                yield 2 * number, Shown([])


def draw(behind: int, shown: Shown, pictures: dict[int, np.ndarray]) -> Frame:
    """A wall with a soft gradient, another for each number, and the clips on it."""
    generator = np.random.default_rng(behind)
    one, other = generator.uniform(30, 220, (2, 3))
    wall = one + (other - one) * np.linspace(0, 1, WIDTH)[None, :, None]
    picture = np.repeat(wall, HEIGHT, 0).astype(np.uint8)
    for clip, left, top, frame in shown.clips:
        picture[top : top + 256, left : left + 256] = pictures[clip][frame]
    return picture


def told_apart(clips: Clips, truth: dict[str, list[Shown]], manifest: Path) -> dict[str, Any]:
    """How well segments and people of the manifest agree with the truth."""
    who: dict[str, set[str]] = {}
    mixed = written = covered = 0
    with manifest.open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            if line["outcome"] != "written":
                continue
            frames = truth[line["input"]][int(line["first"]) : int(line["last"]) + 1]
            shown = {clips.owners[one[0]] for frame in frames for one in frame.clips}
            written, covered = written + 1, covered + len(frames)
            mixed += len(shown) != 1
            who.setdefault(line["person"], set()).update(shown)
    usable = sum(len(frame.clips) == 1 for frames in truth.values() for frame in frames)
    names = [name for people in who.values() for name in people]
    return {
        "segments with more than one person": mixed,
        "share of frames with one person that are in a clip": covered / usable,
        "names given": len(who),
        "names given to more than one person": sum(len(people) > 1 for people in who.values()),
        "people with more than one name": sum(names.count(name) > 1 for name in set(names)),
    }


def boxes(clips: Clips, truth: dict[str, list[Shown]], output: Path, count: int) -> dict[str, Any]:
    """Overlap of the boxes of some videos with those of the clips alone."""
    heads, overlaps, alone = DlibHeads(), [], dict[tuple[int, int], Box | None]()
    for name in tqdm(sorted(truth)[:count], unit="video", desc="comparing boxes"):
        path = output / "raw" / name
        result = prepare_input(Input(name, path), path, output / "compared", OPTIONS, Tools(heads, None))
        for piece in result.pieces:
            for frame, box in enumerate(piece.boxes, piece.first):
                for clip, left, top, number in truth[name][frame].clips[:1]:
                    if (clip, number) not in alone:
                        alone[clip, number] = _box(heads, clips, clip, number)
                    known = alone[clip, number]
                    if known is not None:
                        moved = Box(known.left + left, known.top + top, known.right + left, known.bottom + top)
                        overlaps.append(iou(box, moved.within(WIDTH, HEIGHT)))
    found = np.array(overlaps)
    return {
        "boxes compared": len(found),
        "mean overlap": float(found.mean()),
        "share of boxes with an overlap of 0.75 or more": float((found >= 0.75).mean()),
    }


def _box(heads: DlibHeads, clips: Clips, clip: int, frame: int) -> Box | None:
    """The head in a frame of a clip, if exactly one is found."""
    found = heads.read(clips.read(clip, [frame])[0].permute(1, 2, 0).numpy())
    return None if isinstance(found, NotFound) or len(found) != 1 else Box(*(found[0] + 0.5).tolist())


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
