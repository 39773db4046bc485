"""The steps that were undone: counted without waiting for the device, and the end of a training that has no others."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from memcomp.experiments.errors import UserError


class Undone:
    """Counts the steps whose gradient was not finite, in `info["skipped_steps"]`.

    Which these are the device knows. The host learns of a step when it has handed over the next one (`check`), or
    earlier where it must know (`settle`). Only the former ends a training, so that of several processes all end at the
    same step.

    Args:
        info: what the checkpoints tell of the run.
        limit: so many such steps in a row are put up with.
    """

    def __init__(self, info: dict[str, Any], limit: int) -> None:
        self.info, self.limit = info, limit
        self._waiting: list[tuple[int, Arriving]] = []
        self._in_a_row = 0
        self._over: str | None = None  # the step at which there were too many, and how many

    def add(self, step: int, norm: Tensor) -> None:
        """Note the gradient's norm of a step, a scalar on the device."""
        self._waiting.append((step, Arriving(norm)))

    def settle(self) -> None:
        """Count the steps noted so far; waits for the device to be done with them."""
        for step, norm in self._waiting:
            finite = math.isfinite(norm.read())
            self.info["skipped_steps"] += not finite
            self._in_a_row = 0 if finite else self._in_a_row + 1
            if self._in_a_row > self.limit and self._over is None:
                self._over = f"step {step}: {self._in_a_row}"
        self._waiting.clear()

    def check(self) -> None:
        """Count the steps noted so far, the next one being handed over.

        Raises:
            UserError: too many in a row.
        """
        self.settle()
        if self._over is not None:
            raise UserError(
                f"{self._over} steps in a row had a loss or gradient that is not finite; try a "
                "lower optim.lr, optim.clip=10 or a longer optim.warmup"
            )


class Arriving:
    """A number on its way from the device, which goes on with what it was given afterwards."""

    def __init__(self, number: Tensor) -> None:
        self._there: torch.cuda.Event | None = None
        self._number = number.detach()
        if number.is_cuda:
            self._number = self._number.to("cpu", non_blocking=True)
            self._there = torch.cuda.Event()
            self._there.record()

    def read(self) -> float:
        """Wait for the number alone."""
        if self._there is not None:
            self._there.synchronize()
        return self._number.item()
