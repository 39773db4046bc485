"""FOMM's occlusion-aware generator (Siarohin et al., 2019, §3.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memcomp.adapters.fomm.motion import DenseMotion, DenseMotionNetwork
from memcomp.adapters.outputs import HostOutput, Keypoints
from memcomp.adapters.shared.blocks import DownBlock, ResBlock, SameBlock, UpBlock, warp


class OcclusionAwareGenerator(nn.Module):
    """Encodes the source, warps the features by the dense motion, dims what is occluded, decodes.

    Args:
        num_channels: channels of the image.
        num_kp: number K of keypoints.
        block_expansion, max_features: level i has min(max_features, block_expansion · 2^i) channels.
        num_down_blocks: levels below the image's size.
        num_bottleneck_blocks: residual blocks at the lowest level.
        dense_motion_params: further arguments of `DenseMotionNetwork`.
        estimate_occlusion_map: let the dense motion predict occlusion.
        align_corners: of `grid_sample` (see `memcomp.adapters.fomm.FOMM`).
    """

    motion_type: ClassVar[type[nn.Module]] = DenseMotionNetwork

    def __init__(
        self,
        num_channels: int,
        num_kp: int,
        block_expansion: int,
        max_features: int,
        num_down_blocks: int,
        num_bottleneck_blocks: int,
        dense_motion_params: Mapping[str, Any],
        estimate_occlusion_map: bool = False,
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        self.dense_motion_network = self.motion_type(
            num_kp=num_kp,
            num_channels=num_channels,
            estimate_occlusion_map=estimate_occlusion_map,
            align_corners=align_corners,
            **dense_motion_params,
        )
        widths = [min(max_features, block_expansion * 2**level) for level in range(num_down_blocks + 1)]
        pairs = list(pairwise(widths))
        self.first = SameBlock(num_channels, widths[0], kernel_size=7)
        self.down_blocks = nn.ModuleList(DownBlock(fine, coarse) for fine, coarse in pairs)
        self.up_blocks = nn.ModuleList(UpBlock(coarse, fine) for fine, coarse in reversed(pairs))
        self.bottleneck = nn.Sequential()
        for index in range(num_bottleneck_blocks):
            self.bottleneck.add_module(f"r{index}", ResBlock(widths[-1]))
        self.final = nn.Conv2d(widths[0], num_channels, 7, padding=3)
        self.num_channels = num_channels
        self.align_corners = align_corners

    def deform_input(self, inp: Tensor, deformation: Tensor) -> Tensor:
        """Warp (B, C, H, W) by a flow (B, h, w, 2) of any size, which is resized to H × W first."""
        if deformation.shape[1:3] != inp.shape[2:]:
            flow = F.interpolate(deformation.permute(0, 3, 1, 2), size=inp.shape[2:], mode="bilinear")
            deformation = flow.permute(0, 2, 3, 1)
        return warp(inp, deformation, align_corners=self.align_corners)

    def dim(self, inp: Tensor, motion: DenseMotion) -> Tensor:
        """(B, C, H, W) times the occlusion map, resized to H × W, if there is one."""
        if motion.occlusion_map is None:
            return inp
        visible = motion.occlusion_map
        if visible.shape[2:] != inp.shape[2:]:
            visible = F.interpolate(visible, size=inp.shape[2:], mode="bilinear")
        return inp * visible

    def encode(self, image: Tensor) -> tuple[Tensor, ...]:
        """What is warped of images (B, C, H, W): one feature (B, C', H / 2^n, W / 2^n)."""
        out = self.first(image)
        for block in self.down_blocks:
            out = block(out)
        return (out,)

    def warped_feature(
        self,
        source_image: Tensor,
        kp_driving: Keypoints,
        kp_source: Keypoints,
        encoded: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, DenseMotion]:
        """The source encoded, warped and dimmed where occluded, (B, C', H / 2^n, W / 2^n), and the motion that did."""
        out = (encoded or self.encode(source_image))[0]
        motion = self.dense_motion_network(source_image=source_image, kp_driving=kp_driving, kp_source=kp_source)
        return self.dim(self.deform_input(out, motion.deformation), motion), motion

    def decode(self, feature: Tensor) -> Tensor:
        """(B, C', H / 2^n, W / 2^n) → the image (B, C, H, W) in [0, 1]."""
        out = self.bottleneck(feature)
        for block in self.up_blocks:
            out = block(out)
        return torch.sigmoid(self.final(out))

    def forward(
        self,
        source_image: Tensor,
        kp_driving: Keypoints | Mapping[str, Tensor],
        kp_source: Keypoints | Mapping[str, Tensor],
        *,
        encoded: Sequence[Tensor] | None = None,
    ) -> HostOutput:
        """The source in the driving pose.

        Args:
            source_image: (B, C, H, W); one for all poses if `encoded` is given.
            kp_driving, kp_source: keypoints of both images, (B, K, 2).
            encoded: of that image, what `encode` made.
        """
        kp_driving, kp_source = Keypoints.of(kp_driving), Keypoints.of(kp_source)
        feature, motion = self.warped_feature(source_image, kp_driving, kp_source, encoded)
        return HostOutput(
            prediction=self.decode(feature),
            deformed=self.deform_input(source_image, motion.deformation),
            deformation=motion.deformation,
            occlusion_map=motion.occlusion_map,
            mask=motion.mask,
            sparse_deformed=motion.sparse_deformed,
            kp_source=kp_source,
            kp_driving=kp_driving,
        )
