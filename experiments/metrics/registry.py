"""The registry of metrics, under two named protocols: `standard`, and `paper` as the released code has them.

A metric of your own is a formula in a file beside this one and a line in `METRICS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from memcomp.experiments.metrics.aed import aed
from memcomp.experiments.metrics.akd import akd
from memcomp.experiments.metrics.aucon import aucon
from memcomp.experiments.metrics.csim import csim
from memcomp.experiments.metrics.features import feature_distance
from memcomp.experiments.metrics.l1 import l1
from memcomp.experiments.metrics.lpips import lpips
from memcomp.experiments.metrics.ms_ssim import SMALLEST, ms_ssim
from memcomp.experiments.metrics.prmse import prmse
from memcomp.experiments.metrics.psnr import psnr
from memcomp.experiments.metrics.ssim import inner, ssim

Formula = Callable[..., float]


@dataclass(frozen=True)
class Metric:
    """One column of a table, in each protocol that has it."""

    title: str
    digits: int
    """Decimals in a table."""
    higher_is_better: bool
    formulas: Mapping[str, Formula]
    """Protocol → formula of two images or labels, prediction first (LPIPS: the network before; features: a map)."""
    reads: str = "image"
    """What is compared: "image", "features", a LPIPS network, or the kind of label that a backend reads."""
    against: str = "target"
    """What it is compared with: "target", the truth; "person", the truth or else the source; "driving"."""
    masked: bool = False
    """Whether it can also be taken over disoccluded pixels."""


def _both(formula: Formula) -> Mapping[str, Formula]:
    return {"standard": formula, "paper": formula}


METRICS: Mapping[str, Metric] = {
    "l1": Metric("L1", 4, False, _both(l1), masked=True),
    "psnr": Metric("PSNR", 2, True, _both(partial(psnr, peak=1.0)), masked=True),
    "psnr_peak2": Metric("PSNR peak 2", 2, True, {"paper": partial(psnr, peak=2.0)}, masked=True),
    "ssim": Metric(
        "SSIM",
        4,
        True,
        {"standard": partial(ssim, data_range=1.0), "paper": partial(ssim, data_range=2.0)},
        masked=True,
    ),
    "ms_ssim": Metric("MS-SSIM", 4, True, {"standard": partial(ms_ssim, data_range=1.0)}),
    "lpips_alex": Metric(
        "LPIPS alex",
        4,
        False,
        {"standard": partial(lpips, centred=True), "paper": partial(lpips, centred=False)},
        reads="lpips_alex",
    ),
    "lpips_vgg": Metric("LPIPS vgg", 4, False, _both(partial(lpips, centred=True)), reads="lpips_vgg"),
    "features": Metric("features", 4, False, {"standard": feature_distance}, reads="features", masked=True),
    "akd": Metric(
        "AKD",
        3,
        False,
        {"standard": partial(akd, per_coordinate=False), "paper": partial(akd, per_coordinate=True)},
        reads="landmarks",
    ),
    "aed": Metric(
        "AED",
        4,
        False,
        {"standard": partial(aed, squared=False), "paper": partial(aed, squared=True)},
        reads="identity",
        against="person",
    ),
    "csim": Metric("CSIM", 4, True, {"standard": csim}, reads="identity", against="person"),
    "aucon": Metric("AUCON", 3, True, _both(aucon), reads="action_units", against="driving"),
    "prmse": Metric("PRMSE", 3, False, _both(prmse), reads="pose", against="driving"),
}
DEFAULT = ("l1", "psnr", "psnr_peak2", "ssim")
PROTOCOLS: Mapping[str, Mapping[str, Formula]] = {
    protocol: {name: metric.formulas[protocol] for name, metric in METRICS.items() if protocol in metric.formulas}
    for protocol in ("standard", "paper")
}
MINIMUM_PIXELS = 32  # a smaller mask is an edge of a few pixels: its SSIM says nothing
MASKED, REVEALED = "disoccluded", "revealed"
MASKS = {MASKED: "d", REVEALED: "r"}  # masks over which a metric can be taken → their sign in a table

MASK_NOTES = {
    MASKED: "(d): on disoccluded pixels, those that the source hides",
    REVEALED: "(r): on revealed pixels, background that the source's head covers",
}


def mask_of(column: str) -> str:
    """The mask of a column such as "standard.l1.disoccluded", or "" of one over all pixels."""
    last = column.rsplit(".", 1)[-1]
    return last if last in MASKS else ""


def in_order(columns: Iterable[str]) -> list[str]:
    """Columns each once, those under a mask after the others."""
    return sorted(dict.fromkeys(columns), key=lambda column: ["", *MASKS].index(mask_of(column)))


def metric_of(column: str) -> Metric:
    """The metric of a column such as "standard.l1.disoccluded"."""
    return METRICS[column.split(".")[1]]


def column_title(column: str) -> str:
    """ "standard.l1.disoccluded" → "L1 (d)"."""
    mask = mask_of(column)
    return metric_of(column).title + (f" ({MASKS[mask]})" if mask else "")


def column_heading(column: str) -> str:
    """ "standard.l1.disoccluded" → "L1 (d) ↓"."""
    return f"{column_title(column)} {'↑' if metric_of(column).higher_is_better else '↓'}"


def measurable(mask: torch.Tensor | None, revealed: torch.Tensor | None) -> dict[str, torch.Tensor | None]:
    """The masks (1, H, W) that are known, by name; None in place of one with fewer than `MINIMUM_PIXELS` to measure."""
    masks = {name: given for name, given in ((MASKED, mask), (REVEALED, revealed)) if given is not None}
    pixels = {name: inner(given) for name, given in masks.items()}
    enough = {name for name, some in pixels.items() if some is not None and int(some.sum()) >= MINIMUM_PIXELS}
    return {name: given if name in enough else None for name, given in masks.items()}


def measure_images(
    prediction: torch.Tensor,
    target: torch.Tensor,
    mask: torch.Tensor | None = None,
    metrics: Sequence[str] = DEFAULT,
    revealed: torch.Tensor | None = None,
) -> dict[str, float | None]:
    """Measure one pair of images by the image metrics among `metrics`, in every protocol.

    Args:
        prediction: (3, H, W), range [0, 1].
        target: (3, H, W), range [0, 1].
        mask: (1, H, W) bool, the disoccluded pixels, or None where they are not known.
        metrics: names of `METRICS`.
        revealed: likewise, background that the source's head covers.

    Returns:
        `{"standard.l1": …, "paper.ssim": …}` and, with a mask, `{"standard.l1.disoccluded": …}`: the same over the
        masked pixels, None if fewer than `MINIMUM_PIXELS` of them are measurable (3 pixels or more from the border).
        MS-SSIM is None for pictures that are too small for it.

    Raises:
        ValueError: shapes differ or a value is not finite.
    """
    masks = measurable(mask, revealed)
    too_small = min(target.shape[-2:]) < SMALLEST
    values: dict[str, float | None] = {}
    for protocol, formulas in PROTOCOLS.items():
        for name in metrics:
            if name not in formulas or METRICS[name].reads != "image":
                continue
            metric = formulas[name]
            values[f"{protocol}.{name}"] = None if name == "ms_ssim" and too_small else metric(prediction, target)
            if METRICS[name].masked:
                for which, given in masks.items():
                    found = None if given is None else metric(prediction, target, given)
                    values[f"{protocol}.{name}.{which}"] = found
    return values
