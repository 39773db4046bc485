"""The rows of the paper's Tables 1 and 2, copied from it: never measured here, and marked so wherever they stand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import resources
from typing import Any

MARK = "published, not measured here"
COLUMNS = {"lpips": "lpips_alex"}  # where a metric of the paper stands in a table of ours


def published() -> dict[str, Any]:
    """`results/published.json`: source, protocol, and tables of {table, data, kind, rows: name → metric → text}."""
    text = resources.files("memcomp.experiments.results").joinpath("published.json").read_text("utf-8")
    return json.loads(text)


def published_rows(kind: str) -> Iterator[tuple[str, dict[str, str]]]:
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


def _share(percent: str) -> str:
    """ "82.5" (percent) → "0.825"."""
    return f"{float(percent) / 100:.3f}"
