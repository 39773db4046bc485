"""Tables and files of what was measured; the pictures are in `pictures.py`."""

from __future__ import annotations

import csv
import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from memcomp.experiments.evaluation.scores import Results, Scores
from memcomp.experiments.files import atomic_write
from memcomp.experiments.metrics.aggregate import Difference, Mean, paired_difference
from memcomp.experiments.metrics.registry import (
    MASKED,
    METRICS,
    MINIMUM_PIXELS,
    PROTOCOLS,
    column_heading,
    metric_of,
)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, padded so that it also reads well in a terminal; the first column to the left."""
    widths = [max(len(line[i]) for line in (header, *rows)) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return "| " + " | ".join(padded) + " |"

    rule = "|" + "|".join("-" * (w + 1) + ("-" if i == 0 else ":") for i, w in enumerate(widths)) + "|"
    return "\n".join([line(header), rule, *map(line, rows)])


def score_table(results: Results, protocol: str) -> str:
    """The table of one protocol: a row for each kind of pairs and model, a column for each metric that was asked for.

    Columns marked (d) are means over disoccluded pixels. Cells that could not be measured say what is missing, those
    that lack pairs how many are in the mean; below the table stands why.
    """
    everything = [scores for models in results.values() for scores in models.values()]
    measured = {column for scores in everything for column in scores.columns}
    names = [(n, s) for s in ("", f".{MASKED}") for n in PROTOCOLS[protocol] if f"{protocol}.{n}{s}" in measured]
    header = [f"{protocol} protocol", "pairs", *(column_heading(f"{protocol}.{n}{s}") for n, s in names)]
    rows = []
    masked = f"(d): on disoccluded pixels, those that the source hides; pairs with fewer than {MINIMUM_PIXELS} left out"
    notes = [masked] if any(s for _, s in names) else []
    for kind, models in results.items():
        for model, scores in models.items():
            means, reasons = scores.means(), scores.reasons()
            cells = [_cell(means.get(f"{protocol}.{n}{s}"), METRICS[n].digits, reasons.get(n)) for n, s in names]
            rows.append([f"{kind}: {model}", str(len(scores.names)), *cells])
            left_out: dict[str, list[str]] = {}
            for name, counts in reasons.items():
                if (name, "") in names and counts.total() < len(scores.names):
                    why = ", ".join(f"{reason} ({count})" for reason, count in sorted(counts.items()))
                    text = f"left out {counts.total()} of {len(scores.names)}: {why}"
                    left_out.setdefault(text, []).append(METRICS[name].title)
            notes += [f"{kind}: {model}: {', '.join(titles)}: {text}" for text, titles in left_out.items()]
    return "\n\n".join([markdown(header, rows), *notes])


def _cell(value: Mean | None, digits: int, reasons: Mapping[str, int] | None) -> str:
    if value is None or value.value is None:
        return f"n/a ({', '.join(reasons)})" if reasons else ""
    return f"{value.value:.{digits}f}" + (f" (n {value.pairs})" if value.left_out else "")


def differences(results: Results, first: str, second: str) -> dict[str, dict[str, Difference]]:
    """Kind of pairs → column of the standard protocol → how much larger `first` is than `second`, pair by pair."""
    found: dict[str, dict[str, Difference]] = {}
    for kind, models in results.items():
        for column in models[first].columns:
            if not column.startswith("standard."):
                continue
            delta = paired_difference(models[first].column(column), models[second].column(column))
            if delta is not None:
                found.setdefault(kind, {})[column] = delta
    return found


def difference_table(deltas: Mapping[str, Mapping[str, Difference]], title: str) -> str:
    """The differences with their 95 % intervals, and which way each points."""
    rows = []
    for kind, columns in deltas.items():
        for column, delta in columns.items():
            metric, masked = metric_of(column), column.endswith(MASKED)
            found = delta.verdict(higher_is_better=metric.higher_is_better)
            verdict = "no clear difference" if found == "unclear" else found
            label = f"{kind}: {metric.title}{' ' + MASKED if masked else ''}"
            interval = f"[{delta.low:+.4f}, {delta.high:+.4f}]"
            rows.append([label, f"{delta.value:+.4f}", interval, str(delta.pairs), verdict])
    return markdown([title, "difference", "95 % interval", "pairs", "verdict"], rows)


def results_json(results: Results) -> dict[str, Any]:
    """Kind of pairs → model → column → {value, pairs, left_out} and, where pairs were skipped, {reason: count}."""

    def plain(scores: Scores) -> dict[str, Any]:
        reasons = scores.reasons()
        skipped = {c: reasons[c.split(".")[1]] for c in scores.columns if c.split(".")[1] in reasons}
        return {c: vars(m) | ({"skipped": dict(skipped[c])} if c in skipped else {}) for c, m in scores.means().items()}

    return {kind: {model: plain(scores) for model, scores in models.items()} for kind, models in results.items()}


def differences_json(deltas: Mapping[str, Mapping[str, Difference]]) -> dict[str, Any]:
    """Kind of pairs → column → {value, low, high, pairs}."""
    return {kind: {column: vars(delta) for column, delta in columns.items()} for kind, columns in deltas.items()}


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Strict JSON (no NaN or Infinity), indented, all or nothing."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def write_pairs(path: str | Path, results: Results) -> None:
    """CSV with one row per kind of pairs, model and pair; an empty cell was not measurable, `inf` is an exact copy.

    Where faces were not found, the last column says so: "akd: no face in the prediction".
    """
    everything = [scores for models in results.values() for scores in models.values()]
    columns = list(dict.fromkeys(column for scores in everything for column in scores.columns))
    skipping = any(row for scores in everything for row in scores.skipped)
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
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


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    found = {"python": platform.python_version()}
    for name in (
        "memcomp",
        "torch",
        "torchvision",
        "numpy",
        "scikit-image",
        "av",
        "dlib-bin",
        "face_recognition_models",
    ):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def versions_line() -> str:
    """The same, for below a table."""
    return f"Versions: {', '.join(f'{name} {number}' for name, number in versions().items())}"
