"""A benchmark as one table, and as files: report.md, benchmark.json, pairs.csv."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memcomp.experiments.benchmark_measure import Costs, Measured
from memcomp.experiments.benchmark_runs import Row, reasons
from memcomp.experiments.cost import NOT_COUNTED
from memcomp.experiments.evaluate import COPY
from memcomp.experiments.files import atomic_write
from memcomp.experiments.metrics.aggregate import Difference, mean
from memcomp.experiments.metrics.protocols import MASKED, METRICS, MINIMUM_PIXELS, PROTOCOLS, Metric
from memcomp.experiments.metrics.seeds import seeds_difference
from memcomp.experiments.published import MARK, published, published_rows
from memcomp.experiments.recipe import Recipe
from memcomp.experiments.report import markdown, versions, write_json, write_pairs
from memcomp.experiments.scoring import Scores

BETTER, WORSE = "better", "worse"


@dataclass(frozen=True)
class Benchmark:
    """Everything that was measured."""

    rows: Sequence[Row]
    baseline: str
    measured: Measured
    costs: Costs
    left_out: Mapping[str, str]
    """Run as given → why it was not measured."""

    @property
    def kinds(self) -> list[str]:
        """Kinds of pairs."""
        return list(self.measured[COPY])

    def scores(self, kind: str) -> dict[str, list[Scores]]:
        """Row → the scores of each of its runs; copying the source comes first."""
        found = {COPY: [self.measured[COPY][kind]]}
        return found | {row.name: [self.measured[run.sha256][kind] for run in row.runs] for row in self.rows}

    def row(self, name: str) -> Row | None:
        """None for copying the source."""
        return next((row for row in self.rows if row.name == name), None)

    def columns(self, kind: str, protocol: str = "") -> list[str]:
        """Columns that some run has, of one protocol or of all; those under a mask last."""
        scores = [one for many in self.scores(kind).values() for one in many]
        names = dict.fromkeys(name for one in scores for name in one.columns if name.startswith(protocol))
        return sorted(names, key=lambda name: name.endswith(MASKED))

    def mean(self, name: str, kind: str, column: str) -> dict[str, Any]:
        """Mean over seeds of the means over pairs, how far seeds are apart, pairs, and pairs left out."""
        means = [mean(one.column(column)) for one in self.scores(kind)[name]]
        values = [found.value for found in means if found.value is not None]
        if len(values) < len(means):
            values = []
        return {
            "value": statistics.fmean(values) if values else None,
            "deviation_of_seeds": statistics.stdev(values) if len(values) > 1 else None,
            "pairs": min(found.pairs for found in means),
            "left_out": max(found.left_out for found in means),
        }

    def difference(self, name: str, kind: str, column: str) -> Difference | None:
        """How much larger a row is than the baseline, with its 95 % interval."""
        scores, row, base = self.scores(kind), self.row(name), self.row(self.baseline)
        if row is None or base is None or name == self.baseline:
            return None
        first, second = ([one.column(column) for one in scores[which]] for which in (name, self.baseline))
        return seeds_difference(first, second, paired=row.seeds == base.seeds)


def write(folder: Path, benchmark: Benchmark, recipe: Recipe, args: argparse.Namespace) -> str:
    """Write report.md, benchmark.json and pairs.csv; returns the report's text."""
    differences = {
        kind: {
            row.name: {
                column: delta
                for column in benchmark.columns(kind)
                if (delta := benchmark.difference(row.name, kind, column)) is not None
            }
            for row in benchmark.rows
            if row.name != benchmark.baseline
        }
        for kind in benchmark.kinds
    }
    parts = [
        table(benchmark, kind, protocol, differences[kind], with_published=args.published)
        for protocol in PROTOCOLS
        for kind in benchmark.kinds
    ]
    text = "\n\n".join([*parts, cost_table(benchmark), *notes(benchmark, recipe, args)])
    with atomic_write(folder / "report.md") as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    write_json(folder / "benchmark.json", content(benchmark, recipe, args, differences))
    write_pairs(folder / "pairs.csv", {kind: dict(labelled(benchmark, kind)) for kind in benchmark.kinds})
    return f"{text}\n\nwritten to {folder}: report.md, benchmark.json, pairs.csv"


