"""MS-SSIM: structural similarity at five scales (Wang, Simoncelli & Bovik 2003)."""

from __future__ import annotations

import torch
from torch.nn.functional import avg_pool2d, conv2d

from memcomp.experiments.metrics.pixels import as_images

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the scales, fine to coarse: the paper's Table 1
WINDOW, SIGMA = 11, 1.5  # Gaussian window, pixels
SMALLEST = WINDOW * 2 ** (len(WEIGHTS) - 1)  # 176 pixels: the coarsest scale still holds one window


def ms_ssim(prediction: torch.Tensor, target: torch.Tensor, *, data_range: float) -> float:
    """∏ⱼ csⱼ^wⱼ over the five scales, the coarsest one times its luminance term; of each channel, then their mean.

    csⱼ is the mean contrast-structure term (2σxy + C2) / (σx² + σy² + C2) over the places whose Gaussian window
    (11×11, σ = 1.5) lies inside the picture, with K1 = 0.01, K2 = 0.03; from scale to scale 2×2 pixels are averaged
    and an odd last row or column is dropped. Negative factors count as 0, as a fractional power needs.

    Args:
        prediction: (C, H, W), range [0, 1], H and W at least 176.
        target: (C, H, W), range [0, 1].
        data_range: 1 for images in [0, 1].

    Returns:
        in [0, 1], without unit; higher is better.

    Raises:
        ValueError: shapes differ, a side is under 176 pixels, or a value is not finite.
    """
    first, second = (torch.from_numpy(image) for image in as_images(prediction, target))
    if min(first.shape[1:]) < SMALLEST:
        raise ValueError(f"MS-SSIM needs images of at least {SMALLEST}×{SMALLEST} pixels, got {tuple(first.shape[1:])}")
    result = torch.ones(len(first), dtype=torch.float64)
    for scale, weight in enumerate(WEIGHTS):
        coarsest = scale == len(WEIGHTS) - 1
        result *= _similarity(first, second, data_range, luminance=coarsest).clamp(min=0) ** weight
        if not coarsest:
            first, second = avg_pool2d(first, 2), avg_pool2d(second, 2)
    return float(result.mean())


def _similarity(first: torch.Tensor, second: torch.Tensor, data_range: float, *, luminance: bool) -> torch.Tensor:
    """Mean over the picture of contrast-structure, times luminance if asked for: (C, H, W) twice → (C,)."""
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    moments = _blur(torch.stack([first, second, first * first, second * second, first * second]))
    mean1, mean2, square1, square2, product = moments
    local = (2 * (product - mean1 * mean2) + c2) / (square1 - mean1**2 + square2 - mean2**2 + c2)
    if luminance:
        local = local * (2 * mean1 * mean2 + c1) / (mean1**2 + mean2**2 + c1)
    return local.mean(dim=(1, 2))


def _blur(images: torch.Tensor) -> torch.Tensor:
    """Gaussian means of all windows inside the picture: (N, C, H, W) → (N, C, H - 10, W - 10)."""
    offset = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    kernel = torch.exp(-(offset**2) / (2 * SIGMA**2))
    kernel /= kernel.sum()
    planes = images.flatten(0, 1)[:, None]
    planes = conv2d(conv2d(planes, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))
    return planes.view(*images.shape[:2], *planes.shape[2:])
