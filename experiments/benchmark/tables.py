"""What a benchmark found, as tables: a line of means for each row, and below it the difference to the baseline."""

from __future__ import annotations

from memcomp.experiments.benchmark.published import add_published
from memcomp.experiments.benchmark.result import Benchmark
from memcomp.experiments.evaluation.cells import Cell
from memcomp.experiments.metrics.registry import column_heading
from memcomp.experiments.output.tables import markdown


def table(benchmark: Benchmark, kind: str, protocol: str) -> str:
    """One kind of pairs under one protocol: per row a line of means, and below it the difference to the baseline."""
    columns = benchmark.columns(kind, protocol + ".")
    columns, copied = add_published(columns, kind, protocol) if benchmark.options.published else (columns, [])
    lines = []
    for name, scores in benchmark.scores(kind).items():
        row = benchmark.row(name)
        cells = [benchmark.cells[kind][name].get(column, Cell(column)) for column in columns]
        lines.append([name, "" if row is None else str(len(row.runs)), str(len(scores[0].names))])
        lines[-1] += [cell.text() for cell in cells]
        if row is not None and name != benchmark.baseline:
            lines.append(["… less the baseline", "", "", *(cell.difference_text() for cell in cells)])
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
