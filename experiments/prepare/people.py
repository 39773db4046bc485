"""Who is who, and on which side of the split."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage


def clusters(codes: Sequence[Sequence[float]], distance: float) -> list[int]:
    """Group identity codes of segments by people: average linkage, cut at a distance.

    Args:
        codes: N codes.
        distance: Euclidean; nearer ones are of one person.

    Returns:
        The person of each, numbered from 1 in the order of appearance.
    """
    if len(codes) < 2:
        return [1] * len(codes)
    found = fcluster(linkage(np.asarray(codes), "average"), distance, "distance").tolist()
    numbers = {group: number for number, group in enumerate(dict.fromkeys(found), 1)}
    return [numbers[group] for group in found]


def split(people: Iterable[str], said: Mapping[str, str], share: float, seed: int) -> dict[str, str]:
    """Put each person on one side, train or test.

    Args:
        people: their names.
        said: the side of those for whom the input says it.
        share: of the others who go to test, rounded; of two or more at least one, unless it is 0.
        seed: another one, others.
    """
    sides = dict(said)
    rest = sorted({*people} - said.keys(), key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
    count = round(share * len(rest))
    if share > 0 and not count and len(rest) > 1 and "test" not in said.values():
        count = 1
    sides |= {name: "test" if place < count else "train" for place, name in enumerate(rest)}
    return sides
