"""Measuring models on the same pairs: one list of values per pair and model, in the order of the pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from memcomp.adapters import Host
from memcomp.experiments.errors import UserError
from memcomp.experiments.metrics.aggregate import Mean, mean
from memcomp.experiments.metrics.protocols import measure
from memcomp.experiments.video import Frame, to_frame

Predict = Callable[[Tensor, Tensor], Tensor]  # source, driving, both (B, 3, H, W) in [0, 1] → prediction, the same
T = TypeVar("T")


class Pair(Protocol):
    """What a prediction is made of and measured against; images are (3, H, W) float in [0, 1]."""

    @property
    def name(self) -> str:
        """Says which frames these are."""

    @property
    def source(self) -> Tensor:
        """The face to move."""

    @property
    def driving(self) -> Tensor:
        """The pose to take."""

    @property
    def target(self) -> Tensor:
        """The truth: the source's person as the driving frame poses."""

    @property
    def disoccluded(self) -> Tensor | None:
        """(1, H, W) bool: pixels of the target that the source does not show; None = unknown."""


@dataclass(frozen=True)
class Scores:
    """One model on one list of pairs."""

    names: list[str]
    """The pairs' names, in order."""
    values: list[dict[str, float | None]]
    """For each pair: column, such as "standard.ssim.disoccluded", → value; None = not measurable."""
    predictions: list[Frame]
    """For each pair the predicted picture, (H, W, 3) uint8."""

    @property
    def columns(self) -> list[str]:
        """Names of all columns."""
        return list(dict.fromkeys(column for row in self.values for column in row))

    def column(self, name: str) -> list[float | None]:
        """One value per pair."""
        return [row.get(name) for row in self.values]

    def means(self) -> dict[str, Mean]:
        """Column → its mean over pairs."""
        return {name: mean(self.column(name)) for name in self.columns}


Results = Mapping[str, Mapping[str, Scores]]  # kind of pairs, such as "same identity" → model → scores


def copy_source(source: Tensor, driving: Tensor) -> Tensor:
    """The model to beat: do not move at all."""
    return source


def host_predictor(host: Host) -> Predict:
    """A host in eval mode as a model: absolute motion, the driving frame's keypoints as they are."""
    device = next(host.parameters()).device

    @torch.inference_mode()
    def predict(source: Tensor, driving: Tensor) -> Tensor:
        return host(source.to(device), driving.to(device)).prediction.float().cpu()

    return predict


def score(
    models: Mapping[str, Predict],
    pairs: Iterable[Pair],
    *,
    batch: int = 8,
    tick: Callable[[int], object] = lambda count: None,
) -> dict[str, Scores]:
    """Measure every model on every pair; the pairs are read once, a batch at a time.

    Args:
        models: name → model.
        pairs: read one batch at a time.
        batch: pairs predicted together.
        tick: called with the number of pairs just done.

    Returns:
        name of the model → its scores.

    Raises:
        UserError: a model predicts values that are not finite.
    """
    scores = {model: Scores([], [], []) for model in models}
    for group in batched(pairs, batch):
        source, driving = (torch.stack([getattr(pair, key) for pair in group]) for key in ("source", "driving"))
        for model, predict in models.items():
            for pair, prediction in zip(group, predict(source, driving), strict=True):
                if not bool(prediction.isfinite().all()):
                    raise UserError(f"pair {pair.name}: {model} predicts values that are not finite")
                scores[model].names.append(pair.name)
                scores[model].values.append(measure(prediction, pair.target, pair.disoccluded))
                scores[model].predictions.append(to_frame(prediction))
        tick(len(group))
    return scores


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, the last one perhaps shorter; reads no further than needed."""
    iterator = iter(items)
    while group := list(islice(iterator, size)):
        yield group
