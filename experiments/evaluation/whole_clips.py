"""Whole clips generated from their first frame: trembling and flicker, which pairs of frames cannot tell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from memcomp.experiments.backends.base import Backend, NotFound
from memcomp.experiments.data.clips import Clips
from memcomp.experiments.data.heads_set import HeadsSet
from memcomp.experiments.evaluation.scores import Predict
from memcomp.experiments.metrics.flicker import flicker
from memcomp.experiments.metrics.jitter import landmark_jitter
from memcomp.experiments.metrics.labels import Label
from memcomp.experiments.output.tables import markdown
from memcomp.experiments.video import to_frame

SHORTEST = 3  # frames: jitter is a second difference


@dataclass(frozen=True)
class ClipScore:
    """What one model scored on one clip."""

    clip: str
    frames: int
    """How many were generated."""
    flicker: float
    """Flicker of the clip (`metrics.flicker`)."""
    jitter: float | None
    """Jitter of its landmarks (`metrics.landmark_jitter`), over runs of three frames or more with both faces found."""
    without_face: int
    """Frames left out of the jitter: no face, or several, in the true or in the generated one."""


def first_clips(data: HeadsSet | Clips, count: int, frames: int) -> Iterator[tuple[str, Tensor]]:
    """The first clip of each of the first `count` people: name, (T, C, H, W) in [0, 1] with T ≤ `frames`.

    Clips of fewer than three frames are passed over.
    """
    if isinstance(data, HeadsSet):
        for i in range(min(count, len(data))):
            yield f"{data.split}{i:05d}", data.frames(i)[:frames].float() / 255
        return
    for clips in data.people[:count]:
        length = min(frames, data.count(clips[0]))
        if length >= SHORTEST:
            yield data.label(clips[0]), data.read(clips[0], range(length)).float() / 255


def measure_clip(name: str, true: Tensor, predict: Predict, landmarks: Backend | None, batch: int = 8) -> ClipScore:
    """Generate every frame of a clip from its first one, and compare.

    Args:
        name: of the clip.
        true: (T, 3 or 4, H, W) in [0, 1].
        predict: the model.
        landmarks: backend of the jitter; None = no jitter.
        batch: frames generated at once.
    """
    parts = [predict(true[:1].expand(len(part), -1, -1, -1), part) for part in true.split(batch)]
    generated, true = torch.cat(parts), true[:, :3]
    steady = flicker(generated, true)
    if landmarks is None:
        return ClipScore(name, len(true), steady, None, 0)
    both = [landmarks([to_frame(frame) for frame in video]) for video in (generated, true)]
    runs: list[list[tuple[Label, Label]]] = [[]]
    for made, real in zip(*both, strict=True):
        if isinstance(made, NotFound) or isinstance(real, NotFound):
            runs.append([])
        else:
            runs[-1].append((made, real))
    found = sum(map(len, runs))
    long = [run for run in runs if len(run) >= SHORTEST]
    values = [landmark_jitter(*(np.stack(points) for points in zip(*run, strict=True))) for run in long]
    weights = [len(run) - 2 for run in long]
    jitter = float(np.average(values, weights=weights)) if long else None
    return ClipScore(name, len(true), steady, jitter, len(true) - found)


def measure_clips(
    models: Mapping[str, Predict],
    clips: Iterator[tuple[str, Tensor]],
    landmarks: Backend | None,
    batch: int = 8,
) -> dict[str, list[ClipScore]]:
    """Measure every model on every clip: model → a score for each clip."""
    scores: dict[str, list[ClipScore]] = {model: [] for model in models}
    for name, true in clips:
        for model, predict in models.items():
            scores[model].append(measure_clip(name, true, predict, landmarks, batch))
    return scores


def clip_table(scores: Mapping[str, Sequence[ClipScore]]) -> str:
    """A row for each model: means over clips, and how many frames had no face."""
    rows = []
    for model, found in scores.items():
        jitter = [score.jitter for score in found if score.jitter is not None]
        total, lost = sum(score.frames for score in found), sum(score.without_face for score in found)
        cells = [str(len(found)), str(total), f"{np.mean([score.flicker for score in found]):.4f}"]
        rows.append([model, *cells, f"{np.mean(jitter):.3f}" if jitter else "n/a", f"{lost} of {total}"])
    header = [
        "whole clips from their first frame",
        "clips",
        "frames",
        "flicker ↓",
        "jitter ↓",
        "left out of it: no face, or several",
    ]
    return markdown(header, rows)
