"""What a backend reads off a picture: numbers that two pictures are compared by."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Label = npt.NDArray[np.float64]


def pair_of(first: npt.ArrayLike, second: npt.ArrayLike, dimensions: int) -> tuple[Label, Label]:
    """Two labels in float64.

    Raises:
        ValueError: shapes differ, are empty or have another number of dimensions, or a value is not finite.
    """
    one, other = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if one.shape != other.shape or one.ndim != dimensions or one.size == 0:
        raise ValueError(f"expected two labels of one shape, {dimensions}-dimensional; got {one.shape}, {other.shape}")
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        raise ValueError("a label holds values that are not finite")
    return one, other
