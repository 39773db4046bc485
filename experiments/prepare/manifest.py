"""`manifest.csv`: what became of every input and every segment, and why; and the contact sheet of the crops."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from memcomp.experiments.files import atomic_write
from memcomp.experiments.output.figures import strips
from memcomp.experiments.prepare.work import LOOKS
from memcomp.experiments.video import read_picture

MANIFEST, SHEET = "manifest.csv", "sheet.png"
MOST_ROWS = 40  # people on the contact sheet


@dataclass(frozen=True)
class Line:
    """A line of the manifest: an input, or (with a first frame) a stretch of it."""

    input: str
    first: int | None
    """Frames at the rate of the clips; the last one is meant too."""
    last: int | None
    frames: int
    outcome: str
    """Inputs: done, incomplete, failed, missing; stretches: written, left out."""
    reason: str
    person: str = ""
    told_by: str = ""
    split: str = ""
    clip: str = ""
    x: int | None = None
    """Left and top edge and side of the square, pixels of the input."""
    y: int | None = None
    side: int | None = None


def write_manifest(output: Path, lines: Sequence[Line]) -> None:
    """Write the manifest, all or nothing."""
    with (
        atomic_write(output / MANIFEST) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.DictWriter(file, [field.name for field in fields(Line)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(line) for line in lines)


def write_sheet(output: Path, looks: Sequence[tuple[str, Path]]) -> None:
    """Draw pictures of clips, a row each; of many, some evenly spread.

    Args:
        output: folder.
        looks: label, and file with `LOOKS` pictures side by side.
    """
    rows = min(len(looks), MOST_ROWS)
    chosen = [looks[row * len(looks) // rows] for row in range(rows)]
    strips(
        output / SHEET,
        {label: np.split(read_picture(file), LOOKS, axis=1) for label, file in chosen},
        ["early", "middle", "late"],
    )
