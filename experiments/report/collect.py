"""What a page shows besides numbers, made while the checkpoints are at hand and kept in the benchmark's folder."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from memcomp.experiments.benchmark.result import Benchmark
from memcomp.experiments.benchmark.runs import Row
from memcomp.experiments.checkpoints.trained import load_host
from memcomp.experiments.evaluation.options import SAME
from memcomp.experiments.evaluation.scores import Model
from memcomp.experiments.files import writable_folder
from memcomp.experiments.metrics.registry import metric_of
from memcomp.experiments.output.figures import error_picture
from memcomp.experiments.output.tables import write_json
from memcomp.experiments.report.clips import PairClip, clip_of
from memcomp.experiments.report.curves import curves
from memcomp.experiments.report.media import save_clip, save_picture
from memcomp.experiments.report.memory import memory_shown
from memcomp.experiments.video import to_frame

FOLDER, FORMAT = "shown", "memcomp-shown-1"


def collect(benchmark: Benchmark) -> None:
    """Write clips of the worst, median and best pairs, loss curves and a look into the memory to the folder `shown`."""
    row = shown_row(benchmark, benchmark.options.show)
    folder = benchmark.options.output / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    writable_folder(folder)
    rows = [r for r in (benchmark.row(benchmark.baseline), row) if r is not None]
    hosts = {r.name: load_host(r.runs[0].path, benchmark.device) for r in rows}
    models = {name: Model(host, recipe.data.channels) for name, (host, recipe) in hosts.items()}
    videos: list[dict[str, Any]] = []
    for kind, chosen in benchmark.pairs.items():
        for which, number, column in ranked(benchmark, row, kind):
            clip = clip_of(chosen, number, kind)
            name = benchmark.scores(kind)[row.name][0].names[number]
            entry: dict[str, Any] = {"kind": kind, "which": which, "pair": name}
            entry |= {"number": number, "ranked_by": column, "rate": clip.rate, "frame": clip.at, "time": clip.time}
            entry["columns"] = columns(folder, f"video{len(videos)}", clip, models, kind)
            videos.append(entry)
    host, own = hosts[row.name]
    content = {
        "format": FORMAT,
        "row": row.name,
        "size": benchmark.recipe.size,
        "videos": videos,
        "losses": {r.name: curves(r) for r in benchmark.rows},
        "memory": None if host.memory is None else memory_shown(folder, host, own, benchmark.pairs),
    }
    write_json(folder / "shown.json", content)


def shown_row(benchmark: Benchmark, name: str | None) -> Row:
    """The row of this name if it was measured; else the last with a memory, not the baseline if there are others."""
    named = benchmark.row(name) if name is not None else None
    if named is not None:
        return named
    others = [row for row in benchmark.rows if row.name != benchmark.baseline] or list(benchmark.rows)
    with_memory = [row for row in others if benchmark.costs.counted[row.name].memory_parameters]
    return (with_memory or others)[-1]


def ranked(benchmark: Benchmark, row: Row, kind: str) -> list[tuple[str, int, str | None]]:
    """Worst, median and best pair of a row's first run: label, number, and the column that says so.

    The column is the first that has values, L1 where it was measured; without any, the first three pairs.
    """
    scores = benchmark.scores(kind)[row.name][0]
    for column in benchmark.columns(kind):
        known = [(value, i) for i, value in enumerate(scores.column(column)) if value is not None]
        if known:
            higher = metric_of(column).higher_is_better
            order = [i for _, i in sorted(known, reverse=not higher)]
            chosen = {order[0]: "worst", order[-1]: "best", order[len(order) // 2]: "median"}
            found = [(which, i, column) for i, which in chosen.items()]
            return sorted(found, key=lambda one: ("worst", "median", "best").index(one[0]))
    return [(f"pair {i + 1}", i, None) for i in range(min(3, len(scores.names)))]


def columns(folder: Path, name: str, clip: PairClip, models: Mapping[str, Model], kind: str) -> list[dict[str, str]]:
    """Write the clips that stand side by side: source, driving, the truth, each prediction, each error."""
    found = [{"title": "source", "file": save_picture(folder / f"{name}_source.png", to_frame(clip.source[:3]))}]

    def add(title: str, pictures: Sequence[Any]) -> None:
        file = save_clip(folder / f"{name}_{len(found)}.webm", pictures, clip.times)
        found.append({"title": title, "file": file})

    add("driving", frames(clip.driving))
    truth = None if clip.target is None else frames(clip.target)
    if truth is not None and kind != SAME:
        add("truth", truth)
    predictions = {}
    for label, model in models.items():
        predict = model.predictor(kind)
        parts = [predict(clip.source.expand(len(part), -1, -1, -1), part) for part in clip.driving.split(8)]
        predictions[label] = frames(torch.cat(parts))
        add(label, predictions[label])
    for label, pictures in predictions.items() if truth is not None else ():
        add(f"error of {label}", [error_picture(one, true) for one, true in zip(pictures, truth or (), strict=True)])
    return found


def frames(pictures: Tensor) -> list[Any]:
    """(T, 3 or 4, H, W) → T frames."""
    return [to_frame(picture[:3]) for picture in pictures]
