"""Batches: items of any kind a few at a time, the pair numbers of each training step, and pairs stacked."""

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Sampler

from memcomp.experiments.data.augment import coloured
from memcomp.experiments.errors import warn

T = TypeVar("T")
SHARED_MEMORY = "/dev/shm"  # where worker processes of Linux lay the batches that they have read
AHEAD = 2  # batches that each worker reads ahead
BESIDE = 2  # batches there besides: the one that is worked on, and the one that is being moved


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of `size` items, the last one perhaps shorter; reads no further than needed."""
    iterator = iter(items)
    while group := list(islice(iterator, size)):
        yield group


class StepBatches(Sampler[list[int]]):
    """The pair numbers of the steps `start` … `stop` - 1 that process `rank` of `world` works on."""

    def __init__(self, start: int, stop: int, batch_size: int, rank: int = 0, world: int = 1) -> None:
        self.steps, self.batch_size, self.share = range(start, stop), batch_size, batch_size // world
        self.first = rank * self.share

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps:
            start = step * self.batch_size + self.first
            yield list(range(start, start + self.share))

    def __len__(self) -> int:
        return len(self.steps)


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Stack pairs into (B, C, H, W); what is told of colours, of damaged and of converted clips becomes lists."""
    return {
        "source": torch.stack([sample["source"] for sample in samples]),
        "driving": torch.stack([sample["driving"] for sample in samples]),
        "colours": [sample["colours"] for sample in samples],
        "skipped": [name for sample in samples for name in sample["skipped"]],
        "converted": [sample["converted"] for sample in samples],
    }


def on_device(batch: dict[str, Any], device: torch.device) -> tuple[Tensor, Tensor]:
    """Move the source and driving pictures of a `collate`d batch, and finish them there: float (B, C, H, W) in [0, 1].

    Bytes are what is moved; their colours are changed and divided by 255 on the device. Pictures that are float
    already (those with motion, pose or correspondence) are taken as they are.
    """

    def finished(pictures: Tensor) -> Tensor:
        pictures = pictures.to(device, non_blocking=True)
        return pictures if pictures.is_floating_point() else coloured(pictures, batch["colours"]).div_(255)

    return finished(batch["source"]), finished(batch["driving"])


def loading(workers: int, batch_bytes: int, processes: int = 1, free: int | None = None) -> dict[str, Any]:
    """Arguments of a `DataLoader` by which the batches under way fit into shared memory; fewer than asked for are said.

    Args:
        workers: processes that are to read.
        batch_bytes: of one batch.
        processes: of the training, each with such a loader, on this machine.
        free: bytes of shared memory; None = what this machine says that it has left.
    """
    free = free_shared_memory() if free is None else free
    if workers == 0 or free is None:
        return {"num_workers": workers}
    room = free // processes // batch_bytes - BESIDE
    ahead = min(AHEAD, max(1, room // workers))
    fitting = max(0, min(workers, room // ahead))
    if fitting < workers or ahead < AHEAD:
        now = f"{fitting} workers, {ahead} ahead each, instead of {workers}, {AHEAD} ahead" if fitting else "no workers"
        warn(
            f"shared memory ({SHARED_MEMORY}) has {free / 1e6:.0f} MB left, a batch takes {batch_bytes / 1e6:.1f}: "
            f"{now}; docker run --shm-size=8g (or --ipc=host) gives more"
        )
    return {"num_workers": fitting} | ({"prefetch_factor": ahead} if fitting else {})


def free_shared_memory() -> int | None:
    """Bytes that shared memory has left; None where it is no folder of its own, as on a Mac."""
    try:
        found = os.statvfs(SHARED_MEMORY)
    except (OSError, AttributeError):
        return None
    return found.f_bavail * found.f_frsize
