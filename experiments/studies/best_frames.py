"""How near the best frames that `memcomp animate` finds are to their sources, beside those that a list names.

`python -m memcomp.experiments.studies.best_frames LIST.csv CHECKPOINT [--backend KEY=VALUE …] [--json FILE]`

LIST.csv has `source,driving,best_frame`, `CLIP#FRAME` each, clips relative to its folder. Compared are the face's
68 landmarks, about their mean and scaled to a hull of area 1: mean distance between the source's and those of the frame
that is chosen. The choice itself sees the host's keypoints only.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from memcomp.adapters import Host
from memcomp.experiments.animation.track import Track, normalised
from memcomp.experiments.backends.base import Backend, NotFound
from memcomp.experiments.backends.choose import create_backend, read_choices
from memcomp.experiments.checkpoints.trained import read_trained
from memcomp.experiments.errors import UserError
from memcomp.experiments.files import existing_file
from memcomp.experiments.metrics.aggregate import mean, paired_difference
from memcomp.experiments.output.tables import versions, write_json
from memcomp.experiments.video import Frame, Frames, fit

BATCH = 16


class Clips:
    """The clips of a list: their frames, the host's keypoints and the face's landmarks, each computed once."""

    def __init__(self, folder: Path, host: Host, size: int, landmarks: Backend) -> None:
        self.folder, self.host, self.size, self.backend = folder, host, size, landmarks
        self.track, self.landmarks, self.frames = cache(self._track), cache(self._landmarks), cache(self._frames)

    def _frames(self, name: str) -> list[Frame]:
        return list(Frames(self.folder / name))

    def _track(self, name: str) -> Track:
        pictures = [fit(frame, self.size) for frame in self.frames(name)]
        with torch.inference_mode():
            return Track(self.host.keypoints(torch.stack(part).float()) for part in _parts(pictures))

    def _landmarks(self, name: str, frame: int) -> torch.Tensor | None:
        found = self.backend([self.frames(name)[frame]])[0]
        return (
            None if isinstance(found, NotFound) else normalised(torch.as_tensor(np.asarray(found), dtype=torch.float32))
        )

    def distance(self, one: tuple[str, int], other: tuple[str, int]) -> float | None:
        """Mean distance of the normalised landmarks of two frames; None if one shows no face."""
        a, b = self.landmarks(*one), self.landmarks(*other)
        return None if a is None or b is None else float((a - b).norm(dim=1).mean())


def _parts(pictures: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    for first in range(0, len(pictures), BATCH):
        yield list(pictures[first : first + BATCH])


def _place(cell: str) -> tuple[str, int]:
    name, _, frame = cell.rpartition("#")
    return name, int(frame)


def compare(rows: Sequence[dict[str, str]], clips: Clips) -> dict[str, list[float]]:
    """Distances from the source of the first frame, of the one that is chosen, and of the one that the list names."""
    found: dict[str, list[float]] = {"first frame": [], "chosen": [], "of the list": []}
    for row in tqdm(rows, unit="pair", desc="best frames"):
        source, (driving, _), listed = (_place(row[name]) for name in ("source", "driving", "best_frame"))
        chosen = clips.track(driving).best_frame(clips.track(source[0]).keypoints(source[1]))
        distances = [clips.distance(source, (driving, frame)) for frame in (0, chosen, listed[1])]
        if all(distance is not None for distance in distances):
            for values, distance in zip(found.values(), distances, strict=True):
                values.append(float(distance or 0))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare over a list, and print a line for each way to choose."""
    parser = argparse.ArgumentParser(prog="best_frames", description="How near best frames are to their sources.")
    parser.add_argument("list", type=Path, help="CSV with source,driving,best_frame")
    parser.add_argument("checkpoint", help="host whose keypoints choose")
    parser.add_argument("--pairs", type=int, default=200, metavar="N", help="rows used (default: %(default)s)")
    parser.add_argument("--backend", action="append", default=[], metavar="KEY=VALUE", help="landmarks=…")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    args = parser.parse_args(arguments)
    with existing_file(args.list, "list of pairs").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))[: args.pairs]
    if not rows or {"source", "driving", "best_frame"} - set(rows[0]):
        raise UserError(f"{args.list}: expected columns source,driving,best_frame and a row")
    trained = read_trained(args.checkpoint)
    landmarks = create_backend("landmarks", read_choices(args.backend))
    clips = Clips(args.list.parent, trained.host(torch.device("cpu")), trained.size, landmarks)
    found = compare(rows, clips)
    many = len(found["chosen"])
    print(f"{many} of {len(rows)} pairs (a face in all frames), {landmarks.about}")
    means = {name: mean(values).value for name, values in found.items()}
    nearer = {name: paired_difference(found[name], found["first frame"]) for name in ("chosen", "of the list")}
    for name, value in means.items():
        gain = nearer.get(name)
        print(
            f"{name}: {value}"
            + (f", against the first frame {gain.value:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]" if gain else "")
        )
    if args.json:
        against = {name: gain and [gain.value, gain.low, gain.high] for name, gain in nearer.items()}
        about = {"checkpoint": args.checkpoint, "pairs": many, "rows": len(rows), "backend": landmarks.about}
        write_json(args.json, {**about, "distance": means, "against the first frame": against, "versions": versions()})


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
