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
from memcomp.experiments.metrics.aggregate import Difference, Verdict
from memcomp.experiments.metrics.registry import MASKED, PROTOCOLS, column_title, metric_of
from memcomp.experiments.report.charts import interval, scatter

EMPTY = {"mean": "", "apart": "", "pairs": None, "interval": None}  # a cell of a row without this column
Content = Mapping[str, Any]


def verdict(delta: Mapping[str, Any], column: str) -> Verdict:
    """Whether a difference's interval leaves out 0, and on which side."""
    return Difference(**delta).verdict(higher_is_better=metric_of(column).higher_is_better)


def tables(content: Content) -> list[dict[str, Any]]:
    """A table for each protocol and kind of pairs."""
    return [table(content, protocol, kind) for protocol in PROTOCOLS for kind in content["results"]]


def columns_of(content: Content, kind: str, protocol: str) -> list[str]:
    """Columns of a protocol that some row has; those under a mask last."""
    names = dict.fromkeys(c for row in content["results"][kind].values() for c in row if c.startswith(f"{protocol}."))
    return sorted(names, key=lambda name: name.endswith(MASKED))


def table(content: Content, protocol: str, kind: str) -> dict[str, Any]:
    """Rows of cells: a mean, and the difference to the baseline with its interval drawn."""
    found, differences = content["results"][kind], content["differences"].get(kind, {})
    columns = columns_of(content, kind, protocol)
    columns, copied = add_published(columns, kind, protocol) if content["published"] else (columns, [])
    seeds = {row["name"]: len(row["runs"]) for row in content["rows"]}
    limits = {column: limit_of(differences, column) for column in columns}
    rows = [
        {
            "name": name,
            "copied": False,
            "seeds": seeds.get(name),
            "baseline": name == content["baseline"],
            "cells": [cell(found[name].get(c), differences.get(name, {}).get(c), c, limits[c]) for c in columns],
        }
        for name in found
    ]
    for name, texts in copied:
        cells = [EMPTY | {"mean": texts.get(c, "")} for c in columns]
        rows.append({"name": name, "copied": True, "seeds": None, "baseline": False, "cells": cells})
    titles = [{"title": column_title(c), "higher": metric_of(c).higher_is_better} for c in columns]
    return {"protocol": protocol, "kind": kind, "pairs": content["pairs"][kind], "columns": titles, "rows": rows}


def limit_of(differences: Mapping[str, Mapping[str, Any]], column: str) -> float:
    """The largest end of any row's interval."""
    found = [delta for row in differences.values() if (delta := row.get(column)) is not None]
    return max((max(abs(delta["low"]), abs(delta["high"])) for delta in found), default=0.0)


def cell(
    mean: Mapping[str, Any] | None, delta: Mapping[str, float] | None, column: str, limit: float
) -> dict[str, Any]:
    """Texts of a cell, and where its interval is drawn."""
    metric = metric_of(column)
    digits = metric.digits
    if mean is None or mean["value"] is None:
        return EMPTY | {"mean": f"n/a ({', '.join(mean['skipped'])})" if mean and mean["skipped"] else ""}
    apart = mean["deviation_of_seeds"]
    found: dict[str, Any] = EMPTY | {"mean": f"{mean['value']:.{digits}f}"}
    found["apart"] = "" if apart is None else f"± {apart:.{digits}f}"
    found["pairs"] = mean["pairs"] if mean["left_out"] else None
    if delta is not None:
        low, value, high = delta["low"], delta["value"], delta["high"]
        found["difference"] = f"{value:+.{digits}f}"
        found["ends"] = f"[{low:+.{digits}f}, {high:+.{digits}f}]"
        found["verdict"] = verdict(delta, column)
        found["interval"] = interval(low, value, high, limit, higher_is_better=metric.higher_is_better)
    return found


def outcomes(content: Content) -> list[dict[str, Any]]:
    """For each row and kind of pairs: in which columns of the standard protocol it is better, worse, or neither."""
    found = []
    for kind, rows in content["differences"].items():
        for name, deltas in rows.items():
            said: dict[Verdict, list[str]] = {"better": [], "worse": [], "unclear": []}
            for column in columns_of(content, kind, "standard"):
                if column in deltas:
                    said[verdict(deltas[column], column)].append(column_title(column))
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
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                names, columns = found.setdefault(row.pop("kind"), {}).setdefault(row.pop("model"), ([], {}))
                names.append(row.pop("pair"))
                row.pop("skipped", None)
                for column, text in row.items():
                    columns.setdefault(column, []).append(float(text) if text else None)
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
    """For each row but the baseline, each kind of pairs: a plot for every column of the standard protocol."""
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
