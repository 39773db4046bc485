"""One scale of a compensation: what it is given, what it owns, and what it gives (MCNet Fig. 2, Eq. 3)."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memcomp.config import CompensationConfig
from memcomp.layers import InstanceNorm, merge, preserve_variance, split
from memcomp.placed import visible_mean


@dataclass(frozen=True)
class CompensationOutput:
    """What the compensation of one scale gives."""

    feature: Tensor
    """F_cpt (B, C_i, H, W): the compensated feature, in the input's dtype and memory format."""
    value: Tensor
    """F_V (B, C_m, H_m, W_m), with gradient."""
    target: Tensor
    """F_proj resized to (B, C_m, H_m, W_m), detached: what Eq. 4 compares F_V with."""


class Given(NamedTuple):
    """What a compensation is told besides the feature; see `MemoryCompensation.forward`."""

    keypoints: Tensor
    noise: Tensor | None = None
    driving: Tensor | None = None
    visibility: Tensor | None = None


class Conditioned(NamedTuple):
    """A warped feature on its way through one scale, and the memory that its identity has conditioned (Fig. 3)."""

    kept: Tensor | None
    """F_w^0, the channels that pass (B, C, H, W); None without split."""
    replaced: Tensor
    """F_w^1, the channels that are compensated (B, C, H, W)."""
    part: Tensor
    """F_w^1 (B, C, H, W) in the dtype that the networks compute in."""
    descriptor: Tensor
    """GAP(F_proj), (B, C_m)."""
    memory: Tensor
    """M_s (B, C_m, H_m, W_m); without IICM M_o (1, C_m, H_m, W_m)."""
    visibility: Tensor | None = None
    """(B, 1, H, W) at the feature's size, where the config asks for it."""


class Scale(nn.Module):
    """What one scale owns: the 1x1 convolutions into and out of the memory's width, and the gate of a start.

    Args:
        channels: C_i of the feature.
        config: the compensation's.
    """

    residual: bool = False  # of start "residual"; here, for pickles of version 0.1.0 lack it

    def __init__(self, channels: int, config: CompensationConfig) -> None:
        super().__init__()
        width = channels if config.split == "none" else channels // 2
        self.channels, self.split = channels, config.split
        self.projection = nn.Conv2d(width, config.memory_channels, 1)
        self.output: nn.Module
        if config.variant == "paper":
            self.output = nn.Conv2d(config.memory_channels, width, 1)
            preserve_variance(self.projection)
            preserve_variance(self.output)
            if config.start == "residual":
                nn.init.zeros_(self.output.weight)
        else:
            last = nn.Conv2d(config.memory_channels, width, 3, padding=1)
            self.output = nn.Sequential(last, InstanceNorm(width, affine=True))
        gated, self.residual = config.start == "identity", config.start == "residual"
        self.gate = nn.Parameter(torch.zeros(channels)) if gated else None  # g, one for each channel

    def describe(self, part: Tensor, visibility: Tensor | None = None) -> Tensor:
        """GAP(F_proj) (B, C_m) of the split-off feature: a mean commutes with a 1x1 convolution.

        With visibility (B, 1, H, W) it is the mean over what the source shows.
        """
        mean = part.mean((2, 3)) if visibility is None else visible_mean(part, visibility, (1, 1)).flatten(1)
        return F.linear(mean, self.projection.weight.flatten(1), self.projection.bias)

    def computed(self, part: Tensor) -> Tensor:
        """Give the split-off feature the dtype that the networks compute in."""
        device = part.device.type
        if torch.is_autocast_enabled(device) and part.dtype == torch.get_autocast_dtype(device):
            return part
        return part.to(self.projection.weight.dtype)

    def target(self, part: Tensor, size: tuple[int, int]) -> Tensor:
        """F_proj at the memory's size, without gradient: resizing commutes with a 1x1 convolution."""
        with torch.no_grad():
            if part.shape[2:] != size:
                part = F.interpolate(part, size=size, mode="bilinear", align_corners=True)
            return self.projection(part)

    def merge(self, replaced: Tensor, kept: Tensor | None, compensated: Tensor, like: Tensor) -> Tensor:
        """Gate, merge (Eq. 3), and give the result `like`'s dtype and memory format."""
        compensated = compensated.to(like.dtype)
        if self.gate is not None:
            _, gate = split(self.gate.to(like.dtype)[None, :, None, None], self.split)
            compensated = replaced + gate * (compensated - replaced)
        elif self.residual:
            compensated = replaced + compensated
        elif kept is None:
            compensated = compensated.clone()  # a view of the attention's output, which what follows could not change
        merged = merge(kept, compensated, self.split)
        last = like.is_contiguous(memory_format=torch.channels_last) and not like.is_contiguous()
        return merged.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)

    def check(
        self, feature: Tensor, given: Given, scale: int, points: tuple[int, int], config: CompensationConfig
    ) -> None:
        """Raise ValueError, naming it, for a tensor of another shape than this scale, its number, takes.

        `points` is (K, D), number of keypoints and of their coordinates.
        """
        channels = self.channels
        if feature.ndim != 4 or feature.shape[1] != channels or 0 in feature.shape:
            expected = f"(B, {channels}, H, W)"
            raise ValueError(f"the feature of scale {scale} must be {expected}, not {tuple(feature.shape)}")
        if not feature.is_floating_point():
            raise ValueError(f"the feature must be of a floating-point dtype, not {feature.dtype}")
        asked = {"driving": config.driving, "visibility": config.visibility}
        for name, is_asked in asked.items():
            if is_asked != (getattr(given, name) is not None):
                raise ValueError(
                    f"{name} is {'missing' if is_asked else 'not used'}: the config says {name}={is_asked}"
                )
        batch, noise, visible = feature.shape[0], given.noise, given.visibility
        for name, pose in (("keypoints", given.keypoints), ("driving", given.driving)):
            if pose is None:
                continue
            if pose.ndim != 3 or pose.shape[1:] != points or pose.shape[0] not in (1, batch):
                raise ValueError(f"{name} must be ({batch} or 1, {points[0]}, {points[1]}), not {tuple(pose.shape)}")
        if visible is not None and (visible.ndim != 4 or visible.shape[1] != 1 or visible.shape[0] not in (1, batch)):
            raise ValueError(f"visibility must be ({batch} or 1, 1, h, w), not {tuple(visible.shape)}")
        if noise is None:
            return
        if config.variant != "release" or not config.identity_conditioning:
            raise ValueError("noise is only used by variant 'release' with identity_conditioning")
        if noise.ndim != 4 or noise.shape[1:] != (1, *config.memory_size) or noise.shape[0] not in (1, batch):
            size = config.memory_size
            raise ValueError(f"noise must be ({batch} or 1, 1, {size[0]}, {size[1]}), not {tuple(noise.shape)}")
