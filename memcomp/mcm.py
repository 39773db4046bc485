"""MCM: dynamic cross-attention from a warped feature to the memory M_s (MCNet Fig. 4, Eq. 2-3)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memcomp.attention import cross_attention
from memcomp.config import Split


def split(feature: Tensor, how: Split) -> tuple[Tensor | None, Tensor]:
    """(F_w^0, which passes, or None without split; F_w^1, which is compensated): views of feature (B, C, H, W)."""
    if how == "none":
        return None, feature
    if how == "half":
        kept, replaced = feature.chunk(2, dim=1)
        return kept, replaced
    return feature[:, 0::2], feature[:, 1::2]


def merge(kept: Tensor | None, compensated: Tensor, how: Split) -> Tensor:
    """Eq. 3 with every channel in the place it came from (the paper's order is a fixed permutation of this)."""
    if kept is None:
        return compensated.clone()  # a view of the attention's output, which what follows could not change in place
    if how == "half":
        return torch.cat([kept, compensated], dim=1)
    return torch.stack([kept, compensated], dim=2).flatten(1, 2)


def compose(outer: nn.Conv2d, inner: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Weight (C_out, C_in) and bias (C_out,) of the 1x1 convolution outer(inner(x))."""
    weight, inner_weight = outer.weight.flatten(1), inner.weight.flatten(1)
    return weight @ inner_weight, F.linear(inner.bias, weight, outer.bias)  # type: ignore[arg-type]


def convolve_each(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """3x3 convolution, zero padded, with a kernel of its own for each sample.

    x (B or 1, I, H, W), weight (B, O, I, 3, 3), bias (B, O) -> (B, O, H, W).
    """
    batch = weight.shape[0]
    stacked = x.expand(batch, -1, -1, -1).reshape(1, -1, *x.shape[2:])
    flat_bias = None if bias is None else bias.flatten()
    return F.conv2d(stacked, weight.flatten(0, 1), flat_bias, padding=1, groups=batch).unflatten(1, (batch, -1))[0]


class DynamicConv2d(nn.Module):
    """3x3 convolution whose kernel is a mixture of a few, weighted by a softmax over each sample's descriptor.

    Chen et al., Dynamic Convolution (CVPR 2020), conditioned on another feature than the one it filters.

    Args:
        channels: C_m, of the input and of the descriptor.
        out: output channels.
        kernels: number of kernels mixed.
        temperature: of the softmax over kernels, > 0; high means nearly uniform.
        hidden: width of the hidden layer of the kernel attention.
        bias: whether there is a mixed bias.
    """

    def __init__(self, channels: int, out: int, kernels: int, temperature: float, hidden: int, bias: bool) -> None:
        super().__init__()
        self.temperature = temperature
        self.shape = (out, channels, 3, 3)  # of each kernel
        # Each kernel flat: `.to(memory_format=torch.channels_last)`, also of a whole host, refuses 5-D parameters.
        self.weight = nn.Parameter(torch.empty(kernels, math.prod(self.shape)))
        self.bias = nn.Parameter(torch.zeros(kernels, out)) if bias else None
        first, last = nn.Linear(channels, hidden, bias=False), nn.Linear(hidden, kernels)
        for layer in (first, last):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(last.bias)
        self.attention = nn.Sequential(first, nn.ReLU(inplace=True), last)
        self.reset_parameters()

    def reset_parameters(self, gain: float = 1.0) -> None:
        """Draw the kernels so that their even mixture multiplies the deviation of its input by `gain`."""
        nn.init.normal_(self.weight, std=gain * math.sqrt(self.weight.shape[0] / (9 * self.shape[1])))

    def mixture(self, descriptor: Tensor) -> Tensor:
        """Weights of the kernels (B, kernels), rows sum to 1, from descriptor (B, C_m)."""
        return torch.softmax(self.attention(descriptor) / self.temperature, dim=1)

    def kernel(self, descriptor: Tensor) -> tuple[Tensor, Tensor | None]:
        """Each sample's kernel (B, out, C_m, 3, 3) and bias (B, out)."""
        mixture = self.mixture(descriptor)
        weight = (mixture @ self.weight).unflatten(1, self.shape)
        return weight, None if self.bias is None else mixture @ self.bias

    def forward(self, memory: Tensor, descriptor: Tensor) -> Tensor:
        """memory (B or 1, C_m, H_m, W_m), descriptor (B, C_m) -> (B, out, H_m, W_m)."""
        return convolve_each(memory, *self.kernel(descriptor))


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
        keys = self.key(memory, descriptor).flatten(2) * self.scale  # (B, C_m, M)
        out = output.weight.flatten(1)  # (C, C_m)
        width, channels, tokens = out.shape[0], out.shape[1], keys.shape[2]
        value = None
        # W_o acts on V (M tokens), or on its kernel before the convolution where that is cheaper.
        if with_value or width * (9 * channels + 8 * tokens) >= 9 * channels * tokens:
            value = self.value(memory, descriptor)  # (B, C_m, H_m, W_m)
            values = F.conv2d(value, output.weight, output.bias)
        else:
            kernel, bias = self.value.kernel(descriptor)
            kernel = (out @ kernel.flatten(2)).unflatten(2, kernel.shape[2:])  # (B, C, C_m, 3, 3)
            values = convolve_each(memory, kernel, F.linear(bias, out, output.bias))  # type: ignore[arg-type]
        compensated = cross_attention(feature, *compose(self.query, projection), keys, values.flatten(2))
        return compensated, value if with_value else None


def preserve_variance(conv: nn.Conv2d) -> None:
    """Start a convolution with zero bias and weights that keep the mean square of its input."""
    nn.init.normal_(conv.weight, std=1 / math.sqrt(conv.weight[0].numel()))
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
