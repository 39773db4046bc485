"""What a benchmark found, as tables: a line of means for each row, and below it the difference to the baseline."""

from __future__ import annotations

import functools
import operator
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from memcomp.experiments.benchmark.measure import Costs, Measured
from memcomp.experiments.benchmark.published import add_published
from memcomp.experiments.benchmark.runs import Row
from memcomp.experiments.evaluation.evaluate import COPY
from memcomp.experiments.evaluation.pair_lists import ListReport
from memcomp.experiments.evaluation.panel import Panel
from memcomp.experiments.evaluation.scores import Scores
from memcomp.experiments.metrics.aggregate import Difference, mean, seeds_difference
from memcomp.experiments.metrics.registry import MASKED, column_heading, metric_of
from memcomp.experiments.output.tables import markdown


@dataclass(frozen=True)
class Benchmark:
    """Everything that was measured."""

    rows: Sequence[Row]
    baseline: str
    measured: Measured
    costs: Costs
    panel: Panel
    left_out: Mapping[str, str]
    """Run as given → why it was not measured."""
    lists: ListReport
    """What became of the rows of lists of pairs."""

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
        """Mean over seeds of the means over pairs; how far seeds are apart; pairs, those left out, and why if known."""
        scores = self.scores(kind)[name]
        means = [mean(one.column(column)) for one in scores]
        reasons = [one.reasons().get(column.split(".")[1], Counter()) for one in scores]
        values = [found.value for found in means if found.value is not None]
        if len(values) < len(means):
            values = []
        return {
            "value": statistics.fmean(values) if values else None,
            "deviation_of_seeds": statistics.stdev(values) if len(values) > 1 else None,
            "pairs": min(found.pairs for found in means),
            "left_out": max(found.left_out for found in means),
            "skipped": dict(functools.reduce(operator.or_, reasons)),
        }

    def difference(self, name: str, kind: str, column: str) -> Difference | None:
        """How much larger a row is than the baseline, with its 95 % interval."""
        scores, row, base = self.scores(kind), self.row(name), self.row(self.baseline)
        if row is None or base is None or name == self.baseline:
            return None
        first, second = ([one.column(column) for one in scores[which]] for which in (name, self.baseline))
        return seeds_difference(first, second, paired=row.seeds == base.seeds)


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
    columns, copied = add_published(columns, kind, protocol) if with_published else (columns, [])
    lines = []
    for name, scores in benchmark.scores(kind).items():
        row = benchmark.row(name)
        count = len(scores[0].names)
        cells = [_mean_cell(benchmark.mean(name, kind, column), column, count) for column in columns]
        lines.append([name, "" if row is None else str(len(row.runs)), str(count), *cells])
        if name in differences:
            cells = [_difference_cell(differences[name].get(column), column, count) for column in columns]
            lines.append(["… less the baseline", "", "", *cells])
    for name, values in copied:
        lines.append([name, "", "", *(values.get(column, "") for column in columns)])
    header = [f"{protocol} protocol, {kind}", "seeds", "pairs", *map(column_heading, columns)]
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


def _mean_cell(found: Mapping[str, Any], column: str, count: int) -> str:
    if found["value"] is None:
        return f"n/a ({', '.join(found['skipped'])})" if found["skipped"] else ""
    digits, apart = metric_of(column).digits, found["deviation_of_seeds"]
    text = f"{found['value']:.{digits}f}" + ("" if apart is None else f" ± {apart:.{digits}f}")
    return text if found["pairs"] == count else f"{text} (n {found['pairs']})"


def _difference_cell(delta: Difference | None, column: str, count: int) -> str:
    if delta is None:
        return ""
    metric = metric_of(column)
    text = f"{delta.value:+.{metric.digits}f} [{delta.low:+.{metric.digits}f}, {delta.high:+.{metric.digits}f}]"
    text += "" if delta.pairs == count else f" (n {delta.pairs})"
    verdict = delta.verdict(higher_is_better=metric.higher_is_better)
    return text if verdict == "unclear" else f"{text} **{verdict}**"