def labelled(benchmark: Benchmark, kind: str) -> Iterator[tuple[str, Scores]]:
    """Every run under a name of its own, for the table of raw values."""
    yield COPY, benchmark.measured[COPY][kind]
    for row in benchmark.rows:
        for label, run in zip(row.labels(), row.runs, strict=True):
            yield label, benchmark.measured[run.sha256][kind]


def table(
    benchmark: Benchmark,
    kind: str,
    protocol: str,
    differences: Mapping[str, Mapping[str, Difference]],
    *,
    with_published: bool = False,
) -> str:
    """One kind of pairs under one protocol: per row a line of means, and below it the difference to the baseline."""
    columns = benchmark.columns(kind, protocol + ".")
    copied = list(published_rows(kind)) if with_published and protocol == "paper" else []
    columns = list(dict.fromkeys([*columns, *(f"{protocol}.{name}" for _, cells in copied for name in cells)]))
    columns.sort(key=lambda name: name.endswith(MASKED))
    lines = []
    for name, scores in benchmark.scores(kind).items():
        row = benchmark.row(name)
        cells = [_mean_cell(benchmark.mean(name, kind, column), column) for column in columns]
        lines.append([name, "" if row is None else str(len(row.runs)), str(len(scores[0].names)), *cells])
        if name in differences:
            cells = [_difference_cell(differences[name].get(column), column) for column in columns]
            lines.append(["… less the baseline", "", "", *cells])
    for name, values in copied:
        lines.append([name, "", "", *(values.get(column.removeprefix(f"{protocol}."), "") for column in columns)])
    header = [f"{protocol} protocol, {kind}", "seeds", "pairs", *map(_title, columns)]
    return markdown(header, lines)


def cost_table(benchmark: Benchmark) -> str:
    """Parameters, operations and time of a frame, and their ratios to the baseline's."""
    costs, base = benchmark.costs, benchmark.costs.counted[benchmark.baseline]
    header = ["cost of a frame", "host parameters", "memory parameters", "GFLOP"]
    lines = []
    for row in benchmark.rows:
        found = costs.counted[row.name]
        flop = f"{found.gflop:.3g} ({found.gflop / base.gflop:.2f}×)"
        line = [row.name, f"{found.host_parameters:,}", f"{found.memory_parameters:,}", flop]
        if costs.milliseconds:
            time = costs.milliseconds[row.name]
            line.append(f"{time:.3g} ({time / costs.milliseconds[benchmark.baseline]:.2f}×)")
        lines.append(line)
    return markdown([*header, *(["ms"] if costs.milliseconds else [])], lines)


def notes(benchmark: Benchmark, recipe: Recipe, args: argparse.Namespace) -> list[str]:
    """What the numbers rest on, and what they do not tell."""
    seeds = {len(row.runs) for row in benchmark.rows}
    base = benchmark.row(benchmark.baseline)
    over = "pairs and seeds (drawn on two levels; with two or three seeds somewhat too narrow)"
    if seeds == {1}:
        over = "pairs only: one seed each, so the interval does not tell what another training would give"
    elif min(seeds) == 1:
        over += "; where a row has one seed, over the pairs and the other row's seeds only"
    changed = f" with {' '.join(args.set)}" if args.set else ""
    lines = [
        f"Baseline: {benchmark.baseline}. A difference stands with its 95 % interval, a bootstrap over {over}. "
        f"**{BETTER}** or **{WORSE}**: the interval leaves out 0; of many columns one in twenty does so by chance.",
        f"{recipe.size}×{recipe.size}, absolute motion, pairs of the baseline's data{changed}, seed {args.seed}. "
        "(d): on disoccluded pixels, those that the source hides; "
        f"a pair with fewer than {MINIMUM_PIXELS} of them is left out there.",
        "GFLOP: 10⁹ operations of convolutions, matrix products and attention, a multiplication and its addition being "
        f"two; {NOT_COUNTED}.",
    ]
    if benchmark.costs.milliseconds:
        lines[-1] += f" ms: median of {benchmark.costs.repeats} frames, one at a time, {benchmark.costs.device}."
    if base is not None and max(seeds) > 1 and any(row.seeds != base.seeds for row in benchmark.rows):
        lines.append("Rows with other seeds than the baseline's: seeds are drawn independently on both sides.")
    if args.published:
        about = published()
        lines.append(
            f"“{MARK}”: copied from {about['source']}; other data, pictures of 256×256; "
            f"{about['protocol']} (here: a share)."
        )
    if missing := pairs_left_out(benchmark):
        lines.append("Pairs without a value: " + "; ".join(missing) + ".")
    if benchmark.left_out:
        told = "".join(f"\n- {line}" for line in reasons(benchmark.left_out))
        count = len(benchmark.left_out)
        lines.append(f"{count} run{'s' if count > 1 else ''} left out:{told}")
    return lines


