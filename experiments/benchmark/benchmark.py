"""`memcomp benchmark`: any number of runs, measured on the same pairs, in one table.

Runs that differ only in their seed are one row. What was measured is kept in the output folder, by the checkpoint's
sha256 and everything that decides the pairs and the formulas: the same command goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from memcomp.experiments.evaluation.pairs import add_pair_arguments

if TYPE_CHECKING:
    import torch

    from memcomp.experiments.benchmark.runs import Row, Run
    from memcomp.experiments.benchmark.tables import Benchmark
    from memcomp.experiments.evaluation.scores import Pair
    from memcomp.experiments.recipe.load import Recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `memcomp benchmark`."""
    parser.add_argument(
        "runs", nargs="+", metavar="[NAME=]RUN", help="run, checkpoint or pretrained folder; NAME: that of its row"
    )
    parser.add_argument("--set", action="append", default=[], metavar="key=value", help="changes to the pairs' recipe")
    parser.add_argument("--baseline", metavar="NAME|INDEX", help="row, or number of a run from 1 (default: the first)")
    add_pair_arguments(parser)
    parser.add_argument("--published", action="store_true", help="add the rows of the paper's Tables 1 and 2, marked")
    parser.add_argument("--metrics", default="", metavar="NAME,…", help="as `memcomp evaluate`")
    parser.add_argument("--backend", action="append", default=[], metavar="KEY=VALUE", help="as `memcomp evaluate`")
    parser.add_argument("--batch", type=int, default=8, help="pairs predicted at once (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="timed frames of each row; 0 = no times (default 7)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default auto)")
    parser.add_argument("--show", metavar="NAME", help="row whose clips and memory report.html shows")
    parser.add_argument("--no-report", action="store_true", help="no report.html: tables only")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to write into")


def run(args: argparse.Namespace) -> None:
    """`memcomp benchmark`."""
    from memcomp.experiments.benchmark.files import write
    from memcomp.experiments.benchmark.measure import costs_of, measure, pairs_key
    from memcomp.experiments.benchmark.runs import read_runs, reasons, rows_of
    from memcomp.experiments.benchmark.tables import Benchmark
    from memcomp.experiments.errors import UserError
    from memcomp.experiments.evaluation.pair_lists import ListReport, write_list
    from memcomp.experiments.evaluation.pairs import CROSS, LIST, SAME, at_root, evaluation_pairs, has_truth, heads_size
    from memcomp.experiments.evaluation.panel import Panel
    from memcomp.experiments.files import writable_folder
    from memcomp.experiments.metrics.registry import DEFAULT
    from memcomp.experiments.processes import resolve_device
    from memcomp.experiments.recipe.load import with_overrides

    for name, least in (("pairs", 1), ("batch", 1), ("seed", 0), ("repeats", 0)):
        value = getattr(args, name)
        if value is not None and not least <= value < 2**63:
            raise UserError(f"--{name}: expected {least} or more, got {value}")
    device = resolve_device(args.device)
    runs, left_out = read_runs(args.runs)
    if not runs:
        raise UserError(f"benchmark: expected a run that can be measured: {'; '.join(reasons(left_out))}")
    rows = rows_of(runs)
    baseline = find_baseline(args.baseline, rows, args.runs, runs)
    if args.baseline is None and args.runs[0] in left_out:
        left_out[args.runs[0]] += f"; the baseline is {baseline.name!r} instead"
    recipe = with_overrides(baseline.runs[0].recipe, args.set, baseline.runs[0].path)
    depth = any(run.recipe.data.depth for run in runs)  # each host takes the channels that it knows
    recipe = at_root(dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, depth=depth)), args.root)
    panel = Panel(args.metrics.split(",") if args.metrics else DEFAULT, args.backend, device, heads_size(recipe))
    kinds = [kind for kind in (SAME, CROSS) if panel.measures(truth=has_truth(recipe, kind))]
    lists = ListReport()
    pairs = evaluation_pairs(recipe, kinds, args.pairs, args.seed, args.pairs_file, lists)
    if args.show is not None:
        find_row(args.show, rows)
    folder = writable_folder(args.output)

    kept = folder / "measured" / pairs_key(recipe, pairs, args.pairs, args.seed, panel)
    measured, broken = measure(runs, pairs, panel, kept, recipe=recipe, device=device, batch=args.batch)
    left_out |= broken
    for line in reasons(left_out):
        print(f"left out: {line}", file=sys.stderr)
    sound = [dataclasses.replace(row, runs=[run for run in row.runs if run.sha256 in measured]) for row in rows]
    rows = [row for row in sound if row.runs]
    if baseline.name not in [row.name for row in rows]:
        raise UserError(f"benchmark: the baseline cannot be measured: {'; '.join(broken.values())}")
    benchmark = Benchmark(rows, baseline.name, measured, costs_of(rows, device, args.repeats), panel, left_out, lists)
    write_list(folder / LIST, pairs)
    print("\n" + write(folder, benchmark, recipe, args))
    if not args.no_report:
        write_report(folder, benchmark, recipe, pairs, device, args.show)


def write_report(
    folder: Path,
    benchmark: Benchmark,
    recipe: Recipe,
    pairs: Mapping[str, Sequence[Pair]],
    device: torch.device,
    shown: str | None,
) -> None:
    """report.html, or a line that says what it needs: the tables stand already."""
    from importlib.util import find_spec

    if find_spec("jinja2") is None:
        print("report.html is left out: it needs jinja2, pip install 'memcomp[report]'", file=sys.stderr)
        return
    from memcomp.experiments.report.collect import collect
    from memcomp.experiments.report.page import write_page

    collect(folder, benchmark, recipe, pairs, device, shown)
    print(f"and for people: {write_page(folder)}")


def find_row(wanted: str, rows: Sequence[Row]) -> Row:
    """The row that --show names.

    Raises:
        UserError: there is none.
    """
    from memcomp.experiments.errors import UserError

    for row in rows:
        if row.name == wanted:
            return row
    raise UserError(f"--show {wanted}: expected one of {', '.join(repr(row.name) for row in rows)}")


def find_baseline(wanted: str | None, rows: Sequence[Row], words: Sequence[str], runs: Sequence[Run]) -> Row:
    """The row that the others are compared with.

    Args:
        wanted: its name, or the number of a run as given, from 1; None = the first run that could be read.
        rows: all.
        words: the runs as given.
        runs: those that could be read.

    Raises:
        UserError: there is no such row.
    """
    from memcomp.experiments.errors import UserError

    if wanted is None:
        return next(row for row in rows if runs[0] in row.runs)
    for row in rows:
        if row.name == wanted:
            return row
    if wanted.isdecimal() and 1 <= int(wanted) <= len(words):
        word = words[int(wanted) - 1]
        for row in rows:
            if any(word in (run.path, f"{run.name}={run.path}") for run in row.runs):
                return row
        raise UserError(f"--baseline {wanted}: {word} cannot be measured")
    names = ", ".join(repr(row.name) for row in rows)
    raise UserError(f"--baseline {wanted}: expected one of {names}, or a number from 1 to {len(words)}")
