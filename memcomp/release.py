"""The memory unit as its authors released it, where it differs from the paper's equations, and its checkpoints' keys.

Differences: a learned linear layer between S_id and the modulated convolution; noise, bias and leaky ReLU after it;
one dynamic convolution for key and value, both rectified; logits divided by 4; the attended memory enters as a
residual, then a 3x3 convolution and an instance norm. Even channels pass, odd channels are compensated. All networks
but the projection and the last convolution serve every scale.
"""

import math
import re
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memcomp.attention import Query
from memcomp.iicm import IICM, ModulatedConv2d
from memcomp.layers import DynamicConv2d, compose
from memcomp.layers import InstanceNorm as InstanceNorm  # pickles of version 0.1.0 look for it here

# Released key -> ours. {level} is the feature size the released unit was written for, {scale} its index here.
KEYS = {
    "mb": "memory.value",
    "style_route.0.weight": "iicm.0.mlp.0.weight",
    "style_route.0.bias": "iicm.0.mlp.0.bias",
    "style_route.2.weight": "iicm.0.mlp.2.weight",
    "style_route.2.bias": "iicm.0.mlp.2.bias",
    "styleconv.weight": "iicm.0.noise_strength",
    "styleconv.modulated_conv.weight": "iicm.0.conv.weight",
    "styleconv.modulated_conv.modulation.weight": "iicm.0.modulation.weight",
    "styleconv.modulated_conv.modulation.bias": "iicm.0.modulation.bias",
    "styleconv.activate.bias": "iicm.0.bias",
    "query_conv.weight": "mcm.0.query.weight",
    "query_conv.bias": "mcm.0.query.bias",
    "conv_kv.weight": "mcm.0.key_value.weight",
    "conv_kv.bias": "mcm.0.key_value.bias",
    "conv_kv.attention.fc1.weight": "mcm.0.key_value.attention.0.weight",
    "conv_kv.attention.fc2.weight": "mcm.0.key_value.attention.2.weight",
    "conv_kv.attention.fc2.bias": "mcm.0.key_value.attention.2.bias",
    "diff_conv.weight": "mcm.0.difference.weight",
    "diff_conv.bias": "mcm.0.difference.bias",
    "feat_forward_proj_{level}.weight": "scales.{scale}.projection.weight",
    "feat_forward_proj_{level}.bias": "scales.{scale}.projection.bias",
    "conv_{level}.weight": "scales.{scale}.output.0.weight",
    "conv_{level}.bias": "scales.{scale}.output.0.bias",
    "norm_{level}.weight": "scales.{scale}.output.1.weight",
    "norm_{level}.bias": "scales.{scale}.output.1.bias",
}


