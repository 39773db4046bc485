"""What the measuring commands are asked for: which pairs, which metrics. Imports the standard library alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SAME, CROSS = "same identity", "cross identity"  # kinds of pairs
COPY = "copy of the source"  # the row of the model to beat
DRAWN = 100  # pairs of each kind, if nothing else is said
LIST = "pair_list.csv"  # what was measured, for --pairs-file


@dataclass(frozen=True)
class PairOptions:
    """Which pairs to measure: drawn from a seed, or those of lists; of the recipe's data, or of other clips."""

    count: int | None = None
    """Pairs of each kind, of lists usable rows of each; None = `DRAWN`, all rows."""
    seed: int = 0
    """Seed of the draw: the same pairs for every run, whatever its own seed."""
    files: tuple[Path, ...] = ()
    """Lists that name the pairs instead: see `pair_lists.py`."""
    root: Path | None = None
    """Folder of clips to measure instead of the recipe's data."""


@dataclass(frozen=True)
class MeasureOptions:
    """What to measure on the pairs, and how many of them at once."""

    metrics: tuple[str, ...] = ()
    """Names of `METRICS`, or "all"; none = L1, PSNR and SSIM."""
    backends: tuple[str, ...] = ()
    """`key=value` words: what reads faces, and where weights are."""
    batch: int = 8
