"""The chosen metrics and what they read, applied to batches of pairs."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from memcomp.experiments.backends.base import Backend, NotFound, Unavailable
from memcomp.experiments.backends.choose import create_backend, read_choices
from memcomp.experiments.errors import UserError
from memcomp.experiments.metrics.features import feature_map
from memcomp.experiments.metrics.labels import Label
from memcomp.experiments.metrics.ms_ssim import SMALLEST
from memcomp.experiments.metrics.registry import DEFAULT, METRICS, measurable, measure_images
from memcomp.experiments.video import to_frame


@dataclass(frozen=True)
class Row:
    """What one model scored on one pair."""

    values: dict[str, float | None] = field(default_factory=dict)
    """Column, such as "standard.ssim.disoccluded", → value; None = not measurable."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Metric → why it has no value."""


class Panel:
    """Metrics by name. A metric whose package or weights are missing stays in: all its values are None, with a reason.

    Args:
        metrics: names of `METRICS`, or "all"; none = `DEFAULT`.
        backends: `key=value` words, see `memcomp.experiments.backends.choose`.
        device: of the networks whose features are compared.
        heads: size of the pictures if they show procedural heads; None = faces.

    Attributes:
        about: a line for each backend: its name and versions, or what is missing and where to get it.

    Raises:
        UserError: an unknown metric or backend, one that is not for such pictures, or weights that do not fit.
    """

    def __init__(
        self,
        metrics: Sequence[str] = (),
        backends: Sequence[str] = (),
        device: str | Any = "cpu",
        heads: int | None = None,
    ) -> None:
        chosen = read_choices(backends, heads)
        metrics = tuple(METRICS) if list(metrics) == ["all"] else metrics or DEFAULT
        for name in metrics:
            if name not in METRICS:
                near = difflib.get_close_matches(name, METRICS, 1) or [", ".join(METRICS)]
                raise UserError(f"--metrics: there is no metric {name!r}; did you mean {near[0]}?")
        self.metrics = [name for name in METRICS if name in metrics]
        self.about: list[str] = []
        self._needs: dict[str, str] = {}
        self._networks: dict[str, nn.Module] = {}
        self._backends: dict[str, Backend] = {}
        for reads in dict.fromkeys(METRICS[name].reads for name in self.metrics):
            try:
                if reads == "features" or reads.startswith("lpips"):
                    self._networks[reads] = self._load_network(reads, chosen, device)
                elif reads != "image":
                    self._backends[reads] = create_backend(reads, chosen, heads)
                    self.about.append(f"{reads}: {self._backends[reads].about}")
            except Unavailable as error:
                self._needs[reads] = f"needs {error.needs}"
                self.about.append(f"{reads}: not available: {error}")

    def _load_network(self, reads: str, chosen: Mapping[str, str], device: Any) -> nn.Module:
        from memcomp.experiments.backends.perceptual import BACKBONES, load_features, load_lpips  # needs torchvision

        if reads == "features":
            features, about = load_features()
            self.about.append(about)
            return features.to(device)
        variant = reads.removeprefix("lpips_")
        network, about = load_lpips(variant, chosen[reads], chosen[BACKBONES[variant]])
        self.about.append(about)
        return network.to(device)

    def measures(self, *, truth: bool) -> bool:
        """Whether anything can be measured on pairs with (`truth`) or without a true target."""
        return truth or any(METRICS[name].against != "target" for name in self.metrics)

    def rows(
        self, pairs: Sequence[Any], predictions: Mapping[str, Sequence[Tensor]], *, truth: bool = True
    ) -> dict[str, list[Row]]:
        """Measure several models on the same pairs.

        Args:
            pairs: objects with `source`, `driving`, `target` and `disoccluded` (see `scores.Pair`).
            predictions: model → a picture (3, H, W) for each pair.
            truth: whether `target` is what the prediction should be; if not, metrics against it have no value.

        Returns:
            model → a row for each pair.
        """
        true_labels = {
            (reads, against): self._read(reads, [picture_of(pair, against, truth) for pair in pairs])
            for reads, against in {(METRICS[n].reads, METRICS[n].against) for n in self.metrics}
            if reads in self._backends and (truth or against != "target")
        }
        results = {}
        for model, images in predictions.items():
            labels = {reads: self._read(reads, images) for reads in {reads for reads, _ in true_labels}}
            results[model] = [
                self._row(
                    pair,
                    image,
                    {key: (labels[key[0]][i], known[i]) for key, known in true_labels.items()},
                    truth,
                )
                for i, (pair, image) in enumerate(zip(pairs, images, strict=True))
            ]
        return results

    def _read(self, reads: str, images: Sequence[Tensor]) -> list[Label | NotFound]:
        return self._backends[reads]([to_frame(image[:3]) for image in images])

    def _row(
        self,
        pair: Any,
        image: Tensor,
        labels: Mapping[tuple[str, str], tuple[Label | NotFound, Label | NotFound]],
        truth: bool,
    ) -> Row:
        row = Row()
        revealed = getattr(pair, "revealed", None)  # known of pairs with their exact motion only
        if truth:
            row = Row(measure_images(image, pair.target, pair.disoccluded, self.metrics, revealed))
        for name in self.metrics:
            metric = METRICS[name]
            if metric.against == "target" and not truth:
                continue
            reason = self._needs.get(metric.reads)
            if name == "ms_ssim" and min(image.shape[-2:]) < SMALLEST:
                reason = f"needs {SMALLEST} px"
            given: tuple[Any, ...] = ()
            if not reason and metric.reads == "features":
                given = (feature_map(self._networks[metric.reads], image, pair.target),)
            elif not reason and metric.reads in self._networks:
                given = (self._networks[metric.reads], image, pair.target)
            elif not reason and metric.reads in self._backends:
                given = labels[metric.reads, metric.against]
                reason = _missing(*given)
            if reason:
                row.skipped[name] = reason
            for protocol, formula in metric.formulas.items():
                if reason:
                    row.values[f"{protocol}.{name}"] = None
                elif given:
                    row.values[f"{protocol}.{name}"] = formula(*given)
                if given and metric.masked:
                    for which, mask in measurable(pair.disoccluded, revealed).items():
                        found = None if mask is None else formula(*given, mask)
                        row.values[f"{protocol}.{name}.{which}"] = found
        return row


def picture_of(pair: Any, against: str, truth: bool) -> Tensor:
    """The picture that a metric compares with: the target, the source's person, or the driving frame."""
    if against == "person":
        against = "target" if truth else "source"
    return getattr(pair, against)


def _missing(prediction: Label | NotFound, known: Label | NotFound) -> str | None:
    """Why two labels cannot be compared; the reason of the true picture comes first."""
    if isinstance(known, NotFound):
        return f"{known.reason} in the reference"
    return f"{prediction.reason} in the prediction" if isinstance(prediction, NotFound) else None
