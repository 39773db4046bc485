"""IICM: the implicit identity S_id, and the memory M_s conditioned on it (MCNet Fig. 3, Eq. 1).

`memcomp.reference` has Eq. 1 as the paper writes it, a kernel w'' for each sample. Here no kernel is copied: w'' is w
scaled along its input channels by s_i and along its output channels by a norm, and a convolution is linear in both, so
scaling the memory before one shared convolution and the result after it gives the same.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ModulatedConv2d(nn.Module):
    """3x3 convolution with w'_ijk = s_i w_ijk and w''_ijk = w'_ijk / sqrt(sum_ik w'_ijk^2 + eps) (Eq. 1), zero padded.

    Args:
        channels: C_m, of input and output.
        gain: constant factor on the stored weight (the released unit keeps unit-variance weights); it cancels in
            w'' up to eps.
        eps: the small constant of Eq. 1.
    """

    def __init__(self, channels: int, gain: float = 1.0, eps: float = 1e-8) -> None:
        super().__init__()
        self.gain, self.eps = gain, eps
        self.weight = nn.Parameter(torch.empty(channels, channels, 3, 3))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the kernel so that gain * weight keeps the variance of its input."""
        nn.init.normal_(self.weight, std=1 / (self.gain * math.sqrt(9 * self.weight.shape[1])))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """x (B or 1, C_m, H_m, W_m), style s (B, C_m) -> (B, C_m, H_m, W_m)."""
        weight = self.weight * self.gain if self.gain != 1 else self.weight
        style = style.to(weight.dtype)  # the sum below would lose digits in bfloat16
        energy = weight.square().sum((2, 3))  # (C_out, C_in)
        norm = torch.rsqrt((style.square()[:, None] * energy).sum(2) + self.eps)  # (B, C_out)
        return F.conv2d(x * style[..., None, None], weight, padding=1) * norm[..., None, None]


class IICM(nn.Module):
    """Implicit identity representation conditioned memory module.

    S_id = MLP([GAP(F_proj), x_1, y_1, ..., x_K, y_K]) scales the input channels of a 3x3 convolution over M_o; with
    three coordinates z_1 follows y_1. The paper leaves the MLP's width open: one hidden layer of 128 as released.

    Args:
        channels: C_m.
        keypoints: K, number of source keypoints.
        hidden: width of the MLP's hidden layer.
        dims: D, coordinates of a keypoint.
    """

    def __init__(self, channels: int, keypoints: int, hidden: int = 128, dims: int = 2) -> None:
        super().__init__()
        last = nn.Linear(hidden, channels)
        nn.init.ones_(last.bias)  # S_id starts as a change around a plain convolution
        self.mlp = nn.Sequential(nn.Linear(channels + dims * keypoints, hidden), nn.ReLU(inplace=True), last)
        self.conv = ModulatedConv2d(channels)

    def identity(self, descriptor: Tensor, keypoints: Tensor) -> Tensor:
        """S_id (B, C_m) from descriptor GAP(F_proj) (B, C_m) and source keypoints (B, K, D)."""
        return self.mlp(torch.cat([descriptor, keypoints.flatten(1).to(descriptor.dtype)], dim=1))

    def forward(self, memory: Tensor, descriptor: Tensor, keypoints: Tensor) -> Tensor:
        """M_s (Eq. 1).

        Args:
            memory: M_o, (1, C_m, H_m, W_m).
            descriptor: GAP(F_proj), (B, C_m).
            keypoints: source keypoints (B, K, D), coordinates in [-1, 1].

        Returns:
            (B, C_m, H_m, W_m).
        """
        return self.conv(memory, self.identity(descriptor, keypoints))
