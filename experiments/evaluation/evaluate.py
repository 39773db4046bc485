"""Measure a checkpoint on fixed, seeded pairs of people that training did not see."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from memcomp.adapters import Host
from memcomp.experiments.animation import Motion, animate
from memcomp.experiments.backends.base import Unavailable
from memcomp.experiments.backends.choose import create_backend, read_choices
from memcomp.experiments.checkpoints.build import build_host, load_weights
from memcomp.experiments.checkpoints.trained import Trained, read_trained
from memcomp.experiments.evaluation.figures import worst_median_best
from memcomp.experiments.evaluation.options import COPY, CROSS, LIST, SAME, MeasureOptions, PairOptions
from memcomp.experiments.evaluation.pair_lists import ListReport, write_list
from memcomp.experiments.evaluation.pairs import NO_TRUTH, at_root, evaluation_pairs, has_truth, heads_size, test_split
from memcomp.experiments.evaluation.panel import Panel
from memcomp.experiments.evaluation.scores import Model, Pair, Results, measure
from memcomp.experiments.evaluation.tables import results_json, score_table, write_pairs
from memcomp.experiments.evaluation.whole_clips import clip_table, first_clips, measure_clips
from memcomp.experiments.files import writable_folder
from memcomp.experiments.metrics.registry import MINIMUM_PIXELS, PROTOCOLS
from memcomp.experiments.output.tables import versions, versions_line, write_json
from memcomp.experiments.processes import Processes
from memcomp.experiments.recipe.load import with_overrides
from memcomp.experiments.recipe.sections import Recipe
from memcomp.experiments.video import rate_of, to_frame, write_video


@dataclass(frozen=True)
class EvaluationOptions:
    """What `memcomp evaluate` is asked for."""

    checkpoint: str
    """Checkpoint, folder of a run, or "demo" for the host of the package."""
    overrides: tuple[str, ...] = ()
    """`key=value` words that change its recipe."""
    pairs: PairOptions = field(default_factory=PairOptions)
    measuring: MeasureOptions = field(default_factory=MeasureOptions)
    kinds: tuple[str, ...] = (SAME, CROSS)
    videos: int = 4
    """Videos of two people to write, if the data are clips."""
    video_frames: int = 75
    clips: int = 0
    """Whole clips of which to measure jitter and flicker."""
    output: Path | None = None
    """None = `evaluation` beside the checkpoint."""


def evaluate(options: EvaluationOptions) -> None:
    """Print the tables of both protocols, and write metrics.json, pairs.csv and pictures."""
    # the host, on this process's device: torchrun shares the pairs among several
    state = read_trained(options.checkpoint)
    recipe = at_root(with_overrides(state.recipe_or_heads(), options.overrides, options.checkpoint), options.pairs.root)
    host = build_host(recipe)
    load_weights(host, state.weights, options.checkpoint)
    processes = Processes.start(recipe.device)
    models = {COPY: Model(), recipe.label: Model(host.to(processes.device).eval(), recipe.data.channels)}

    # the pairs, and what is measured on them
    wanted = options.measuring
    panel = Panel(wanted.metrics, wanted.backends, processes.device, heads_size(recipe))
    lists = ListReport()
    pairs = evaluation_pairs(recipe, options.kinds, options.pairs, lists)
    folder = writable_folder(options.output or default_folder(options.checkpoint))
    results = measure(models, pairs, panel, lambda kind: has_truth(recipe, kind), batch=wanted.batch)
    processes.stop()
    if not processes.first:
        return

    # what was found: tables, then files
    began, text = time.time() - 1, []  # file systems round
    about = description(state, recipe, options, panel, pairs)
    if results:
        text += [*(score_table(results, p) for p in PROTOCOLS), about["note"], *panel.about, versions_line()]
        write_pairs(folder / "pairs.csv", results)
        draw_pairs(folder / "pairs.png", results, pairs, recipe)
    if unmeasured := [kind for kind in pairs if kind not in results]:
        text.append(f"{' and '.join(unmeasured)}: not measured, {NO_TRUTH}")
    if recipe.data.kind == "clips" and CROSS in pairs:
        about["videos"] = write_videos(folder / "videos", host, pairs[CROSS][: options.videos], options)
    if options.clips:
        about["clips"], table = whole_clips(recipe, models, options)
        text.append(table)
    write_list(folder / LIST, pairs)
    if lists.rows:
        text.append(str(lists))
        about["lists"] = vars(lists)
    write_json(folder / "metrics.json", about | {"results": results_json(results)})
    written = [path.name for path in folder.iterdir() if path.name[0] != "." and path.stat().st_mtime >= began]
    text.append(f"written to {folder}: {', '.join(sorted(written))}")
    print("\n\n".join(text))


def draw_pairs(path: Path, results: Results, pairs: Mapping[str, Sequence[Pair]], recipe: Recipe) -> None:
    """The host's worst, median and best pairs by L1, of kinds that have a truth; nothing where L1 was not measured."""
    drawn = {kind: scores[recipe.label] for kind, scores in results.items() if has_truth(recipe, kind)}
    drawn = {kind: scores for kind, scores in drawn.items() if "standard.l1" in scores.columns}
    if drawn:
        worst_median_best(path, drawn, pairs)


