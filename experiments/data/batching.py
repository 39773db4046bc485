"""Items of any kind, a batch at a time."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

T = TypeVar("T")


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, the last one perhaps shorter; reads no further than needed."""
    iterator = iter(items)
    while group := list(islice(iterator, size)):
        yield group
