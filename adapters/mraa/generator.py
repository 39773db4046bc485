"""MRAA's generator (Siarohin et al., 2021, §3.4): the features of every encoder level are warped into the decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memcomp.adapters.mraa.flow import PixelwiseFlowPredictor
from memcomp.adapters.mraa.regions import Regions
from memcomp.adapters.outputs import HostOutput, Keypoints
from memcomp.adapters.shared.blocks import DownBlock, ResBlock, SameBlock, UpBlock, check_halves, warp


class Generator(nn.Module):
    """Encodes the source, warps its features, decodes; what the source shows is blended in again at every level.

    Sampling and resizing use align_corners=False, although coordinates put ±1 at the centres of the border pixels.

    Args:
        num_channels: channels of the image.
        num_regions: number K of regions.
        block_expansion, max_features: level i has min(max_features, block_expansion · 2^i) channels.
        num_down_blocks: levels below the image's size.
        num_bottleneck_blocks: residual blocks at the lowest level.
        pixelwise_flow_predictor_params: further arguments of `PixelwiseFlowPredictor`.
        skips: blend the warped features of every level, and at the end the warped image, with the decoder's.
        revert_axis_swap: of the flow predictor.
    """

    def __init__(
        self,
        num_channels: int,
        num_regions: int,
        block_expansion: int,
        max_features: int,
        num_down_blocks: int,
        num_bottleneck_blocks: int,
        pixelwise_flow_predictor_params: Mapping[str, Any],
        skips: bool = False,
        revert_axis_swap: bool = True,
    ) -> None:
        super().__init__()
        self.pixelwise_flow_predictor = PixelwiseFlowPredictor(
            num_regions=num_regions,
            num_channels=num_channels,
            revert_axis_swap=revert_axis_swap,
            **pixelwise_flow_predictor_params,
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
        self.skips = skips

    def deform_input(self, inp: Tensor, deformation: Tensor) -> Tensor:
        """Warp (B, C, H, W) by a flow (B, h, w, 2) of any size, which is resized to H × W first."""
        if deformation.shape[1:3] != inp.shape[2:]:
            flow = F.interpolate(deformation.permute(0, 3, 1, 2), size=inp.shape[2:], mode="bilinear")
            deformation = flow.permute(0, 2, 3, 1)
        return warp(inp, deformation, align_corners=False)

    def encode(self, image: Tensor) -> list[Tensor]:
        """Images (B, C, H, W) → the features of every level, coarse to fine; the finest has the image's size.

        Raises:
            ValueError: with skips, height or width cannot be halved as often as there are levels.
        """
        if self.skips:  # which meet at every size
            check_halves("a generator", len(self.down_blocks), image)
        levels = [self.first(image)]
        for block in self.down_blocks:
            levels.append(block(levels[-1]))
        return levels[::-1]

    def forward(
        self,
        source_image: Tensor,
        driving_region_params: Keypoints | Mapping[str, Tensor],
        source_region_params: Keypoints | Mapping[str, Tensor],
        bg_params: Tensor | None = None,
        *,
        encoded: Sequence[Tensor] | None = None,
    ) -> HostOutput:
        """The source in the driving pose.

        Args:
            source_image: (B, C, H, W); one for all poses if `encoded` is given.
            driving_region_params, source_region_params, bg_params: see `PixelwiseFlowPredictor.forward`.
            encoded: of that image, what `encode` made.
        """
        driving, source = Regions.of(driving_region_params), Regions.of(source_region_params)
        levels = encoded or self.encode(source_image)
        motion = self.pixelwise_flow_predictor(
            source_image=source_image, driving_region_params=driving, source_region_params=source, bg_params=bg_params
        )
        flow, visible = motion.deformation, motion.occlusion_map
        deformed, warped = self.deform_input(source_image, flow), self.deform_input(levels[0], flow)
        out = self.bottleneck(blend(warped, None, visible))
        for index, block in enumerate(self.up_blocks):
            if self.skips:
                out = blend(warped if index == 0 else self.deform_input(levels[index], flow), out, visible)
            out = block(out)
        if self.skips:
            out = blend(self.deform_input(levels[-1], flow), out, visible)
        prediction = torch.sigmoid(self.final(out))
        return HostOutput(
            prediction=blend(deformed, prediction, visible) if self.skips else prediction,
            deformed=deformed,
            deformation=flow,
            occlusion_map=visible,
            mask=motion.mask,
            sparse_deformed=motion.sparse_deformed,
            kp_source=source,
            kp_driving=driving,
        )


def blend(warped: Tensor, decoded: Tensor | None, visible: Tensor | None) -> Tensor:
    """Warped (B, C, H, W) where the source is visible, decoded (B, C, H, W; None = nothing) where it is not.

    `visible` is (B, 1, h, w) of any size; None = everywhere.
    """
    if visible is None:
        return warped
    if visible.shape[2:] != warped.shape[2:]:
        visible = F.interpolate(visible, size=warped.shape[2:], mode="bilinear")
    seen = warped * visible
    return seen if decoded is None else seen + decoded * (1 - visible)
