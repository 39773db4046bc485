"""Landmark jitter: how much more or less a generated face trembles than the face that drives it."""

from __future__ import annotations

import numpy as np

from memcomp.experiments.metrics.labels import Label, pair_of


def landmark_jitter(prediction: Label, driving: Label) -> float:
    """mean over t, k of ‖e_k(t+1) - 2 e_k(t) + e_k(t-1)‖, e the predicted less the driving landmarks.

    A constant offset, as between two people, and a steady drift count nothing; noise of deviation σ in every coordinate
    of either video counts about 3.07 σ (√6 σ √(π/2)), both together √2 times as much, the landmark detector's own noise
    included: the driving video against itself re-encoded tells the floor. Defined here; there is no agreed formula.

    Args:
        prediction: (T, 68, 2) landmarks of consecutive predicted frames, pixels, T ≥ 3.
        driving: (T, 68, 2) those of the driving video.

    Returns:
        pixels per frame², 0 or more; lower is better.

    Raises:
        ValueError: lengths differ, fewer than 3 frames, not (T, K, 2), or a value is not finite.
    """
    first, second = pair_of(prediction, driving, 3)
    if len(first) < 3 or first.shape[2] != 2:
        raise ValueError(f"jitter needs (T, K, 2) landmarks of 3 frames or more, got {first.shape}")
    tremble = np.diff(first - second, n=2, axis=0)
    return float(np.linalg.norm(tremble, axis=2).mean())
