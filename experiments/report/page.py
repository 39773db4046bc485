"""Make `report.html` from the files of a benchmark's folder: no checkpoint and no torch model is needed any more."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from datetime import date
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from memcomp.experiments.errors import UserError
from memcomp.experiments.files import atomic_write, existing_file
from memcomp.experiments.metrics.registry import column_heading, metric_of
from memcomp.experiments.report.charts import panel
from memcomp.experiments.report.collect import FOLDER, FORMAT
from memcomp.experiments.report.media import data_uri
from memcomp.experiments.report.tables import cost_rows, outcomes, read_values, row_values, scatters, tables

NAME = "report.html"


def write_page(folder: Path) -> Path:
    """Write report.html beside a benchmark's table; returns its path.

    Args:
        folder: holds benchmark.json and pairs.csv; shown/ if clips and the memory were to be shown.

    Raises:
        UserError: these are not what `memcomp benchmark` writes.
    """
    content = read_json(folder / "benchmark.json", "memcomp-benchmark-1")
    values = read_values(existing_file(folder / "pairs.csv", "table of values of `memcomp benchmark`"))
    shown = read_json(folder / FOLDER / "shown.json", FORMAT) if (folder / FOLDER / "shown.json").is_file() else None
    try:
        context = page_context(content, values, shown, folder / FOLDER)
        text = environment().get_template("report.html.jinja").render(context)
    except (LookupError, TypeError, ValueError, StopIteration, FileNotFoundError, jinja2.UndefinedError) as error:
        raise UserError(f"{folder}: expected the files of one benchmark, they do not fit ({error!r})") from error
    with atomic_write(folder / NAME) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="replace")
    return folder / NAME


def read_json(path: Path, form: str) -> dict[str, Any]:
    """A JSON file that says which format it is of.

    Raises:
        UserError: it is not of this format.
    """
    file = existing_file(path, "file of `memcomp benchmark`")
    try:
        found = json.loads(file.read_text("utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict) or found.get("format") != form:
        raise UserError(f"{path}: expected a file of the format {form}")
    return found


def page_context(
    content: Mapping[str, Any], values: Mapping[str, Any], shown: Mapping[str, Any] | None, folder: Path
) -> dict[str, Any]:
    """Everything that the template says."""
    names = [row["name"] for row in content["rows"]]
    seeds = sorted({run["seed"] for row in content["rows"] for run in row["runs"]})
    context: dict[str, Any] = {
        "content": content,
        "names": names,
        "seeds": seeds,
        "outcomes": outcomes(content),
        "tables": tables(content),
        "costs": cost_rows(content),
        "timed": any(row["milliseconds"] for row in content["rows"]),
        "scatters": scatters(content, values),
        "notes": [inline(note) for note in content.get("notes", ())],
        "shown": shown,
        "made": date.today().isoformat(),
        "uri": lambda name: data_uri(folder / name),
    }
    if shown is not None:
        context["videos"] = [video | {"values": video_values(content, values, video)} for video in shown["videos"]]
        context["panels"] = panels(shown["losses"], names)
        context["without_log"] = [name for name, runs in shown["losses"].items() if not any(runs)]
    return context


def video_values(
    content: Mapping[str, Any], values: Mapping[str, Any], video: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Values of a pair in the standard protocol: metric, and the value of each of the page's rows."""
    kind, number = video["kind"], video["number"]
    found = []
    for column in dict.fromkeys(c for row in content["results"][kind].values() for c in row):
        if column.startswith("standard."):
            cells = {
                row["name"]: column_values[number]
                for row in content["rows"]
                if (column_values := row_values(content, values, kind, row["name"], column)[1])
            }
            digits = metric_of(column).digits
            texts = {name: "–" if value is None else f"{value:.{digits}f}" for name, value in cells.items()}
            found.append({"title": column_heading(column), "texts": texts, "ranked": column == video["ranked_by"]})
    return found


def panels(losses: Mapping[str, list[dict[str, Any]]], names: list[str]) -> list[Any]:
    """A panel for each loss; held-out pairs first."""
    found = dict.fromkeys(["held_out", *(c for runs in losses.values() for run in runs for c in run)])
    made = []
    for column in found:
        rows = {names.index(n): [run[column] for run in runs if column in run] for n, runs in losses.items()}
        if any(rows.values()):
            made.append(panel(column, rows))
    return made


def inline(note: str) -> str:
    """A note's Markdown (bold, code, a list) as HTML; everything else is escaped."""
    text = html.escape(note)
    text = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", text)
    return re.sub(r"`(.+?)`", r"<code>\1</code>", text).replace("\n- ", "<br>– ")


def environment() -> jinja2.Environment:
    """Templates of this package; what they insert is escaped."""
    files = resources.files("memcomp.experiments.report")
    loader = jinja2.FunctionLoader(lambda name: files.joinpath(name).read_text("utf-8"))
    return jinja2.Environment(
        loader=loader,
        autoescape=lambda name: name is None or ".html" in name,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
