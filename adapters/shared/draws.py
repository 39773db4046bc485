"""Random draws for each pair of a batch, which do not depend on how it is shared out, and their way to a device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class ShareGenerator(torch.Generator):
    """A CPU generator of a whole batch, for one that works on some of its pairs: see `draw_each`.

    Attributes:
        total: pairs of the whole batch.
        first: place of the first pair that is worked on.
    """

    total: int
    first: int

    @classmethod
    def of(cls, generator: torch.Generator, total: int, first: int) -> ShareGenerator:
        """A generator that goes on where `generator` stands, which stays as it is."""
        share = cls()
        share.set_state(generator.get_state())
        share.total, share.first = total, first
        return share


def draw_each(kind: Callable[..., Tensor], batch: int, *shape: int, generator: torch.Generator) -> Tensor:
    """Draw for each pair: (B, *shape), on the CPU.

    From a `ShareGenerator` numbers are drawn for the whole batch, of which those of the pairs that are worked on are
    returned: they are the same for any number of processes and of parts.

    Args:
        kind: `torch.randn` or `torch.rand`.
        batch: pairs that are worked on, B.
        shape: of what is drawn for one.
        generator: where all numbers come from.
    """
    if not isinstance(generator, ShareGenerator):
        return kind(batch, *shape, generator=generator)
    return kind(generator.total, *shape, generator=generator)[generator.first : generator.first + batch]


def to_device(drawn: Tensor, device: torch.device) -> Tensor:
    """Move what was drawn on the CPU; the host goes on at once, whatever the device still has to do."""
    if device.type != "cuda":
        return drawn.to(device)
    return drawn.pin_memory().to(device, non_blocking=True)
