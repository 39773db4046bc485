"""Flicker: changes from frame to frame that the true video does not have."""

from __future__ import annotations

import torch


def flicker(prediction: torch.Tensor, target: torch.Tensor) -> float:
    """mean |(p(t+1) - p(t)) - (y(t+1) - y(t))| over frames, channels and pixels.

    The absolute-value form of dtSSD (Erofeev et al. 2015, made for video matting): an error that stands still counts
    nothing, one that comes and goes does.

    Args:
        prediction: (T, C, H, W) consecutive frames in [0, 1], T ≥ 2.
        target: (T, C, H, W) the true video.

    Returns:
        in units of the pixels' range, in [0, 2]; lower is better.

    Raises:
        ValueError: shapes differ, fewer than 2 frames, or a value is not finite.
    """
    if prediction.shape != target.shape or prediction.ndim != 4 or len(prediction) < 2:
        raise ValueError(
            "flicker compares two videos (T, C, H, W) of one shape, 2 frames or more; "
            f"got {tuple(prediction.shape)}, {tuple(target.shape)}"
        )
    error = prediction.detach().cpu().double() - target.detach().cpu().double()
    if not bool(error.isfinite().all()):
        raise ValueError("a video holds values that are not finite")
    return float(error.diff(dim=0).abs().mean())
