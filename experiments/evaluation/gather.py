"""Pairs shared among processes and their values brought together again, in the order of the pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch.distributed as dist

from memcomp.experiments.processes import together

T = TypeVar("T")


def place() -> tuple[int, int]:
    """This process's rank and how many there are; (0, 1) outside torch.distributed."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def share(items: Sequence[T]) -> Iterator[T]:
    """This process's share: every n-th item, each taken from the sequence only when it is its turn."""
    rank, world = place()
    return (items[i] for i in range(rank, len(items), world))


def gather(values: Sequence[T]) -> list[T]:
    """The values of all processes' shares, in the order of the items that `share` gave out.

    Every process gets the whole list, so that a mean taken over it is the one that a single process takes: the same
    additions in the same order.

    Raises:
        Incomplete: another process has ended.
        ValueError: the processes' counts are not those of `share`.
    """
    world = place()[1]
    if world == 1:
        return list(values)
    parts: list[list[T]] = [[] for _ in range(world)]
    with together():
        dist.all_gather_object(parts, list(values))
    total = sum(map(len, parts))
    if [len(part) for part in parts] != [len(range(rank, total, world)) for rank in range(world)]:
        raise ValueError(f"expected the shares of {total} items, got {[len(part) for part in parts]} values")
    return [parts[i % world][i // world] for i in range(total)]
