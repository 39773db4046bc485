"""Two named sets of formulas: `standard`, and `paper` as the published evaluation code has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch

from memcomp.experiments.metrics.l1 import l1
from memcomp.experiments.metrics.psnr import psnr
from memcomp.experiments.metrics.ssim import inner, ssim

Metric = Callable[..., float]

PROTOCOLS: Mapping[str, Mapping[str, Metric]] = {
    "standard": {"l1": l1, "psnr": partial(psnr, peak=1.0), "ssim": partial(ssim, data_range=1.0)},
    "paper": {
        "l1": l1,
        "psnr": partial(psnr, peak=1.0),
        "psnr_peak2": partial(psnr, peak=2.0),
        "ssim": partial(ssim, data_range=2.0),
    },
}
HIGHER_IS_BETTER = {"l1": False, "psnr": True, "psnr_peak2": True, "ssim": True}
MINIMUM_PIXELS = 32  # a smaller mask is an edge of a few pixels: its SSIM says nothing
MASKED = "disoccluded"


def measure(
    prediction: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None
) -> dict[str, float | None]:
    """Every metric of every protocol for one pair of images.

    Args:
        prediction: (3, H, W), range [0, 1].
        target: (3, H, W), range [0, 1].
        mask: (1, H, W) bool, or None where no mask is known.

    Returns:
        `{"standard.l1": …, "paper.ssim": …}` and, with a mask, `{"standard.l1.disoccluded": …}`: the same over the
        masked pixels, None if fewer than `MINIMUM_PIXELS` of them are measurable (3 pixels or more from the border).

    Raises:
        ValueError: shapes differ or a value is not finite.
    """
    measurable = inner(mask)
    enough = measurable is not None and int(measurable.sum()) >= MINIMUM_PIXELS
    values: dict[str, float | None] = {}
    for protocol, metrics in PROTOCOLS.items():
        for name, metric in metrics.items():
            values[f"{protocol}.{name}"] = metric(prediction, target)
            if mask is not None:
                values[f"{protocol}.{name}.{MASKED}"] = metric(prediction, target, mask) if enough else None
    return values
