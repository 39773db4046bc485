"""A running average of a host's weights, with which it is measured, drawn and kept: a recipe's `optim.ema`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from memcomp.adapters import Host


class Average:
    """An exponential average of everything in a host's state dict, its memory's included.

    Floating-point buffers (statistics of batch norms) are averaged as parameters are, others (counters) are copied.

    Args:
        host: whose weights it starts with.
        decay: share of the average that a step keeps; in the first steps less, (1 + n) / (10 + n) after n of them.
    """

    def __init__(self, host: Host, decay: float) -> None:
        self.decay = decay
        self.values = {key: value.detach().clone() for key, value in host.state_dict().items()}

    def load(self, values: Mapping[str, Tensor]) -> None:
        """Take up the average of a run that goes on."""
        for key, value in self.values.items():
            value.copy_(values[key])

    @torch.no_grad()
    def update(self, host: Host, number: int, taken: Tensor | None = None) -> None:
        """Add what the step `number`, from 0, has made of the host, if `taken`: a truth value on the device."""
        decay = min(self.decay, (1 + number) / (10 + number))
        for key, value in host.state_dict().items():
            own = self.values[key]
            moved = own.lerp(value, 1 - decay) if value.is_floating_point() else value
            own.copy_(moved if taken is None else torch.where(taken, moved, own))

    @contextmanager
    def in_place(self, host: Host) -> Iterator[None]:
        """Inside of the block the host has the average's weights; afterwards, to the bit, its own."""
        state = host.state_dict()
        own = {key: value.clone() for key, value in state.items()}
        with torch.no_grad():
            for key, value in state.items():
                value.copy_(self.values[key])
            try:
                yield
            finally:
                for key, value in state.items():
                    value.copy_(own[key])
