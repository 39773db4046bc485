"""How far the face metrics can be trusted on your own clips, and on procedural heads, whose truth is known.

`python -m memcomp.experiments.studies.face_backends --clips FOLDER [--backend KEY=VALUE …] [--json FILE]`
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import torch
from tqdm import tqdm

from memcomp.experiments.backends.base import Backend, NotFound
from memcomp.experiments.backends.choose import create_backend, read_choices
from memcomp.experiments.backends.head_pose import head_pose
from memcomp.experiments.backends.heads.measure import ANGLES, BINS, a_pose_of_each_bin
from memcomp.experiments.data.clips import Clips, held_out_folder
from memcomp.experiments.data.heads import Identity, landmarks, render
from memcomp.experiments.errors import UserError
from memcomp.experiments.metrics.aed import aed
from memcomp.experiments.metrics.akd import akd
from memcomp.experiments.metrics.flicker import flicker
from memcomp.experiments.metrics.jitter import landmark_jitter
from memcomp.experiments.metrics.labels import Label
from memcomp.experiments.output.tables import markdown, write_json
from memcomp.experiments.video import Frame

SIZE = 256  # pixels
SHIFT = 3  # pixels to the right and down
RUN = 10  # consecutive frames of each clip for landmarks
LOOKS = 4  # frames spread over each clip for identity
FIRST_HEAD = 2_005_000  # of people that no split of the data set uses at its usual size


def runs(clips: Clips) -> Iterator[tuple[int, list[Frame]]]:
    """Clip number and `RUN` consecutive frames of it, from its middle."""
    for clip in tqdm(range(len(clips)), unit="clip", desc="clips"):
        count = clips.count(clip)
        first = max(0, (count - RUN) // 2)
        frames = clips.read(clip, range(first, min(first + RUN, count)))
        yield clip, [np.ascontiguousarray(frame.permute(1, 2, 0).numpy()) for frame in frames]


def check_landmarks(backend: Backend, clips: Clips) -> dict[str, Any]:
    """Landmarks of clips against those of the same clips read again, encoded again, and moved by `SHIFT`.

    Raises:
        UserError: no clip has one face in each of `RUN` frames in a row.
    """
    variants: dict[str, Callable[[Sequence[Frame]], list[Frame]]] = {
        "itself": list,
        "encoded again (H.264)": encoded,
        "moved": moved,
    }
    values: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
    trembling, flickering, looked, lost = [], [], 0, 0
    for _, frames in runs(clips):
        true = backend(frames)
        looked += len(true)
        lost += sum(isinstance(label, NotFound) for label in true)
        for name, change in variants.items():
            changed = change(frames)
            found = backend(changed)
            both = [(a, b) for a, b in zip(found, true, strict=True) if not isinstance(a, NotFound)]
            kept = [(a, b) for a, b in both if not isinstance(b, NotFound)]
            values[name] += [(akd(a, b, per_coordinate=True), akd(a, b, per_coordinate=False)) for a, b in kept]
            if name.startswith("encoded"):
                if len(kept) == len(frames) >= 3:
                    trembling.append(landmark_jitter(np.stack([a for a, _ in kept]), np.stack([b for _, b in kept])))
                flickering.append(
                    flicker(*(torch.from_numpy(np.stack(v)).permute(0, 3, 1, 2) / 255 for v in (changed, frames)))
                )
    if not trembling:
        raise UserError(f"{clips.folder}: in no clip {backend.about} finds one face in {RUN} frames in a row")
    means = {
        name: dict(zip(("paper", "standard"), np.mean(pairs, axis=0).tolist(), strict=True))
        for name, pairs in values.items()
    }
    return {
        "backend": backend.about,
        "frames": looked,
        "without exactly one face": lost,
        "AKD": means,
        "jitter encoded again": float(np.mean(trembling)),
        "flicker encoded again": float(np.mean(flickering)),
    }


def encoded(frames: Sequence[Frame]) -> list[Frame]:
    """The frames through an H.264 encoder with its usual settings."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "clip.mp4"
        iio.imwrite(file, np.stack(frames), plugin="pyav", codec="libx264", fps=25)
        return list(iio.imread(file, plugin="pyav"))


def moved(frames: Sequence[Frame]) -> list[Frame]:
    """The frames `SHIFT` pixels to the right and down; the edge is repeated."""
    pad = ((SHIFT, 0), (SHIFT, 0), (0, 0))
    return [np.ascontiguousarray(np.pad(frame, pad, mode="edge")[: len(frame), : len(frame[0])]) for frame in frames]


