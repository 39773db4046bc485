"""A benchmark's files: report.md, benchmark.json, pairs.csv, and what stands below the tables."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from memcomp.experiments.benchmark.published import MARK, published
from memcomp.experiments.benchmark.result import Benchmark
from memcomp.experiments.benchmark.runs import reasons
from memcomp.experiments.benchmark.tables import cost_table, table
from memcomp.experiments.cost import NOT_COUNTED
from memcomp.experiments.evaluation.options import COPY
from memcomp.experiments.evaluation.scores import Scores
from memcomp.experiments.evaluation.tables import write_pairs
from memcomp.experiments.files import atomic_write
from memcomp.experiments.metrics.registry import MASK_NOTES, MASKS, MINIMUM_PIXELS, PROTOCOLS, column_title, mask_of
from memcomp.experiments.output.tables import versions, versions_line, write_json


def write(folder: Path, benchmark: Benchmark) -> str:
    """Write report.md, benchmark.json and pairs.csv; returns the report's text."""
    parts = [table(benchmark, kind, protocol) for protocol in PROTOCOLS for kind in benchmark.kinds]
    told = notes(benchmark)
    text = "\n\n".join([*parts, cost_table(benchmark), *told])
    with atomic_write(folder / "report.md") as temporary:
        temporary.write_text(text + "\n", encoding="utf-8", errors="replace")
    write_json(folder / "benchmark.json", content(benchmark) | {"notes": told})
    write_pairs(folder / "pairs.csv", {kind: dict(labelled(benchmark, kind)) for kind in benchmark.kinds})
    return f"{text}\n\nwritten to {folder}: report.md, benchmark.json, pairs.csv"


def labelled(benchmark: Benchmark, kind: str) -> Iterator[tuple[str, Scores]]:
    """Every run under a name of its own, for the table of raw values."""
    yield COPY, benchmark.measured[COPY][kind]
    for row in benchmark.rows:
        for label, run in zip(row.labels(), row.runs, strict=True):
            yield label, benchmark.measured[run.sha256][kind]


def notes(benchmark: Benchmark) -> list[str]:
    """What the numbers rest on, and what they do not tell."""
    options, size = benchmark.options, benchmark.recipe.size
    seeds = {len(row.runs) for row in benchmark.rows}
    base = benchmark.row(benchmark.baseline)
    over = "pairs and seeds (drawn on two levels; with two or three seeds somewhat too narrow)"
    if seeds == {1}:
        over = "pairs only: one seed each, so the interval does not tell what another training would give"
    elif min(seeds) == 1:
        over += "; where a row has one seed, over the pairs and the other row's seeds only"
    masks = [m for m in MASKS if any(m == mask_of(c) for kind in benchmark.kinds for c in benchmark.columns(kind))]
    changed = f" with {' '.join(options.changes)}" if options.changes else ""
    lines = [
        f"Baseline: {benchmark.baseline}. A difference stands with its 95 % interval, a bootstrap over {over}. "
        "**better** or **worse**: the interval leaves out 0; of many columns one in twenty does so by chance.",
        f"{size}×{size}, absolute motion, pairs of the baseline's data{changed}, seed {options.pairs.seed}. "
        f"{'; '.join(MASK_NOTES[mask] for mask in masks)}; a pair with fewer than {MINIMUM_PIXELS} of them is left "
        "out there.",
        "GFLOP: 10⁹ operations of convolutions, matrix products and attention, a multiplication and its addition being "
        f"two, as the network computes on {benchmark.costs.device.partition(',')[0]}; {NOT_COUNTED}.",
    ]
    if benchmark.costs.milliseconds:
        lines[-1] += f" ms: median of {benchmark.costs.repeats} frames, one at a time, {benchmark.costs.device}."
    if base is not None and max(seeds) > 1 and any(row.seeds != base.seeds for row in benchmark.rows):
        lines.append("Rows with other seeds than the baseline's: seeds are drawn independently on both sides.")
    if options.published:
        about = published()
        lines.append(
            f"“{MARK}”: copied from {about['source']}; other data, pictures of 256×256; "
            f"{about['protocol']} (here: a share)."
        )
    lines += [*benchmark.panel.about, versions_line()]
    if missing := pairs_left_out(benchmark):
        lines.append(
            "n: pairs with a value, where some have none; a difference is over the pairs that both rows have, so it "
            f"need not be that of the means. Most pairs without a value in any row: {'; '.join(missing)}."
        )
    if benchmark.lists.rows:
        lines.append(str(benchmark.lists))
    if benchmark.left_out:
        told = "".join(f"\n- {line}" for line in reasons(benchmark.left_out))
        count = len(benchmark.left_out)
        lines.append(f"{count} run{'s' if count > 1 else ''} left out:{told}")
    return lines


def pairs_left_out(benchmark: Benchmark) -> list[str]:
    """A line for each kind: how many pairs have no value in some row, in which columns, and why if it is known."""
    found = []
    for kind in benchmark.kinds:
        total = len(benchmark.measured[COPY][kind].names)
        columns: dict[str, dict[str, None]] = {}
        for column in benchmark.columns(kind):
            cells = [row[column] for row in benchmark.cells[kind].values()]
            most, why = max(cell.left_out for cell in cells), dict.fromkeys(r for cell in cells for r in cell.skipped)
            if 0 < most < total:
                count = f"{most} of {total}{' (' + ', '.join(why) + ')' if why else ''}"
                columns.setdefault(count, {})[column_title(column)] = None
        found += [f"{kind}, {count}: {', '.join(names)}" for count, names in columns.items()]
    return found


def content(benchmark: Benchmark) -> dict[str, Any]:
    """The report as JSON-ready data (benchmark.json)."""
    costs = benchmark.costs
    return {
        "format": "memcomp-benchmark-1",
        "baseline": benchmark.baseline,
        "size": benchmark.recipe.size,
        "pairs": {kind: len(scores.names) for kind, scores in benchmark.measured[COPY].items()},
        "pairs_seed": benchmark.options.pairs.seed,
        "pairs_files": [file.name for file in benchmark.options.pairs.files],
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
        "metrics": benchmark.panel.metrics,
        "backends": benchmark.panel.about,
        "results": {
            kind: {name: {column: cell.to_json() for column, cell in row.items()} for name, row in rows.items()}
            for kind, rows in benchmark.cells.items()
        },
        "differences": {
            kind: {
                row.name: {c: vars(cell.difference) for c, cell in rows[row.name].items() if cell.difference}
                for row in benchmark.rows
                if row.name != benchmark.baseline
            }
            for kind, rows in benchmark.cells.items()
        },
        "left_out": dict(benchmark.left_out),
        "lists": vars(benchmark.lists) if benchmark.lists.rows else None,
        "published": published() if benchmark.options.published else None,
        "versions": versions(),
    }
