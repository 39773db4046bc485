"""The difference of two models that were each trained from several seeds, with an interval over seeds and pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from memcomp.experiments.metrics.aggregate import Difference, paired_difference

Values = Sequence[Sequence[float | None]]  # for each seed one value per pair


def seeds_difference(
    first: Values, second: Values, *, paired: bool, seed: int = 0, draws: int = 10_000
) -> Difference | None:
    """How much larger `first` is than `second` on the same pairs, mean over seeds and pairs, with a 95 % interval.

    A percentile bootstrap on two levels: seeds are drawn with replacement, and, independently, pairs, the same for all
    seeds. Drawing S seeds with replacement gives (S - 1) / S of the variance that S seeds have, so each seed's mean is
    first moved away from the mean of all by sqrt(S / (S - 1)). With one seed on both sides only pairs are drawn: the
    interval then says nothing about another training.

    With few seeds the interval is too narrow where seeds differ more than the draw of pairs does. Share of simulated
    experiments whose 95 % interval held the truth, seeds' deviation equal to (3 times) that of the mean over pairs:
    2 seeds 0.92 (0.80), 3 seeds 0.94 (0.87), 5 seeds 0.95 (0.94).

    Args:
        first: for each seed one value per pair.
        second: the other model's, same pairs, same order.
        paired: seed i of both belong together (the same draws of data): their difference is drawn as one.
        seed: of the bootstrap's draws.
        draws: how many.

    Returns:
        the difference, or None if fewer than two pairs have a finite value for every seed of both models.

    Raises:
        ValueError: lists of different lengths, no seed, or `paired` with different numbers of seeds.
    """
    lengths = {len(values) for values in (*first, *second)}
    if not first or not second or len(lengths) != 1 or (paired and len(first) != len(second)):
        raise ValueError("expected one list of values per seed, all of one length; paired: as many seeds on both sides")
    if len(first) == len(second) == 1:
        return paired_difference(first[0], second[0], seed=seed, draws=draws)
    one, other = _array(first), _array(second)
    kept = np.isfinite(one).all(0) & np.isfinite(other).all(0)
    if kept.sum() < 2:
        return None
    one, other = one[:, kept], other[:, kept]
    value = float(one.mean() - other.mean())
    generator = np.random.default_rng(seed)
    parts = [one - other] if paired else [one, -other]
    pairs = _shares(generator, draws, int(kept.sum()))
    drawn = sum(((_shares(generator, draws, len(part)) @ _spread_out(part)) * pairs).sum(1) for part in parts)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Difference(value, float(low), float(high), int(kept.sum()))


def _array(values: Values) -> np.ndarray:
    return np.array([[math.nan if value is None else value for value in row] for row in values], np.float64)


def _shares(generator: np.random.Generator, draws: int, count: int) -> np.ndarray:
    """(draws, count): how often each of `count` things is drawn in `count` draws with replacement, as a share."""
    return generator.multinomial(count, np.full(count, 1 / count), draws) / count


def _spread_out(values: np.ndarray) -> np.ndarray:
    """The same (seeds, pairs) with the seeds' means moved apart by sqrt(S / (S - 1))."""
    seeds = len(values)
    if seeds == 1:
        return values
    away = values.mean(1, keepdims=True) - values.mean()
    return values + (math.sqrt(seeds / (seeds - 1)) - 1) * away
