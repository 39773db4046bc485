"""PSNR: peak signal-to-noise ratio, as scikit-image computes it."""

from __future__ import annotations

import math

import torch

from memcomp.experiments.metrics.pixels import as_images, mean_over


def psnr(prediction: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None, *, peak: float) -> float:
    """10 log10(peak² / MSE), the mean squared error taken over channels and pixels.

    Args:
        prediction: (C, H, W), range [0, 1].
        target: (C, H, W), range [0, 1].
        mask: (1, H, W) bool, the pixels that count; None = all.
        peak: the largest possible value. It is 1 for images in [0, 1]; a peak of 2 adds 6.02 dB to every value.

    Returns:
        decibels, from 20 log10(peak) up for images in [0, 1] (infinity for identical ones); higher is better.

    Raises:
        ValueError: shapes differ, a value is not finite, or the mask is empty.
    """
    first, second = as_images(prediction, target)
    error = mean_over((first - second) ** 2, mask)
    return math.inf if error == 0 else 10 * math.log10(peak**2 / error)
