"""What TPSM turns on and off while it trains: motion dropout and the background's motion."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from memcomp.adapters.shared.draws import draw_each


@dataclass(frozen=True)
class Schedule:
    """Upstream's ``train_params`` that concern the networks; epochs count from 0.

    Raises:
        ValueError: `dropout_inc_epoch` is not above 0, or a probability is not in [0, 1).
    """

    bg_start: int = 10
    """First epoch in which the background moves."""
    dropout_epoch: int = 35
    """First epoch without dropout."""
    dropout_maxp: float = 0.3
    """Largest probability of dropping a motion."""
    dropout_startp: float = 0.1
    """Probability in epoch 0."""
    dropout_inc_epoch: int = 10
    """The probability grows by `dropout_maxp` in so many epochs."""

    def __post_init__(self) -> None:
        if self.dropout_inc_epoch <= 0:
            raise ValueError(f"train_params.dropout_inc_epoch: expected more than 0, got {self.dropout_inc_epoch}")
        for name in ("dropout_maxp", "dropout_startp"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"train_params.{name}: expected 0 or more and below 1, got {getattr(self, name)}")

    def dropout(self, epoch: float) -> float | None:
        """Probability of dropping a motion; None = no dropout. It changes once per epoch, as upstream's."""
        if epoch >= self.dropout_epoch:
            return None
        grown = math.floor(epoch) / self.dropout_inc_epoch * self.dropout_maxp + self.dropout_startp
        return min(grown, self.dropout_maxp)

    def kept(self, epoch: float, batch: int, num_tps: int, generator: torch.Generator) -> Tensor | None:
        """Which motions dropout keeps, (B, K + 1) bool, always the background; None = no dropout."""
        probability = self.dropout(epoch)
        if probability is None:
            return None
        kept = draw_each(torch.rand, batch, num_tps + 1, generator=generator) < 1 - probability
        kept[:, 0] = True
        return kept