class EqualLinear(nn.Linear):
    """Linear layer whose weight has unit variance and is divided by sqrt(inputs) when used; its bias starts at 1."""

    def reset_parameters(self) -> None:
        """Draw the weight."""
        nn.init.normal_(self.weight)
        nn.init.ones_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs) -> (B, outputs)."""
        return F.linear(x, self.weight / math.sqrt(self.in_features), self.bias)


class ReleaseIICM(IICM):
    """IICM with the released modulation, noise, bias and activation.

    Args:
        channels: C_m.
        keypoints: K.
        hidden: width of the MLP's hidden layer (128).
        code: width of S_id (512).
        noisy: draw the noise in training mode when none is supplied. Never in eval mode.
        dims: D, coordinates of a keypoint.
    """

    def __init__(self, channels: int, keypoints: int, hidden: int, code: int, noisy: bool, dims: int = 2) -> None:
        super().__init__(channels, keypoints, hidden, dims)
        self.noisy = noisy
        self.mlp[2] = nn.Linear(hidden, code)
        self.modulation = EqualLinear(code, channels)
        self.conv = ModulatedConv2d(channels, gain=1 / math.sqrt(9 * channels))
        self.noise_strength = nn.Parameter(torch.zeros(1))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, memory: Tensor, descriptor: Tensor, keypoints: Tensor, noise: Tensor | None = None) -> Tensor:
        """M_s from what `IICM.forward` takes and noise (B or 1, 1, H_m, W_m), standard normal; None = none."""
        style = self.modulation(self.identity(descriptor, keypoints))  # (B, C_m)
        out = self.conv(memory, style)  # (B, C_m, H_m, W_m)
        if noise is None and self.noisy and self.training:
            noise = torch.randn_like(out[:, :1])
        # without noise its strength gets a gradient of zero: distributed training refuses parameters without any
        added = self.noise_strength * (0 if noise is None else noise.to(out))
        return math.sqrt(2) * F.leaky_relu(out + added + self.bias[:, None, None], 0.2)


class ReleaseMCM(nn.Module):
    """MCM in residual form: ReLU(norm(conv3x3(F_proj + ReLU(W_d (F_proj - attended))))).

    W_d is linear and the rows of a softmax sum to one, so W_d acts on the memory's tokens instead of on the attended
    map, and F_proj - attended is never formed. Arguments as `MCM`.
    """

    def __init__(self, channels: int, kernels: int, temperature: float, hidden: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.query = nn.Conv2d(channels, channels, 1)
        self.key_value = DynamicConv2d(channels, 2 * channels, kernels, temperature, hidden, bias=True)
        self.difference = nn.Conv2d(channels, channels, 1)
        self.key_value.reset_parameters(gain=math.sqrt(2 / kernels))

    def keys(self, memory: Tensor, descriptor: Tensor) -> Tensor:
        """F_K times the attention's scale, (B, C_m, M), from M_s and GAP(F_proj) as in `forward`."""
        return self._key_and_value(memory, descriptor)[0].flatten(2) * self.scale

    def ask(self, feature: Tensor, projection: nn.Conv2d, size: tuple[int, int]) -> Query:
        """What a feature asks the memory: see `memcomp.mcm.MCM.ask`."""
        return Query(feature, *compose(self.query, projection))

    def forward(
        self,
        feature: Tensor,
        memory: Tensor,
        descriptor: Tensor,
        projection: nn.Conv2d,
        output: nn.Module,
        *,
        with_value: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """What `MCM.forward` gives; `output` is a 3x3 convolution C_m -> C and an instance norm."""
        key, value = self._key_and_value(memory, descriptor)
        values = F.conv2d(value, self.difference.weight)
        query = self.ask(feature, projection, (memory.shape[2], memory.shape[3]))
        attended = query.read(key.flatten(2) * self.scale, values.flatten(2))
        weight, bias = compose(self.difference, projection)
        difference = F.relu(F.conv2d(feature, weight[..., None, None], bias) - attended)  # (B, C_m, H, W)
        return F.relu(output(difference + projection(feature))), value if with_value else None

    def _key_and_value(self, memory: Tensor, descriptor: Tensor) -> tuple[Tensor, Tensor]:
        key, value = F.relu(self.key_value(memory, descriptor)).chunk(2, dim=1)  # (B, C_m, H_m, W_m) each
        return key, value


def release_levels(state: Mapping[str, Tensor], prefix: str = "mbUnit.") -> list[int]:
    """The feature sizes a released unit serves, ascending: [32, 64, 128] for the published one."""
    found = (re.fullmatch(re.escape(prefix) + r"feat_forward_proj_(\d+)\.weight", key) for key in state)
    return sorted(int(match[1]) for match in found if match)


def convert_release(state: Mapping[str, Tensor], prefix: str = "mbUnit.") -> dict[str, Tensor]:
    """A released unit's state in our keys and shapes.

    Raises:
        ValueError: naming every missing and unexpected key below the prefix.
    """
    levels = release_levels(state, prefix)
    table = {
        theirs.format(level=level): ours.format(scale=scale)
        for scale, level in enumerate(levels)
        for theirs, ours in KEYS.items()
    }
    below = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    missing, unexpected = sorted(table.keys() - below.keys()), sorted(below.keys() - table.keys())
    if missing or unexpected or not levels:
        raise ValueError(f"not a released memory unit below '{prefix}': missing {missing}, unexpected {unexpected}")
    return {ours: _in_our_shape(theirs, below[theirs]) for theirs, ours in table.items()}


def _in_our_shape(key: str, tensor: Tensor) -> Tensor:
    if key in ("mb", "styleconv.modulated_conv.weight"):
        return tensor[0]
    if key == "conv_kv.weight":
        return tensor.flatten(1)
    return tensor[..., 0, 0] if key.startswith("conv_kv.attention.fc") and tensor.ndim == 4 else tensor
