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
from memcomp.experiments.evaluation import panel as panel_file
from memcomp.experiments.evaluation import scores as scores_file
from memcomp.experiments.evaluation.clip_pairs import ClipPair
from memcomp.experiments.evaluation.options import COPY, PairOptions
from memcomp.experiments.evaluation.pairs import has_truth
from memcomp.experiments.evaluation.panel import Panel
from memcomp.experiments.evaluation.scores import Model, Pair, Scores, measure
from memcomp.experiments.files import atomic_write
from memcomp.experiments.output.tables import versions
from memcomp.experiments.recipe.sections import Recipe
from memcomp.experiments.video import DECODER_VERSION

KEPT = 2**29  # bytes of pairs that are read once and held; more are read again for every run
Measured = Mapping[str, Mapping[str, Scores]]  # sha256 of a checkpoint, or COPY → kind of pairs → scores


def pairs_key(recipe: Recipe, pairs: Mapping[str, Sequence[Pair]], options: PairOptions, panel: Panel) -> str:
    """Digest of everything that decides pairs and numbers: equal keys, equal numbers.

    Args:
        recipe: whose data the pairs are of.
        pairs: kind → pairs.
        options: which pairs were asked for.
        panel: what is measured.
    """
    data = recipe.data
    about: list[Any] = [versions(), recipe.size, data.kind, options.count, options.seed, panel.metrics, panel.about]
    for kind, chosen in pairs.items():
        about += [kind, len(chosen)]
        if isinstance(chosen, EvalPairs):
            about += [RENDERER_VERSION, data.frames, data.rate, data.seed, data.depth, chosen.places]
        else:
            assert isinstance(chosen[0], ClipPair)
            clips = chosen[0].clips
            marks = [(path.stat().st_size, path.stat().st_mtime_ns) for path in clips.paths]
            names = [clips.name(clip) for clip in range(len(clips))]
            about += [DECODER_VERSION, [pair.name for pair in chosen], names, clips.owners, marks]
    digest = hashlib.sha256(json.dumps(about).encode())
    for file in formula_files():
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def formula_files() -> list[Path]:
    """The files that numbers come from, by name, wherever they stand: formulas, panel, and how models are asked."""
    formulas = Path(str(metrics.__file__)).parent.glob("*.py")
    return sorted((*formulas, *(Path(str(one.__file__)) for one in (panel_file, scores_file))), key=lambda f: f.name)


def measure_runs(
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
        panel: what to measure on them.
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
                model = {name: load_model(run, device)}
                scored = measure(model, held, panel, lambda kind: has_truth(recipe, kind), batch=batch, tick=bar.update)
            except (UserError, ValueError) as error:
                broken[run.path if run else name] = str(error)
                continue
            measured[name] = {kind: scores[name] for kind, scores in scored.items()}
            write_scores(file, measured[name])
    return measured, broken


def load_model(run: Run | None, device: torch.device) -> Model:
    """A run's host, which is given the channels that it knows; without a run, what copies the source."""
    return Model() if run is None else Model(load_host(run.path, device)[0], run.recipe.data.channels)


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
    """Read what `write_scores` wrote; None if there is no such file, or a damaged one."""
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
    """What a frame of each row's first run costs, the times taken in turns."""
    counted, calls = {}, {}
    for row in rows:
        run = row.runs[0]
        host, recipe = load_host(run.path, device)
        channels = recipe.data.channels
        counted[row.name] = cost(host, recipe.size, channels)
        calls[row.name] = frame(host, recipe.size, channels)
    return Costs(counted, milliseconds(calls, device, repeats) if repeats else {}, device_name(device), repeats)
