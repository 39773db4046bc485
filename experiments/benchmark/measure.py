"""What a benchmark measures: every run on the same pairs, kept as it goes, and what a frame of each row costs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from memcomp.experiments import metrics
from memcomp.experiments.benchmark.runs import Row, Run
from memcomp.experiments.checkpoints.trained import load_host
from memcomp.experiments.cost import Cost, cost, device_name, frame, milliseconds
from memcomp.experiments.data.heads import RENDERER_VERSION
from memcomp.experiments.data.heads_set import EvalPairs
from memcomp.experiments.errors import UserError
from memcomp.experiments.evaluation.clip_pairs import ClipPair
from memcomp.experiments.evaluation.evaluate import COPY
from memcomp.experiments.evaluation.pairs import SAME, has_truth
from memcomp.experiments.evaluation.panel import Panel
from memcomp.experiments.evaluation.scores import Pair, Predict, Scores, copy_source, host_predictor, score
from memcomp.experiments.files import atomic_write
from memcomp.experiments.output.tables import versions
from memcomp.experiments.recipe.sections import Recipe

KEPT = 2**29  # bytes of pairs that are read once and held; more are read again for every run
Measured = Mapping[str, Mapping[str, Scores]]  # sha256 of a checkpoint, or COPY → kind of pairs → scores


def pairs_key(recipe: Recipe, pairs: Mapping[str, Sequence[Pair]], count: int | None, seed: int, panel: Panel) -> str:
    """Digest of everything that decides pairs and formulas: equal keys, equal numbers.

    Args:
        recipe: whose data the pairs are of.
        pairs: kind → pairs.
        count: how many of each kind were asked for; None = the default.
        seed: of their draw.
        panel: what is measured.
    """
    data = recipe.data
    about: list[Any] = [versions(), recipe.size, data.kind, count, seed, panel.metrics, panel.about]
    for kind, chosen in pairs.items():
        about += [kind, len(chosen)]
        if isinstance(chosen, EvalPairs):
            about += [RENDERER_VERSION, data.frames, data.rate, data.seed, data.depth, chosen.places]
        else:
            assert isinstance(chosen[0], ClipPair)
            files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in chosen[0].clips.paths]
            about += [[pair.name for pair in chosen], files]
    digest = hashlib.sha256(json.dumps(about).encode())
    for file in sorted(Path(str(metrics.__file__)).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def measure(
    runs: Sequence[Run],
    pairs: Mapping[str, Sequence[Pair]],
    panel: Panel,
    folder: Path,
    *,
    recipe: Recipe,
    device: torch.device,
    batch: int,
) -> tuple[Measured, dict[str, str]]:
    """Scores of copying the source and of every run.

    Args:
        runs: what to measure.
        pairs: kind → pairs.
        panel: what to measure.
        folder: where scores are kept as soon as a run is measured, and found again; one for these pairs alone.
        recipe: whose data the pairs are of.
        device: where to predict.
        batch: pairs predicted at once.

    Returns:
        the scores, and for each run that cannot be measured why not.
    """
    measured: dict[str, Mapping[str, Scores]] = {}
    broken: dict[str, str] = {}
    held: Mapping[str, Sequence[Pair]] | None = None
    total = sum(map(len, pairs.values()))
    todo: list[tuple[str, Run | None]] = [(COPY, None), *((run.sha256, run) for run in runs)]
    with tqdm(total=len(todo) * total, unit="pair", desc="benchmark") as bar:
        for name, run in todo:
            file = folder / f"{name[:32].replace(' ', '_')}.json"
            found = measured.get(name) or read_scores(file)
            if found is not None:
                bar.update(total)
                measured[name] = found
                continue
            if held is None:
                held = {k: list(c) for k, c in pairs.items()} if total * recipe.size**2 * 40 < KEPT else pairs
            try:
                found = {}
                host = None if run is None else load_host(run.path, device)[0]
                for kind, chosen in held.items():
                    predict = copy_source if host is None else host_predictor(host, same=kind == SAME)
                    if run is not None and not run.recipe.data.depth:
                        predict = without_depth(predict)
                    true = has_truth(recipe, kind)
                    found[kind] = score({name: predict}, chosen, panel, truth=true, batch=batch, tick=bar.update)[name]
            except (UserError, ValueError) as error:
                broken[run.path if run else name] = str(error)
                continue
            write_scores(file, found)
            measured[name] = found
    return measured, broken


def without_depth(predict: Predict) -> Predict:
    """For a host that takes three channels, whatever the pairs have."""
    return lambda source, driving: predict(source[:, :3], driving[:, :3])


def write_scores(path: Path, scores: Mapping[str, Scores]) -> None:
    """Keep a run's values, to the last digit; its pictures are not kept."""
    plain = {
        kind: {
            "names": one.names,
            "values": [{c: None if v is None else repr(v) for c, v in row.items()} for row in one.values],
            "skipped": one.skipped,
        }
        for kind, one in scores.items()
    }
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(plain), encoding="utf-8")


def read_scores(path: Path) -> dict[str, Scores] | None:
    """What `write_scores` wrote; None if there is no such file, or a damaged one."""
    try:
        plain = json.loads(path.read_text("utf-8"))
        return {
            kind: Scores(
                kept["names"],
                [{c: None if v is None else float(v) for c, v in row.items()} for row in kept["values"]],
                [],
                kept["skipped"],
            )
            for kind, kept in plain.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


@dataclass(frozen=True)
class Costs:
    """What frames cost, and where that was measured."""

    counted: dict[str, Cost]
    """Row → parameters and operations."""
    milliseconds: dict[str, float]
    """Row → median time of a frame; empty if no times were wanted."""
    device: str
    repeats: int


def costs_of(rows: Sequence[Row], device: torch.device, repeats: int) -> Costs:
    """Of the first run of each row, the times taken in turns."""
    counted, calls = {}, {}
    for row in rows:
        run = row.runs[0]
        host, recipe = load_host(run.path, device)
        channels = recipe.data.channels
        counted[row.name] = cost(host, recipe.size, channels)
        calls[row.name] = frame(host, recipe.size, channels)
    return Costs(counted, milliseconds(calls, device, repeats) if repeats else {}, device_name(device), repeats)
