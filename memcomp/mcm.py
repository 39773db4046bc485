"""MCM: dynamic cross-attention from a warped feature to the memory M_s (MCNet Fig. 4, Eq. 2).

`memcomp.reference` has Eq. 2 as the paper writes it. Here F_proj is never formed: it and the query are 1x1 convolutions
in a row, which are one (`compose`). The output convolution acts on F_V and not on the attended map: it is linear, and
the rows of a softmax sum to one, so its bias comes along. `attention.py` makes query and softmax chunk by chunk.
"""

import math

from torch import Tensor, nn

from memcomp.attention import Query
from memcomp.layers import DynamicConv2d, compose, convolve_each, merge, preserve_variance, read_values, split

__all__ = ["MCM", "DynamicConv2d", "compose", "convolve_each", "merge", "preserve_variance", "split"]


class MCM(nn.Module):
    """Memory compensation module: F_ca = W_o softmax(F_Q^T F_K) F_V + b_o (Eq. 2).

    F_K and F_V are dynamic convolutions of M_s, F_Q = ReLU(1x1 convolution of F_proj). The 1x1 convolutions that depend
    on a scale's width (before F_proj, after the attention) belong to the scale and come as arguments, so that one MCM
    may serve several scales. A bias on the key would cancel in the softmax, so there is none.

    Args:
        channels: C_m.
        kernels, temperature, hidden: of the two dynamic convolutions.
        scale: factor on F_Q^T F_K; 1 in Eq. 2.
        deviation: of the memory's values at the start, so that F_Q^T F_K and F_V start with unit deviation for any C_m.
    """

    def __init__(
        self, channels: int, kernels: int, temperature: float, hidden: int, scale: float, deviation: float
    ) -> None:
        super().__init__()
        self.scale = scale
        self.query = nn.Conv2d(channels, channels, 1)
        self.key = DynamicConv2d(channels, channels, kernels, temperature, hidden, bias=False)
        self.value = DynamicConv2d(channels, channels, kernels, temperature, hidden, bias=True)
        preserve_variance(self.query)
        # F_Q is half of a unit-variance map: |F_Q|^2 = C_m / 2, so F_K needs the deviation sqrt(2 / C_m).
        self.key.reset_parameters(gain=math.sqrt(2 / channels) / deviation)
        # F_V of unit deviation, Eq. 4's target, or next to no gradient would reach query and key.
        self.value.reset_parameters(gain=1 / deviation)

    def keys(self, memory: Tensor, descriptor: Tensor) -> Tensor:
        """F_K times the attention's scale, (B, C_m, M), from M_s and GAP(F_proj) as in `forward`."""
        return self.key(memory, descriptor).flatten(2) * self.scale

    def ask(self, feature: Tensor, projection: nn.Conv2d, size: tuple[int, int]) -> Query:
        """What F_w^1 (B, C, H, W) asks a memory of that size: F_Q, as a 1x1 convolution that is yet to be made."""
        return Query(feature, *compose(self.query, projection))

    def forward(
        self,
        feature: Tensor,
        memory: Tensor,
        descriptor: Tensor,
        projection: nn.Conv2d,
        output: nn.Conv2d,
        *,
        with_value: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Compensated feature F_ca (B, C, H, W) and, if asked for, F_V (B, C_m, H_m, W_m).

        Args:
            feature: F_w^1, (B, C, H, W).
            memory: M_s, (B or 1, C_m, H_m, W_m).
            descriptor: GAP(F_proj), (B, C_m).
            projection: 1x1 convolution C -> C_m that makes F_proj.
            output: 1x1 convolution C_m -> C of Eq. 2.
            with_value: return F_V too (None otherwise: then it need not be computed).
        """
        keys = self.keys(memory, descriptor)
        values, value = read_values(self.value, output, memory, descriptor, with_value)  # (B, C, M)
        compensated = self.ask(feature, projection, (memory.shape[2], memory.shape[3])).read(keys, values)
        return compensated, value
