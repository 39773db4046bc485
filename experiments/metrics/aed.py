"""AED: average Euclidean distance of identity codes, whether the person was kept (Monkey-Net, CVPR 2019)."""

from __future__ import annotations

import numpy as np

from memcomp.experiments.metrics.labels import Label, pair_of


def aed(prediction: Label, target: Label, *, squared: bool) -> float:
    """‖p - t‖ between the identity codes of two pictures; the released evaluation leaves the root out (`squared`).

    Args:
        prediction: (D,) code of the predicted picture.
        target: (D,) that of a true picture of the person.
        squared: the released formula, Σ (p - t)².

    Returns:
        in the code's own unit, 0 or more: at most 2 (squared: 4) for unit vectors; dlib's 128-d codes are not, their
        makers call 0.6 the border between one person and two. Lower is better.

    Raises:
        ValueError: shapes differ or are not (D,), or a value is not finite.
    """
    first, second = pair_of(prediction, target, 1)
    distance = float(np.linalg.norm(first - second))
    return distance**2 if squared else distance
