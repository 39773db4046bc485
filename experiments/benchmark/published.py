"""The rows of the paper's Tables 1 and 2, copied from it: never measured here, and marked so wherever they stand."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from importlib import resources
from typing import Any

from memcomp.experiments.metrics.registry import in_order

MARK = "published, not measured here"
PublishedRow = tuple[str, dict[str, str]]  # its label, and texts as printed
COLUMNS = {"lpips": "lpips_alex"}  # where a metric of the paper stands in a table of ours


def published() -> dict[str, Any]:
    """`results/published.json`: source, protocol, and tables of {table, data, kind, rows: name → metric → text}."""
    text = resources.files("memcomp.experiments.results").joinpath("published.json").read_text("utf-8")
    return json.loads(text)


def published_rows(kind: str) -> Iterator[PublishedRow]:
    """Label, and metric → text as printed (SSIM as a share, as everywhere here) of every row on a kind of pairs.

    A row that stands in both tables comes once.
    """
    seen: set[str] = set()
    for table in published()["tables"]:
        if table["kind"] != kind:
            continue
        for name, values in table["rows"].items():
            printed = {COLUMNS.get(metric, metric): text for metric, text in values.items() if text}
            cells = {metric: _share(text) if metric == "ssim" else text for metric, text in printed.items()}
            key = json.dumps([table["data"], cells])
            if key not in seen:
                seen.add(key)
                yield f"{name}, {table['data']} ({MARK})", cells


def add_published(columns: Iterable[str], kind: str, protocol: str) -> tuple[list[str], list[PublishedRow]]:
    """Columns such as "paper.l1" with those that the published rows have besides, and these rows: label, column → text.

    Only the protocol `paper` has such rows. Columns under a mask come last.
    """
    rows = list(published_rows(kind)) if protocol == "paper" else []
    named = [(name, {f"{protocol}.{metric}": text for metric, text in cells.items()}) for name, cells in rows]
    every = dict.fromkeys([*columns, *(column for _, cells in named for column in cells)])
    return in_order(every), named


def _share(percent: str) -> str:
    """ "82.5" (percent) → "0.825"."""
    return f"{float(percent) / 100:.3f}"