def check_identity(backend: Backend, clips: Clips, *, seed: int = 0) -> dict[str, Any]:
    """AED of every two of `LOOKS` frames a clip of one person, against AED to some frame of someone else.

    Raises:
        UserError: the faces of fewer than two people are found.
    """
    person = {clip: number for number, owned in enumerate(clips.people) for clip in owned}
    codes: dict[int, list[Label]] = {}
    for clip in tqdm(range(len(clips)), unit="clip", desc="identity"):
        spread = np.linspace(0, clips.count(clip) - 1, LOOKS).astype(int).tolist()
        frames = clips.read(clip, sorted(set(spread))).permute(0, 2, 3, 1).numpy()
        found = backend([np.ascontiguousarray(frame) for frame in frames])
        codes.setdefault(person[clip], []).extend(code for code in found if not isinstance(code, NotFound))
    if sum(map(bool, codes.values())) < 2:
        raise UserError(f"{clips.folder}: expected clips of two people or more whose faces {backend.about} finds")
    generator = np.random.default_rng(seed)
    same, different = [], []
    for who, mine in codes.items():
        others = [code for other, theirs in codes.items() if other != who for code in theirs]
        for i, anchor in enumerate(mine):
            for j, other in enumerate(mine):
                if i != j:
                    stranger = others[generator.integers(len(others))]
                    same.append(aed(other, anchor, squared=False))
                    different.append(aed(stranger, anchor, squared=False))
    return {
        "backend": backend.about,
        "people": len(codes),
        "pairs": len(same),
        "same nearer than different": float(np.mean(np.array(same) < different)),
        "AED same": float(np.mean(same)),
        "AED different": float(np.mean(different)),
    }


def check_pose(backend: Backend, people: int) -> dict[str, Any]:
    """Solved against true pose of heads: from their true landmarks, and from the backend's, by |yaw|."""
    generator = torch.Generator().manual_seed(0)
    true, exact, read = [], [], []
    for number in tqdm(range(people), unit="head", desc="heads"):
        who, poses = Identity.sample(FIRST_HEAD + number), a_pose_of_each_bin(number, generator)
        true.append(poses.angles().double().numpy())
        exact += [head_pose(points) for points in landmarks(who, poses, SIZE).points.double().numpy()]
        pictures = (render(who, poses, SIZE).image * 255).round().byte().permute(0, 2, 3, 1)
        read += backend([np.ascontiguousarray(picture) for picture in pictures.numpy()])
    angles = np.concatenate(true)
    found = np.array([not isinstance(pose, NotFound) for pose in read])
    solved = np.array([pose for pose in read if not isinstance(pose, NotFound)])
    bins = {f"{low}-{high}": np.arange(len(read)) % len(BINS) == i for i, (low, high) in enumerate(BINS)}
    error = np.abs(solved[:, 0] - angles[found, 0])
    return {
        "backend": backend.about,
        "people": people,
        "true landmarks": _agreement(np.array(exact), angles),
        "from pictures": _agreement(solved, angles[found]),
        "found by |yaw|": {name: float(found[these].mean()) for name, these in bins.items()},
        "mean yaw error by |yaw|": {
            name: float(error[these[found]].mean()) if found[these].any() else None for name, these in bins.items()
        },
    }


def _agreement(solved: Label, true: Label) -> dict[str, dict[str, float]]:
    """Correlation and mean absolute error of each angle."""
    return {
        name: {
            "r": float(np.corrcoef(solved[:, k], true[:, k])[0, 1]),
            "mean error": float(np.abs(solved[:, k] - true[:, k]).mean()),
        }
        for k, name in enumerate(ANGLES)
    }


def lines(content: Mapping[str, Any], prefix: str = "") -> Iterator[list[str]]:
    """Nested numbers as rows of a table: the names on the way to a number, and the number."""
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from lines(value, f"{prefix}{key}: ")
        else:
            yield [prefix + key, f"{value:.4g}" if isinstance(value, float) else str(value)]


def main() -> None:
    """Print what was measured, as JSON and as tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", required=True, help="folder of clips, or one with test/ in it")
    parser.add_argument("--backend", action="append", default=[], metavar="KEY=VALUE", help="as `memcomp evaluate`")
    parser.add_argument("--people", type=int, default=60, help="procedural heads (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here")
    args = parser.parse_args()
    chosen = read_choices(args.backend)
    clips = Clips(held_out_folder(Path(args.clips)), SIZE)
    content = {
        "landmarks": check_landmarks(create_backend("landmarks", chosen), clips),
        "identity": check_identity(create_backend("identity", chosen), clips),
        "pose": check_pose(create_backend("pose", chosen), args.people),
    }
    for name, found in content.items():
        print("\n" + markdown([name, ""], list(lines(found))))
    if args.json:
        write_json(args.json, content)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
