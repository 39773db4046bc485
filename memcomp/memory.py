"""The global facial meta-memory M_o (MCNet §3.2): one learnable cube of feature vectors, shared by every scale."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class MetaMemory(nn.Module):
    """M_o, a learnable tensor of shape (C_m, H_m, W_m) that every training image updates.

    Args:
        channels: C_m >= 1.
        size: (H_m, W_m), each >= 1.
        deviation: of the uniform values at the start; None as released, the Kaiming deviation over the whole cube:
            sqrt(2 / (C_m H_m W_m)).
    """

    def __init__(self, channels: int, size: Sequence[int], deviation: float | None = None) -> None:
        super().__init__()
        self.deviation = deviation or math.sqrt(2 / (channels * math.prod(size)))
        """Standard deviation of the values at the start."""
        self.value = nn.Parameter(torch.empty(channels, *size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw M_o anew."""
        bound = self.deviation * math.sqrt(3)
        nn.init.uniform_(self.value, -bound, bound)

    def forward(self) -> Tensor:
        """M_o as a batch of one: (1, C_m, H_m, W_m)."""
        return self.value.unsqueeze(0)

    def extra_repr(self) -> str:
        """The shape, for `print`."""
        return "x".join(map(str, self.value.shape))