def pairs_left_out(benchmark: Benchmark) -> list[str]:
    """For each kind how many pairs have no value in some row, and in which columns."""
    found = []
    for kind in benchmark.kinds:
        columns: dict[int, dict[str, None]] = {}
        for column in benchmark.columns(kind):
            most = max(benchmark.mean(name, kind, column)["left_out"] for name in benchmark.scores(kind))
            columns.setdefault(most, {})[_title(column)[:-2]] = None
        total = len(benchmark.measured[COPY][kind].names)
        found += [f"{kind}, {count} of {total}: {', '.join(names)}" for count, names in columns.items() if count]
    return found


def content(
    benchmark: Benchmark,
    recipe: Recipe,
    args: argparse.Namespace,
    differences: Mapping[str, Mapping[str, Mapping[str, Difference]]],
) -> dict[str, Any]:
    """The same for machines."""
    costs = benchmark.costs
    return {
        "format": "memcomp-benchmark-1",
        "baseline": benchmark.baseline,
        "size": recipe.size,
        "pairs": {kind: len(scores.names) for kind, scores in benchmark.measured[COPY].items()},
        "pairs_seed": args.seed,
        "pairs_files": [file.name for file in args.pairs_file],
        "rows": [
            {
                "name": row.name,
                "runs": [
                    {"path": run.path, "seed": run.recipe.seed, "step": run.step, "sha256": run.sha256}
                    for run in row.runs
                ],
                **vars(costs.counted[row.name]),
                "milliseconds": costs.milliseconds.get(row.name),
            }
            for row in benchmark.rows
        ],
        "device": costs.device,
        "results": {
            kind: {
                name: {column: benchmark.mean(name, kind, column) for column in benchmark.columns(kind)}
                for name in benchmark.scores(kind)
            }
            for kind in benchmark.kinds
        },
        "differences": {
            kind: {name: {column: vars(delta) for column, delta in found.items()} for name, found in rows.items()}
            for kind, rows in differences.items()
        },
        "left_out": dict(benchmark.left_out),
        "published": published() if args.published else None,
        "versions": versions(),
    }


def _metric(column: str) -> Metric:
    """Of a column such as "standard.l1.disoccluded"."""
    return METRICS[column.split(".")[1]]


def _title(column: str) -> str:
    metric = _metric(column)
    return f"{metric.title}{' (d)' if column.endswith(MASKED) else ''} {'↑' if metric.higher_is_better else '↓'}"


def _mean_cell(found: Mapping[str, Any], column: str) -> str:
    if found["value"] is None:
        return ""
    digits, apart = _metric(column).digits, found["deviation_of_seeds"]
    return f"{found['value']:.{digits}f}" + ("" if apart is None else f" ± {apart:.{digits}f}")


def _difference_cell(delta: Difference | None, column: str) -> str:
    if delta is None:
        return ""
    metric = _metric(column)
    text = f"{delta.value:+.{metric.digits}f} [{delta.low:+.{metric.digits}f}, {delta.high:+.{metric.digits}f}]"
    if delta.low <= 0 <= delta.high:
        return text
    return f"{text} **{BETTER if (delta.value > 0) == metric.higher_is_better else WORSE}**"
