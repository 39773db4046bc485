"""CSIM: cosine similarity of identity codes (as in Ha et al., MarioNETte, AAAI 2020)."""

from __future__ import annotations

import numpy as np

from memcomp.experiments.metrics.labels import Label, pair_of


def csim(prediction: Label, target: Label) -> float:
    """p·t / (‖p‖ ‖t‖) of the identity codes of two pictures.

    Args:
        prediction: (D,) code of the predicted picture.
        target: (D,) that of a true picture of the person.

    Returns:
        in [-1, 1], without unit; higher is better. Codes whose mean is far from 0, such as dlib's, give high values for
        strangers too: compare only within one backend.

    Raises:
        ValueError: shapes differ or are not (D,), a value is not finite, or a code is zero.
    """
    first, second = pair_of(prediction, target, 1)
    length = float(np.linalg.norm(first) * np.linalg.norm(second))
    if length == 0:
        raise ValueError("an identity code is zero: it has no direction")
    return float(first @ second) / length
