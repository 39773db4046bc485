"""Markdown tables, strict JSON, and the versions that numbers rest on."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from memcomp.experiments.files import atomic_write


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, padded so that it also reads well in a terminal; the first column to the left."""
    widths = [max(len(line[i]) for line in (header, *rows)) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return "| " + " | ".join(padded) + " |"

    rule = "|" + "|".join("-" * (w + 1) + ("-" if i == 0 else ":") for i, w in enumerate(widths)) + "|"
    return "\n".join([line(header), rule, *map(line, rows)])


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Strict JSON (no NaN or Infinity), indented, all or nothing."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def versions() -> dict[str, str]:
    """Name → version of what the numbers depend on."""
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
    """The versions as a line below a table."""
    return f"Versions: {', '.join(f'{name} {number}' for name, number in versions().items())}"
