"""AKD: average keypoint distance, whether the motion was kept (Siarohin et al., Monkey-Net, CVPR 2019)."""

from __future__ import annotations

import numpy as np

from memcomp.experiments.metrics.labels import Label, pair_of


def akd(prediction: Label, target: Label, *, per_coordinate: bool) -> float:
    """Mean distance between the facial landmarks of two pictures.

    mean_k ‖p_k - t_k‖ is the Euclidean distance that the name promises; the evaluation code released with FOMM and
    MCNet takes mean_k (|Δx_k| + |Δy_k|) / 2 instead (`per_coordinate`), between 1/2 and 1/√2 of it.

    Args:
        prediction: (68, 2) landmarks of the predicted picture, pixels.
        target: (68, 2) those of the true one.
        per_coordinate: the released formula.

    Returns:
        pixels of the pictures measured, 0 or more; lower is better. Values at different picture sizes do not compare.

    Raises:
        ValueError: shapes differ or are not (K, 2), or a value is not finite.
    """
    first, second = pair_of(prediction, target, 2)
    if first.shape[1] != 2:
        raise ValueError(f"landmarks should be (K, 2), got {first.shape}")
    offsets = first - second
    return float(np.abs(offsets).mean() if per_coordinate else np.linalg.norm(offsets, axis=1).mean())
