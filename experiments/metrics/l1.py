"""L1: mean absolute difference, as the reconstruction metric of FOMM (Siarohin et al., NeurIPS 2019)."""

from __future__ import annotations

import numpy as np
import torch

from memcomp.experiments.metrics.pixels import as_images, mean_over


def l1(prediction: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None) -> float:
    """mean |prediction - target| over channels and pixels.

    Args:
        prediction: (C, H, W), range [0, 1].
        target: (C, H, W), range [0, 1].
        mask: (1, H, W) bool, the pixels that count; None = all.

    Returns:
        in units of the pixels' range, in [0, 1]; lower is better.

    Raises:
        ValueError: shapes differ, a value is not finite, or the mask is empty.
    """
    first, second = as_images(prediction, target)
    return mean_over(np.abs(first - second), mask)
