"""SSIM: structural similarity (Wang et al. 2004) as scikit-image computes it."""

from __future__ import annotations

import numpy as np
import torch
from skimage.metrics import structural_similarity

from memcomp.experiments.metrics.pixels import as_images, mean_over

WINDOW = 7  # uniform window of 7×7 pixels, scikit-image's default and the one the published evaluation used
BORDER = WINDOW // 2  # pixels whose window leaves the image are not counted


def ssim(
    prediction: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None, *, data_range: float
) -> float:
    """Mean of the local SSIM over channels and over the pixels whose 7×7 window lies inside the image.

    Sample covariance, K1 = 0.01, K2 = 0.03, each colour channel by itself: scikit-image's defaults. Under a mask it is
    the mean of the same local values over the masked pixels; their windows still see the neighbours outside the mask.

    Args:
        prediction: (C, H, W), range [0, 1], H and W at least 7.
        target: (C, H, W), range [0, 1].
        mask: (1, H, W) bool, the pixels that count; None = all.
        data_range: 1 for images in [0, 1]. A range of 2 makes the constants four times as large and the value higher.

    Returns:
        in [-1, 1], without unit; higher is better.

    Raises:
        ValueError: shapes differ, a side is under 7, a value is not finite, or no masked pixel is 3 pixels inside.
    """
    first, second = as_images(prediction, target)
    if min(first.shape[1:]) < WINDOW:
        raise ValueError(f"SSIM needs images of at least {WINDOW}×{WINDOW} pixels, got {first.shape[1:]}")
    _, local = structural_similarity(
        first, second, win_size=WINDOW, data_range=data_range, channel_axis=0, gaussian_weights=False, full=True
    )
    return mean_over(np.asarray(local)[:, BORDER:-BORDER, BORDER:-BORDER], inner(mask))


def inner(mask: torch.Tensor | None) -> torch.Tensor | None:
    """The part of a mask (1, H, W) that SSIM can measure: 3 pixels or more from the border."""
    return None if mask is None else mask[:, BORDER:-BORDER, BORDER:-BORDER]
