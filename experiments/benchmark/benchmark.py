"""Measure any number of runs on the same pairs, in one table.

Runs that differ only in their seed are one row. What was measured is kept in the output folder, by the checkpoint's
sha256 and everything that decides the pairs and the formulas: the same command goes on where it was interrupted.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

from memcomp.experiments.benchmark.files import write
from memcomp.experiments.benchmark.measure import costs_of, measure_runs, pairs_key
from memcomp.experiments.benchmark.result import Benchmark, BenchmarkOptions
from memcomp.experiments.benchmark.runs import Row, Run, read_runs, reasons, rows_of
from memcomp.experiments.errors import UserError
from memcomp.experiments.evaluation.options import CROSS, LIST, SAME
from memcomp.experiments.evaluation.pair_lists import ListReport, write_list
from memcomp.experiments.evaluation.pairs import at_root, evaluation_pairs, has_truth, heads_size
from memcomp.experiments.evaluation.panel import Panel
from memcomp.experiments.files import writable_folder
from memcomp.experiments.processes import resolve_device
from memcomp.experiments.recipe.load import with_overrides
from memcomp.experiments.recipe.sections import Recipe


def benchmark(options: BenchmarkOptions) -> Benchmark:
    """Print the tables and write report.md, benchmark.json and pairs.csv.

    Raises:
        UserError: no run can be measured, or not the baseline; rows that are not there; what the pairs refuse.
    """
    # the rows
    device = resolve_device(options.device)
    runs, left_out = read_runs(options.runs)
    if not runs:
        raise UserError(f"benchmark: expected a run that can be measured: {'; '.join(reasons(left_out))}")
    rows = rows_of(runs)
    baseline = find_baseline(options.baseline, rows, options.runs, runs)
    if options.baseline is None and options.runs[0] in left_out and options.runs[0] != runs[0].path:  # no twin
        left_out[options.runs[0]] += f"; the baseline is {baseline.name!r} instead"
    names = [row.name for row in rows]
    if options.show is not None and options.show not in names:
        raise UserError(f"--show {options.show}: expected one of {', '.join(map(repr, names))}")

    # the pairs, and what is measured on them
    recipe = recipe_of_pairs(baseline, runs, options)
    panel = Panel(options.measuring.metrics, options.measuring.backends, device, heads_size(recipe))
    kinds = [kind for kind in (SAME, CROSS) if panel.measures(truth=has_truth(recipe, kind))]
    lists = ListReport()
    pairs = evaluation_pairs(recipe, kinds, options.pairs, lists)
    kept = writable_folder(options.output) / "measured" / pairs_key(recipe, pairs, options.pairs, panel)
    batch = options.measuring.batch
    measured, broken = measure_runs(runs, pairs, panel, kept, recipe=recipe, device=device, batch=batch)
    left_out |= broken
    for line in reasons(left_out):
        print(f"left out: {line}", file=sys.stderr)

    # what was found
    sound = [dataclasses.replace(row, runs=[run for run in row.runs if run.sha256 in measured]) for row in rows]
    rows = [row for row in sound if row.runs]
    if baseline.name not in [row.name for row in rows]:
        raise UserError(f"benchmark: the baseline cannot be measured: {'; '.join(broken.values())}")
    costs = costs_of(rows, device, options.repeats)
    found = Benchmark(options, rows, baseline.name, recipe, pairs, measured, costs, panel, device, left_out, lists)
    write_list(options.output / LIST, pairs)
    print("\n" + write(options.output, found))
    return found


def recipe_of_pairs(baseline: Row, runs: Sequence[Run], options: BenchmarkOptions) -> Recipe:
    """The recipe whose data the pairs are of: the baseline's, changed as asked, with depth if some run takes it."""
    first = baseline.runs[0]
    recipe = with_overrides(first.recipe, options.changes, first.path)
    depth = any(run.recipe.data.depth for run in runs)  # each host takes the channels that it knows
    recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, depth=depth))
    return at_root(recipe, options.pairs.root)


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
