"""The page's tables and scatter plots, from benchmark.json and pairs.csv alone."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from memcomp.experiments.benchmark.published import add_published
from memcomp.experiments.benchmark.runs import run_labels
from memcomp.experiments.errors import UserError
from memcomp.experiments.evaluation.cells import Cell
from memcomp.experiments.files import NAMES
from memcomp.experiments.metrics.aggregate import Verdict
from memcomp.experiments.metrics.registry import PROTOCOLS, column_title, in_order, metric_of
from memcomp.experiments.report.charts import interval, scatter

Content = Mapping[str, Any]


def cell_at(content: Content, kind: str, name: str, column: str) -> Cell:
    """The cell of a row, empty if it does not have this column."""
    delta = content["differences"].get(kind, {}).get(name, {}).get(column)
    return Cell.from_json(column, content["results"][kind].get(name, {}).get(column), delta)


def tables(content: Content) -> list[dict[str, Any]]:
    """A table for each protocol and kind of pairs."""
    return [table(content, protocol, kind) for protocol in PROTOCOLS for kind in content["results"]]


def columns_of(content: Content, kind: str, protocol: str) -> list[str]:
    """Columns of a protocol that some row has; those under a mask last."""
    names = dict.fromkeys(c for row in content["results"][kind].values() for c in row if c.startswith(f"{protocol}."))
    return in_order(names)


def table(content: Content, protocol: str, kind: str) -> dict[str, Any]:
    """One table of the page: rows of cells, each a mean and the difference to the baseline with its interval drawn."""
    columns = columns_of(content, kind, protocol)
    columns, copied = add_published(columns, kind, protocol) if content["published"] else (columns, [])
    seeds = {row["name"]: len(row["runs"]) for row in content["rows"]}
    cells = {name: [cell_at(content, kind, name, c) for c in columns] for name in content["results"][kind]}
    limits = [limit_of(many) for many in zip(*cells.values(), strict=True)]
    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "copied": False,
            "seeds": seeds.get(name),
            "baseline": name == content["baseline"],
            "cells": [html_cell(*one) for one in zip(mine, limits, strict=True)],
        }
        for name, mine in cells.items()
    ]
    for name, texts in copied:
        printed = [html_cell(Cell(c), 0) | {"mean": texts.get(c, "")} for c in columns]
        rows.append({"name": name, "copied": True, "seeds": None, "baseline": False, "cells": printed})
    titles = [{"title": column_title(c), "higher": metric_of(c).higher_is_better} for c in columns]
    return {"protocol": protocol, "kind": kind, "pairs": content["pairs"][kind], "columns": titles, "rows": rows}


def limit_of(cells: Sequence[Cell]) -> float:
    """The largest end of any row's interval."""
    ends = [abs(end) for cell in cells if cell.difference for end in (cell.difference.low, cell.difference.high)]
    return max(ends, default=0.0)


def html_cell(cell: Cell, limit: float) -> dict[str, Any]:
    """Texts of a cell, and where its interval is drawn on a line that holds `limit`."""
    few = cell.value is not None and cell.left_out
    found = {"mean": cell.mean_text, "apart": cell.spread_text, "pairs": cell.pairs if few else None, "interval": None}
    delta = cell.difference
    if cell.value is None or delta is None:
        return found
    higher = metric_of(cell.column).higher_is_better
    return found | {
        "difference": cell.shift_text,
        "ends": cell.ends_text,
        "verdict": cell.verdict,
        "interval": interval(delta.low, delta.value, delta.high, limit, higher_is_better=higher),
    }


def outcomes(content: Content) -> list[dict[str, Any]]:
    """Columns of the standard protocol in which each row is better, worse, or neither, by kind of pairs."""
    found = []
    for kind, rows in content["differences"].items():
        for name in rows:
            said: dict[Verdict, list[str]] = {"better": [], "worse": [], "unclear": []}
            for column in columns_of(content, kind, "standard"):
                if (cell := cell_at(content, kind, name, column)).difference is not None:
                    said[cell.verdict].append(column_title(column))
            if any(said.values()):
                found.append({"kind": kind, "name": name, "said": said})
    return found


def read_values(path: Path) -> dict[str, dict[str, tuple[list[str], dict[str, list[float | None]]]]]:
    """pairs.csv: kind → label of a run → names of pairs, and column → values.

    Raises:
        UserError: it is not what `memcomp benchmark` writes.
    """
    found: dict[str, dict[str, tuple[list[str], dict[str, list[float | None]]]]] = {}
    try:
        with path.open(newline="", encoding="utf-8", errors=NAMES) as file:
            for row in csv.DictReader(file):
                names, columns = found.setdefault(row.pop("kind"), {}).setdefault(row.pop("model"), ([], {}))
                names.append(row.pop("pair"))
                row.pop("skipped", None)
                for column, text in row.items():
                    columns.setdefault(column, []).append(float(text) if text else None)
        if not found:
            raise ValueError("there are none")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: expected the values that `memcomp benchmark` writes ({error})") from None
    return found


def row_values(
    content: Content, values: Mapping[str, Any], kind: str, name: str, column: str
) -> tuple[list[str], list[float | None]]:
    """Names of pairs, and for each the mean over a row's runs; None where one has no value."""
    row = next(row for row in content["rows"] if row["name"] == name)
    labels = run_labels(name, [run["seed"] for run in row["runs"]])
    many = [values[kind][label][1].get(column, []) for label in labels]
    means = [
        None if any(v is None for v in of_pair) else math.fsum(of_pair) / len(of_pair)
        for of_pair in zip(*many, strict=True)
    ]
    return values[kind][labels[0]][0], means


def scatters(content: Content, values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Scatter plots of every row but the baseline, by kind of pairs and column of the standard protocol."""
    found = []
    for name in [row["name"] for row in content["rows"] if row["name"] != content["baseline"]]:
        for kind in content["results"]:
            plots = []
            for column in columns_of(content, kind, "standard"):
                names, base = row_values(content, values, kind, content["baseline"], column)
                other = row_values(content, values, kind, name, column)[1]
                metric = metric_of(column)
                if not (base and other):
                    continue
                plot = scatter(base, other, names, digits=metric.digits, higher_is_better=metric.higher_is_better)
                if plot is not None:
                    plots.append({"title": column_title(column), "higher": metric.higher_is_better, "plot": plot})
            if plots:
                found.append({"name": name, "kind": kind, "plots": plots})
    return found


def cost_rows(content: Content) -> Sequence[Mapping[str, Any]]:
    """Parameters, operations and time of a frame of each row."""
    base = next(row for row in content["rows"] if row["name"] == content["baseline"])
    most = max((row["host_parameters"] + row["memory_parameters"] for row in content["rows"]), default=1)
    return [
        row
        | {
            "host_share": 100 * row["host_parameters"] / most,
            "memory_share": 100 * row["memory_parameters"] / most,
            "flop_ratio": row["gflop"] / base["gflop"],
            "time_ratio": row["milliseconds"] / base["milliseconds"] if row["milliseconds"] else None,
        }
        for row in content["rows"]
    ]
