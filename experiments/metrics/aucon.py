"""AUCON: agreement of facial action units, whether the expression was kept (Ha et al., MarioNETte, AAAI 2020)."""

from __future__ import annotations

from memcomp.experiments.metrics.labels import Label, pair_of

ACTIVE = 0.5  # an action unit is on above this


def aucon(prediction: Label, driving: Label) -> float:
    """Share of the action units that are on (above 0.5) in both pictures or off in both.

    Args:
        prediction: (A,) activity of the predicted picture's action units, in [0, 1].
        driving: (A,) those of the driving picture, same order.

    Returns:
        a share in [0, 1]; higher is better. Most units are off in most pictures, so a face that never moves scores
        high as well: look at the row "copy of the source" before reading much into it.

    Raises:
        ValueError: shapes differ or are not (A,), or a value is not finite.
    """
    first, second = pair_of(prediction, driving, 1)
    return float(((first > ACTIVE) == (second > ACTIVE)).mean())
