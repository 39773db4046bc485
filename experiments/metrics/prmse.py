"""PRMSE: error of the head's pose (Ha et al., MarioNETte, AAAI 2020)."""

from __future__ import annotations

import numpy as np

from memcomp.experiments.metrics.labels import Label, pair_of


def prmse(prediction: Label, driving: Label) -> float:
    """√(mean of (Δyaw², Δpitch², Δroll²)) of two pictures; differences are taken the short way round the circle.

    A table shows the mean of this over pairs, as the released code does, not the root of the mean square over all
    pairs, which is larger.

    Args:
        prediction: (3,) yaw, pitch, roll of the predicted picture, degrees.
        driving: (3,) those of the driving picture.

    Returns:
        degrees, 0 … 180; lower is better.

    Raises:
        ValueError: shapes differ or are not (3,), or a value is not finite.
    """
    first, second = pair_of(prediction, driving, 1)
    if len(first) != 3:
        raise ValueError(f"a pose should be (3,): yaw, pitch, roll; got {first.shape}")
    turned = (first - second + 180) % 360 - 180
    return float(np.sqrt((turned**2).mean()))
