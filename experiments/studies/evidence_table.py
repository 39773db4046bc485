"""The study's table from its raw values: `python -m memcomp.experiments.studies.evidence_table PAIRS.csv.gz`.

`--keep PAIRS.csv` makes the compact file of a benchmark's raw values: the protocol that decides, six digits.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
from collections.abc import Sequence
from pathlib import Path

from memcomp.experiments.errors import UserError, counted
from memcomp.experiments.evaluation.options import COPY
from memcomp.experiments.files import atomic_write, existing_file
from memcomp.experiments.metrics.aggregate import Values, mean, seeds_difference
from memcomp.experiments.output.tables import markdown

COLUMNS = {  # heading → column of the standard protocol
    "L1 ↓": "standard.l1",
    "hidden": "standard.l1.disoccluded",
    "revealed": "standard.l1.revealed",
    "SSIM ↑": "standard.ssim",
    "SSIM, hidden": "standard.ssim.disoccluded",
    "features, hidden ↓": "standard.features.disoccluded",  # of EfficientNet-Lite0: see metrics/README.md
    "PSNR ↑": "standard.psnr",
}
ALL = "standard.l1"  # every benchmark has it; of real clips nobody knows what is hidden or revealed
DECIDES = "standard.l1.disoccluded"  # where it is known


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, or keep the values."""
    parser = argparse.ArgumentParser(prog="evidence_table", description="The study's table from its raw values.")
    parser.add_argument("pairs", type=Path, metavar="PAIRS", help="pairs.csv of a benchmark, or what --keep made of it")
    text = "row that the others are compared with (default: the first, but for copy of the source)"
    parser.add_argument("--baseline", metavar="ROW", help=text)
    parser.add_argument("--keep", type=Path, metavar="FILE", help="write the values compactly (.csv.gz), print nothing")
    args = parser.parse_args(arguments)
    try:
        runs = read(args.pairs)
        if args.keep:
            keep(runs, args.keep)
        else:
            print(table(runs, args.baseline))
    except UserError as error:
        parser.error(str(error))


Runs = dict[str, dict[str, list[float | None]]]  # "ROW (seed N)" → column → a value per pair
Rows = dict[str, dict[str, dict[str, list[float | None]]]]  # row → column → seed → a value per pair


def read(path: Path) -> Runs:
    """Values of a pairs.csv, plain or gzipped.

    Raises:
        UserError: it is no such file.
    """
    content = existing_file(path, "pairs.csv of a benchmark").read_bytes()
    try:
        text = (gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content).decode("utf-8")
        runs: Runs = {}
        for line in csv.DictReader(io.StringIO(text)):
            columns = runs.setdefault(line["model"], {column: [] for column in COLUMNS.values()})
            for column in columns:
                value = line[column] if column == ALL else line.get(column)
                columns[column].append(float(value) if value else None)
    except (KeyError, TypeError, ValueError, OSError, EOFError) as error:
        raise UserError(f"{path}: expected the values that `memcomp benchmark` writes ({error!r})") from None
    return runs


def keep(runs: Runs, path: Path) -> None:
    """Write what the table needs: six digits, gzipped."""
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(["model", *COLUMNS.values()])
    for label, columns in runs.items():
        for pair in zip(*(columns[column] for column in COLUMNS.values()), strict=True):
            writer.writerow([label, *("" if value is None else f"{value:.6g}" for value in pair)])
    with atomic_write(path) as temporary:
        temporary.write_bytes(gzip.compress(lines.getvalue().encode(), mtime=0))


def table(runs: Runs, baseline: str | None = None) -> str:
    """Markdown: a line for each row, its seeds put together: the means that there are, and the change of what decides.

    That is L1 on hidden pixels, of real clips on all pixels; against the baseline, with its 95 % interval over pairs
    and seeds.

    Raises:
        UserError: no such row.
    """
    values: Rows = {}
    for label, of_run in runs.items():
        name, _, seed = label.partition(" (seed ")
        row = values.setdefault(name, {column: {} for column in of_run})
        for column, found in of_run.items():
            row[column][seed] = found
    baseline = baseline or next((name for name in values if name != COPY), COPY)
    if baseline not in values:
        raise UserError(f"--baseline {baseline}: expected one of {', '.join(values)}")
    there = {
        heading: column
        for heading, column in COLUMNS.items()
        if any(value is not None for of_run in runs.values() for value in of_run[column])
    }
    decides, called = (DECIDES, "hidden") if DECIDES in there.values() else (ALL, "L1")
    lines = []
    for name, columns in values.items():
        cells = [str(len(columns[decides])), *(_cell([*columns[column].values()]) for column in there.values())]
        change = "" if name == baseline else _change(columns[decides], values[baseline][decides])
        lines.append([name, *cells, change])
    return markdown(["row", "seeds", *there, f"{called}, against {baseline}"], lines)


def _change(row: dict[str, list[float | None]], baseline: dict[str, list[float | None]]) -> str:
    """In percent of the baseline, over the seeds that both have; one that has none of them is compared with all."""
    common = [seed for seed in baseline if seed in row]
    one, other = ([values[seed] for seed in common or values] for values in (row, baseline))
    delta = seeds_difference(one, other, paired=bool(common))
    if delta is None:
        return ""
    value, low, high = (f"{100 * end / _mean(other):+.1f}" for end in (delta.value, delta.low, delta.high))
    fewer = f" ({counted(len(common), 'seed')})" if common and len(common) < len(baseline) else ""
    return f"{value} % [{low}, {high}]{fewer}"


def _cell(seeds: Values) -> str:
    return "–" if all(mean(of_seed).value is None for of_seed in seeds) else f"{_mean(seeds):.4f}"


def _mean(seeds: Values) -> float:
    found = [mean(of_seed).value for of_seed in seeds]
    return sum(value or 0.0 for value in found) / len(found)


if __name__ == "__main__":
    main()
