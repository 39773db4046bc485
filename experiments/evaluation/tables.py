"""Scores as Markdown under either protocol, as differences of two models, as JSON, and as raw values in CSV."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memcomp.experiments.evaluation.cells import Cell, cell_of
from memcomp.experiments.evaluation.scores import Results, Scores
from memcomp.experiments.files import NAMES, atomic_write
from memcomp.experiments.metrics.aggregate import Difference
from memcomp.experiments.metrics.registry import (
    MASK_NOTES,
    MASKS,
    METRICS,
    MINIMUM_PIXELS,
    PROTOCOLS,
    column_heading,
    mask_of,
    metric_of,
)
from memcomp.experiments.output.tables import markdown

Differences = Mapping[str, Mapping[str, Difference]]  # kind of pairs → column → difference


def score_table(results: Results, protocol: str) -> str:
    """The table of one protocol: a row for each kind of pairs and model, a column for each metric that was asked for.

    Columns marked (d) are means over disoccluded pixels. Cells that could not be measured say what is missing, those
    that lack pairs how many are in the mean; below the table stands why.
    """
    rows = [(f"{kind}: {model}", scores) for kind, models in results.items() for model, scores in models.items()]
    measured = {column for _, scores in rows for column in scores.columns}
    every = [f"{protocol}.{name}{end}" for end in ("", *(f".{m}" for m in MASKS)) for name in PROTOCOLS[protocol]]
    columns = [column for column in every if column in measured]
    lines = [[row, str(len(s.names)), *(cell_of(c, [s]).text() for c in columns)] for row, s in rows]
    masks = {mask_of(column) for column in columns}
    said = [MASK_NOTES[mask] for mask in MASKS if mask in masks]
    notes = [f"{'; '.join(said)}; pairs with fewer than {MINIMUM_PIXELS} left out"] if said else []
    for row, scores in rows:
        notes += [f"{row}: {note}" for note in _left_out(scores, columns, protocol)]
    header = [f"{protocol} protocol", "pairs", *map(column_heading, columns)]
    return "\n\n".join([markdown(header, lines), *notes])


def _left_out(scores: Scores, columns: list[str], protocol: str) -> list[str]:
    """Why some pairs, but not all, have no value: a line for the metrics that share the reasons."""
    found: dict[str, list[str]] = {}
    total = len(scores.names)
    for name, counts in scores.reasons().items():
        if f"{protocol}.{name}" in columns and counts.total() < total:
            why = ", ".join(f"{reason} ({count})" for reason, count in sorted(counts.items()))
            found.setdefault(f"left out {counts.total()} of {total}: {why}", []).append(METRICS[name].title)
    return [f"{', '.join(titles)}: {text}" for text, titles in found.items()]


def differences(results: Results, first: str, second: str) -> dict[str, dict[str, Difference]]:
    """Kind of pairs → column of the standard protocol → how much larger `first` is than `second`, pair by pair."""
    found: dict[str, dict[str, Difference]] = {}
    for kind, models in results.items():
        for column in models[first].columns:
            if column.startswith("standard."):
                delta = cell_of(column, [models[first]], [models[second]]).difference
                if delta is not None:
                    found.setdefault(kind, {})[column] = delta
    return found


def difference_table(deltas: Differences, title: str) -> str:
    """The differences with their 95 % intervals, and which way each points."""
    rows = []
    for kind, columns in deltas.items():
        for column, delta in columns.items():
            cell, mask = Cell(column, difference=delta), mask_of(column)
            verdict = "no clear difference" if cell.verdict == "unclear" else cell.verdict
            label = f"{kind}: {metric_of(column).title}{' ' + mask if mask else ''}"
            rows.append([label, cell.shift_text, cell.ends_text, str(delta.pairs), verdict])
    return markdown([title, "difference", "95 % interval", "pairs", "verdict"], rows)


def results_json(results: Results) -> dict[str, Any]:
    """Kind of pairs → model → column → {value, pairs, left_out} and, where pairs were skipped, {reason: count}."""

    def plain(scores: Scores, column: str) -> dict[str, Any]:
        found = cell_of(column, [scores]).to_json()
        return {key: value for key, value in found.items() if key in ("value", "pairs", "left_out") or value}

    return {
        kind: {model: {column: plain(scores, column) for column in scores.columns} for model, scores in models.items()}
        for kind, models in results.items()
    }


def differences_json(deltas: Differences) -> dict[str, Any]:
    """Kind of pairs → column → {value, low, high, pairs}."""
    return {kind: {column: vars(delta) for column, delta in columns.items()} for kind, columns in deltas.items()}


def write_pairs(path: str | Path, results: Results) -> None:
    """CSV with one row per kind of pairs, model and pair; an empty cell was not measurable, `inf` is an exact copy.

    Where faces were not found, the last column says so: "akd: no face in the prediction".
    """
    everything = [scores for models in results.values() for scores in models.values()]
    columns = list(dict.fromkeys(column for scores in everything for column in scores.columns))
    skipping = any(row for scores in everything for row in scores.skipped)
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8", errors=NAMES) as file:
        writer = csv.writer(file)
        writer.writerow(["kind", "model", "pair", *columns, *(["skipped"] if skipping else [])])
        for kind, models in results.items():
            for model, scores in models.items():
                for i, (name, row) in enumerate(zip(scores.names, scores.values, strict=True)):
                    cells = ["" if row.get(c) is None else repr(row[c]) for c in columns]
                    if skipping:
                        why = scores.skipped[i] if scores.skipped else {}
                        cells.append("; ".join(f"{metric}: {reason}" for metric, reason in why.items()))
                    writer.writerow([kind, model, name, *cells])
