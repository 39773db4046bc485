"""Batches: items of any kind a few at a time, the pair numbers of each training step, and pairs stacked."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Sampler

from memcomp.experiments.data.augment import coloured

T = TypeVar("T")


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
    already (those with motion) are taken as they are.
    """

    def finished(pictures: Tensor) -> Tensor:
        pictures = pictures.to(device, non_blocking=True)
        return pictures if pictures.is_floating_point() else coloured(pictures, batch["colours"]).div_(255)

    return finished(batch["source"]), finished(batch["driving"])
