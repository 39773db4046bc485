"""From values per pair to numbers in a table: means, and the difference of two models with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Mean:
    """A mean over pairs."""

    value: float | None
    """The mean, or None if no pair could be measured."""
    pairs: int
    """How many pairs are in it."""
    left_out: int
    """How many are not: nothing to measure under the mask, or an infinite PSNR (identical images)."""


Verdict = Literal["better", "worse", "unclear"]


@dataclass(frozen=True)
class Difference:
    """Mean over pairs of (first - second), with a 95 % interval."""

    value: float
    low: float
    high: float
    pairs: int
    """Pairs that both models have."""

    def verdict(self, *, higher_is_better: bool) -> Verdict:
        """Whether the first is better or worse than the second; "unclear" where the interval holds 0."""
        if self.low <= 0 <= self.high:
            return "unclear"
        return "better" if (self.value > 0) == higher_is_better else "worse"

    def __str__(self) -> str:
        return f"{self.value:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"


def mean(values: Sequence[float | None]) -> Mean:
    """Mean in the order of the pairs, in float64; pairs without a finite value are counted and left out.

    Raises:
        ValueError: a value is NaN.
    """
    if any(value is not None and math.isnan(value) for value in values):
        raise ValueError("a pair's value is NaN")
    kept = [value for value in values if value is not None and not math.isinf(value)]
    return Mean(sum(kept) / len(kept) if kept else None, len(kept), len(values) - len(kept))


def paired_difference(
    first: Sequence[float | None], second: Sequence[float | None], *, seed: int = 0, draws: int = 10_000
) -> Difference | None:
    """How much larger `first` is than `second` on the same pairs, with a percentile bootstrap over pairs.

    The interval tells the chance of the draw of pairs, not that of the training seed.

    Args:
        first: one value per pair.
        second: the other model's, same pairs, same order.
        seed: of the bootstrap's draws.
        draws: how many.

    Returns:
        the difference, or None if fewer than two pairs have both values.

    Raises:
        ValueError: the lists differ in length.
    """
    deltas = np.array(
        [a - b for a, b in zip(first, second, strict=True) if a is not None and b is not None and math.isfinite(a - b)]
    )
    if len(deltas) < 2:
        return None
    chosen = np.random.default_rng(seed).integers(0, len(deltas), (draws, len(deltas)))
    low, high = np.quantile(deltas[chosen].mean(axis=1), (0.025, 0.975))
    return Difference(float(deltas.mean()), float(low), float(high), len(deltas))
