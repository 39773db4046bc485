"""Measuring models on the same pairs: one list of values per pair and model, in the order of the pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from memcomp.adapters import Host
from memcomp.experiments.data.batching import batched
from memcomp.experiments.errors import UserError
from memcomp.experiments.evaluation.gather import gather, place, share
from memcomp.experiments.evaluation.options import SAME
from memcomp.experiments.evaluation.panel import Panel, Row
from memcomp.experiments.video import Frame, to_frame

Predict = Callable[[Tensor, Tensor], Tensor]  # source, driving (B, 3 or 4, H, W) in [0, 1] → prediction (B, 3, H, W)


class Pair(Protocol):
    """What a prediction is made of and measured against; images are (3, H, W) float in [0, 1].

    Source and driving may have the disparity as fourth channel, for a host that takes it.
    """

    @property
    def name(self) -> str:
        """The name, which says what frames these are."""

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
    """The scores of one model on one list of pairs."""

    names: list[str]
    """The pairs' names, in order."""
    values: list[dict[str, float | None]]
    """For each pair: column, such as "standard.ssim.disoccluded", → value; None = not measurable."""
    predictions: list[Frame]
    """For each pair the predicted picture, (H, W, 3) uint8."""
    skipped: list[dict[str, str]] = field(default_factory=list)
    """For each pair: metric, such as "akd", → why it has no value."""

    @property
    def columns(self) -> list[str]:
        """Names of all columns."""
        return list(dict.fromkeys(column for row in self.values for column in row))

    def column(self, name: str) -> list[float | None]:
        """One value per pair."""
        return [row.get(name) for row in self.values]

    def reasons(self) -> dict[str, Counter[str]]:
        """Metric → why pairs have no value, with how many."""
        found: dict[str, Counter[str]] = {}
        for row in self.skipped:
            for metric, reason in row.items():
                found.setdefault(metric, Counter())[reason] += 1
        return found


Results = Mapping[str, Mapping[str, Scores]]  # kind of pairs, such as "same identity" → model → scores


def copy_source(source: Tensor, driving: Tensor) -> Tensor:
    """The model to beat: do not move at all."""
    return source[:, :3]


def host_predictor(host: Host, *, same: bool, channels: int | None = None) -> Predict:
    """A host in eval mode as a model: absolute motion, the driving frame's keypoints as they are.

    Args:
        host: the host.
        same: source and driving are of one video, so the background moves as well (see `Host.reconstruct`).
        channels: of the pictures that the host takes, whatever the pairs have; None = all.
    """
    device = next(host.parameters()).device
    generate = host.reconstruct if same else host

    @torch.inference_mode()
    def predict(source: Tensor, driving: Tensor) -> Tensor:
        source, driving = (picture[:, :channels].to(device) for picture in (source, driving))
        return generate(source, driving).prediction.float().cpu()

    return predict


@dataclass(frozen=True)
class Model:
    """One row of a table: a host in eval mode, or none, which copies the source."""

    host: Host | None = None
    channels: int = 3
    """Channels of the pictures that the host takes: 4 with the disparity."""

    def predictor(self, kind: str) -> Predict:
        """What predicts pairs of a kind: for pairs of one person the background moves as well."""
        if self.host is None:
            return copy_source
        return host_predictor(self.host, same=kind == SAME, channels=self.channels)


def measure(
    models: Mapping[str, Model],
    pairs: Mapping[str, Sequence[Pair]],
    panel: Panel,
    truth: Callable[[str], bool],
    *,
    batch: int = 8,
    tick: Callable[[int], object] | None = None,
) -> dict[str, dict[str, Scores]]:
    """Measure every model on every kind of pairs on which the panel can say anything: kind → model → scores.

    Args:
        models: name → model.
        pairs: kind → pairs.
        panel: what to measure.
        truth: whether the target of a kind's pairs is true; see `Panel.rows`.
        batch: pairs predicted together.
        tick: called with the number of pairs just done; None = a progress bar.

    Raises:
        UserError: a model predicts values that are not finite.
    """
    measured = {kind: chosen for kind, chosen in pairs.items() if panel.measures(truth=truth(kind))}
    rank, world = place()
    mine = sum(len(range(rank, len(chosen), world)) for chosen in measured.values())
    with tqdm(total=mine, unit="pair", desc="evaluate", disable=bool(rank or tick or not mine)) as bar:
        return {
            kind: score(
                {name: model.predictor(kind) for name, model in models.items()},
                chosen,
                panel,
                truth=truth(kind),
                batch=batch,
                tick=tick or bar.update,
            )
            for kind, chosen in measured.items()
        }


def score(
    models: Mapping[str, Predict],
    pairs: Sequence[Pair],
    panel: Panel | None = None,
    *,
    truth: bool = True,
    batch: int = 8,
    tick: Callable[[int], object] = lambda count: None,
) -> dict[str, Scores]:
    """Measure every model on every pair; the pairs are read once, a batch at a time.

    Under torchrun every process measures its share of the pairs and gets the scores of all of them.

    Args:
        models: name → model.
        pairs: read one batch at a time.
        panel: what to measure; None = L1, PSNR and SSIM.
        truth: whether the pairs' target is true; see `Panel.rows`.
        batch: pairs predicted together.
        tick: called with the number of pairs just done.

    Returns:
        name of the model → its scores.

    Raises:
        UserError: a model predicts values that are not finite.
    """
    panel = panel or Panel()
    done: dict[str, list[tuple[str, Row, Frame]]] = {model: [] for model in models}
    for group in batched(share(pairs), batch):
        source, driving = (torch.stack([getattr(pair, key) for pair in group]) for key in ("source", "driving"))
        predictions = {model: predict(source, driving) for model, predict in models.items()}
        for model, images in predictions.items():
            for pair, image in zip(group, images, strict=True):
                if not bool(image.isfinite().all()):
                    raise UserError(f"pair {pair.name}: {model} predicts values that are not finite")
        for model, rows in panel.rows(group, {m: list(p) for m, p in predictions.items()}, truth=truth).items():
            frames = map(to_frame, predictions[model])
            done[model] += [(pair.name, row, frame) for pair, row, frame in zip(group, rows, frames, strict=True)]
        tick(len(group))
    scores = {}
    for model, found in done.items():
        everything = gather(found)
        scores[model] = Scores(
            names=[name for name, _, _ in everything],
            values=[row.values for _, row, _ in everything],
            predictions=[frame for _, _, frame in everything],
            skipped=[row.skipped for _, row, _ in everything],
        )
    return scores
