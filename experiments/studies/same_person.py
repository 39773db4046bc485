"""How well people are told apart by identity codes, at several distances, on your own clips.

`python -m memcomp.experiments.studies.same_person FOLDER… [--backend KEY=VALUE …] [--json FILE]`

A code of each clip is the mean of those of five frames. `memcomp prepare` takes them of the raw picture, with more of
what is around the head.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from memcomp.experiments.backends.base import Backend, NotFound
from memcomp.experiments.backends.choose import create_backend, read_choices
from memcomp.experiments.data.clips import Clips
from memcomp.experiments.errors import UserError
from memcomp.experiments.output.tables import versions, write_json
from memcomp.experiments.prepare.people import clusters

DISTANCES = (0.35, 0.4, 0.45, 0.5, 0.55, 0.6)
FRAMES = 5


def codes(backend: Backend, clips: Clips) -> Iterator[tuple[str, list[float]]]:
    """Person and code of each clip in which a face is found."""
    for clip in tqdm(range(len(clips)), unit="clip", desc=str(clips.folder)):
        places = ((2 * np.arange(FRAMES) + 1) * clips.count(clip) // (2 * FRAMES)).tolist()
        pictures = clips.read(clip, places).permute(0, 2, 3, 1).contiguous().numpy()
        found = [code for code in backend(list(pictures)) if not isinstance(code, NotFound)]
        if found:
            yield clips.owners[clip], np.mean(found, 0).tolist()


def agreement(people: Sequence[str], found: Sequence[Sequence[float]], distance: float) -> dict[str, float]:
    """How clusters at a distance agree with the people's names."""
    pairs = set(zip(people, clusters(found, distance), strict=True))
    persons, numbers = zip(*pairs, strict=True)
    return {
        "distance": distance,
        "names": len(set(numbers)),
        "names of several people": sum(numbers.count(number) > 1 for number in set(numbers)),
        "people with several names": sum(persons.count(person) > 1 for person in set(persons)),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Code the clips, and print a line for each distance."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", help="folders of clips, by person")
    parser.add_argument("--backend", action="append", default=[], metavar="KEY=VALUE", help="identity=…")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    args = parser.parse_args(arguments)
    backend = create_backend("identity", read_choices(args.backend))
    people, found = zip(*(one for folder in args.folders for one in codes(backend, Clips(folder, 256))), strict=True)
    rows = [agreement(people, found, distance) for distance in DISTANCES]
    print(f"{len(people)} clips of {len(set(people))} people, {backend.about}")
    for row in rows:
        print(", ".join(f"{name} {value}" for name, value in row.items()))
    if args.json:
        about = {"clips": len(people), "people": len(set(people)), "backend": backend.about}
        write_json(args.json, {**about, "distances": rows, "versions": versions()})


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
