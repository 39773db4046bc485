"""Which pixels count: all of them, or those under a mask."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[np.float64]


def as_images(prediction: torch.Tensor, target: torch.Tensor) -> tuple[Array, Array]:
    """The two images in float64.

    Args:
        prediction: (C, H, W), finite, range [0, 1].
        target: (C, H, W), the same.

    Returns:
        two arrays (C, H, W).

    Raises:
        ValueError: shapes differ, are not (C, H, W), or a value is not finite.
    """
    if prediction.ndim != 3 or prediction.shape != target.shape:
        raise ValueError(
            "a metric compares two images of one shape (C, H, W); "
            f"got prediction {tuple(prediction.shape)}, target {tuple(target.shape)}"
        )
    first, second = (image.detach().cpu().double().numpy() for image in (prediction, target))
    for name, array in (("prediction", first), ("target", second)):
        if not np.isfinite(array).all():
            raise ValueError(f"the {name} holds values that are not finite")
    return first, second


def mean_over(values: Array, mask: torch.Tensor | None) -> float:
    """Mean of `values` (C, H, W) over all pixels, or over those where `mask` (1, H, W) is true.

    Raises:
        ValueError: the mask is empty or has another shape.
    """
    if mask is None:
        return float(values.mean())
    if mask.shape != (1, *values.shape[1:]):
        raise ValueError(f"the mask's shape should be {(1, *values.shape[1:])}, got {tuple(mask.shape)}")
    chosen = mask[0].cpu().numpy().astype(bool)
    if not chosen.any():
        raise ValueError("the mask selects no pixel")
    return float(values[:, chosen].mean())