def whole_clips(recipe: Recipe, models: Mapping[str, Model], options: EvaluationOptions) -> tuple[dict[str, Any], str]:
    """Measure jitter and flicker of whole clips; returns them for metrics.json and as a table."""
    heads = heads_size(recipe)
    try:
        landmarks = create_backend("landmarks", read_choices(options.measuring.backends, heads), heads)
        about = landmarks.about
    except Unavailable as error:
        landmarks, about = None, f"not available: {error}"
    clips = first_clips(test_split(recipe), options.clips, options.video_frames)
    predictors = {name: model.predictor(SAME) for name, model in models.items()}
    scores = measure_clips(predictors, clips, landmarks, options.measuring.batch)
    plain = {"landmarks": about, "scores": {model: [vars(s) for s in found] for model, found in scores.items()}}
    return plain, f"{clip_table(scores)}\n\nlandmarks of the jitter: {about}"


def description(
    state: Trained, recipe: Recipe, options: EvaluationOptions, panel: Panel, pairs: Mapping[str, Sequence[Pair]]
) -> dict[str, Any]:
    """What the numbers rest on, for metrics.json."""
    backbone = state.info.get("backbone") or "none"
    return {
        "format": "memcomp-evaluation-1",
        "checkpoint": options.checkpoint,
        "step": state.step,
        "size": recipe.size,
        "pairs": {kind: len(chosen) for kind, chosen in pairs.items()},
        "pairs_seed": options.pairs.seed,
        "pairs_files": [str(file) for file in options.pairs.files],
        "motion": "absolute",
        "minimum_masked_pixels": MINIMUM_PIXELS,
        "perceptual_backbone": backbone,
        "metrics": panel.metrics,
        "backends": panel.about,
        "note": f"{recipe.size}×{recipe.size}, absolute motion, step {state.step}, perceptual loss: {backbone}; "
        "the protocols' formulas: experiments/metrics/README.md",
        "versions": versions(),
        "recipe": recipe.to_dict(),
    }


def write_videos(folder: Path, host: Host, pairs: Sequence[Any], options: EvaluationOptions) -> list[str]:
    """Write a video of each pair of two people: source | driving | prediction, relative motion.

    Args:
        folder: gets the videos.
        host: in eval mode.
        pairs: `ClipPair`s.
        options: how many frames, and how many are predicted at once.

    Returns:
        the files' names.
    """
    names = []
    for pair in tqdm(pairs, unit="video", desc="cross identity", disable=not pairs):
        names.append(f"{pair.name.replace('#', '-').replace('/', '-')}.mp4")
        source, (poses, times) = pair.source, pair.driving_clip(options.video_frames)
        with write_video(folder / names[-1], rate_of(times)) as append:
            moved = animate(host, source, poses, Motion(), options.measuring.batch)
            for (pose, result), at in zip(moved, times, strict=True):
                append(to_frame(torch.cat([source, pose, result], dim=-1)), at)
    return names


def default_folder(checkpoint: str) -> Path:
    """Where an evaluation goes if nothing else is said: into the run's folder, or beside the file."""
    path = Path("runs/demo") if checkpoint == "demo" else Path(checkpoint)
    return (path.parent if path.is_file() else path) / "evaluation"
