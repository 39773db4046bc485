"""Layers without an equation: splitting channels, folding 1x1 convolutions, memory format, norm, dynamic ones."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
        return compensated
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


def of_length_one(x: Tensor, dim: int) -> Tensor:
    """x divided by its length along a dimension; zeros stay zeros.

    As torch's `normalize`, but in half precision for lengths below 0.008, which stay shorter. With torch 2.14 on a CPU
    that takes ten times as long, along a dimension that is not the last.
    """
    total = torch.promote_types(x.dtype, torch.float32)
    energy = x.to(total).square().sum(dim, keepdim=True).clamp(min=max(1e-24, torch.finfo(x.dtype).tiny))
    return x * energy.rsqrt().to(x.dtype)


def preserve_variance(conv: nn.Conv2d) -> None:
    """Start a convolution with zero bias and weights that keep the mean square of its input."""
    nn.init.normal_(conv.weight, std=1 / math.sqrt(conv.weight[0].numel()))
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def laid_out(x: Tensor, like: Tensor) -> Tensor:
    """The tensor x (B, C, h, w) in channels_last if that is how the channels of `like` (B', C', H, W) lie, else x."""
    # by its stride: pictures of an expanded batch, and some channels of others, are contiguous in no format
    last = like.shape[1] > 1 and like.stride(1) == 1
    return x.contiguous(memory_format=torch.channels_last) if last else x


class InstanceNorm(nn.InstanceNorm2d):
    """Instance norm of features of any size and memory format, which it keeps: a group norm of one channel each.

    torch's own refuses 1x1, which becomes the bias here, to rounding; gives contiguous tensors whatever it is given;
    and, seen with torch 2.14 on a CPU, gives a wrong gradient where that of a single picture is channels_last.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape and dtype."""
        # autocast, which leaves instance norms alone, makes group norms float32; on CUDA they come back contiguous
        return laid_out(torch.group_norm(x, x.shape[1], self.weight, self.bias, self.eps).to(x.dtype), x)


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


def read_values(
    value: DynamicConv2d, output: nn.Conv2d, memory: Tensor, descriptor: Tensor, with_value: bool
) -> tuple[Tensor, Tensor | None]:
    """What an attention sums: W_o F_V + b_o (B, C, M), and F_V (B, C_m, H_m, W_m) if asked for.

    W_o acts on F_V, or on its kernel before the convolution where that is cheaper.
    """
    out = output.weight.flatten(1)  # (C, C_m)
    width, channels, tokens = out.shape[0], out.shape[1], memory.shape[2] * memory.shape[3]
    if with_value or width * (9 * channels + 8 * tokens) >= 9 * channels * tokens:
        made = value(memory, descriptor)
        return F.conv2d(made, output.weight, output.bias).flatten(2), made if with_value else None
    kernel, bias = value.kernel(descriptor)
    kernel = (out @ kernel.flatten(2)).unflatten(2, kernel.shape[2:])  # (B, C, C_m, 3, 3)
    return convolve_each(memory, kernel, F.linear(bias, out, output.bias)).flatten(2), None  # type: ignore[arg-type]
