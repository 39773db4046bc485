"""DaGAN's generators: FOMM's, whose warped feature attends to the source's depth (Hong et al., CVPR 2022, §3.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from memcomp.adapters.dagan.attention import DepthAttention
from memcomp.adapters.dagan.spade import CHANNELS, SpadeDecoder
from memcomp.adapters.fomm.generator import OcclusionAwareGenerator
from memcomp.adapters.fomm.motion import DenseMotion
from memcomp.adapters.outputs import HostOutput, Keypoints
from memcomp.adapters.shared.blocks import DownBlock, SameBlock


@dataclass(frozen=True)
class DaGANOutput(HostOutput):
    """What `HostOutput` holds, and the source's disparity.

    Attributes:
        disparity: (B, 1, H, W) in [0, 1], large where near: what the generator was given.
    """

    disparity: Tensor


class DepthAwareGenerator(OcclusionAwareGenerator):
    """FOMM's generator with an encoder of the source's disparity and an attention before the bottleneck.

    Args: as of `memcomp.adapters.fomm.generator.OcclusionAwareGenerator`.
    """

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
        super().__init__(
            num_channels=num_channels,
            num_kp=num_kp,
            block_expansion=block_expansion,
            max_features=max_features,
            num_down_blocks=num_down_blocks,
            num_bottleneck_blocks=num_bottleneck_blocks,
            dense_motion_params=dense_motion_params,
            estimate_occlusion_map=estimate_occlusion_map,
            align_corners=align_corners,
        )
        widths = [min(max_features, block_expansion * 2**level) for level in range(num_down_blocks + 1)]
        self.src_first = SameBlock(1, widths[0], kernel_size=7)
        self.src_down_blocks = nn.ModuleList(DownBlock(fine, coarse) for fine, coarse in pairwise(widths))
        self.AttnModule = DepthAttention(widths[-1])

    def encode_depth(self, disparity: Tensor) -> Tensor:
        """The feature of disparities (B, 1, H, W) that the attention asks with, of the size of the warped one."""
        out = self.src_first(disparity)
        for block in self.src_down_blocks:
            out = block(out)
        return out

    def paint(self, feature: Tensor, deformed: Tensor, motion: DenseMotion) -> Tensor:
        """The feature after the attention, the source warped by the motion → the image (B, 3, H, W) in [0, 1]."""
        return self.decode(feature)

    def forward(
        self,
        source_image: Tensor,
        kp_driving: Keypoints | Mapping[str, Tensor],
        kp_source: Keypoints | Mapping[str, Tensor],
        source_depth: Tensor | None = None,
        *,
        encoded: Sequence[Tensor] | None = None,
    ) -> DaGANOutput:
        """Source images (B, 3, H, W), keypoints of both images, disparities (B, 1, H, W) of the source (None: 0).

        With `encoded`, what `encode` and `encode_depth` made of one source image, that image is for all poses.
        """
        kp_driving, kp_source = Keypoints.of(kp_driving), Keypoints.of(kp_source)
        if source_depth is None:
            source_depth = torch.zeros_like(source_image[:, :1])
        depth = encoded[1] if encoded else self.encode_depth(source_depth)
        feature, motion = self.warped_feature(source_image, kp_driving, kp_source, encoded)
        depth = depth.expand(len(feature), -1, -1, -1)
        deformed = self.deform_input(source_image, motion.deformation)
        return DaGANOutput(
            prediction=self.paint(self.AttnModule(depth, feature), deformed, motion),
            deformed=deformed,
            deformation=motion.deformation,
            occlusion_map=motion.occlusion_map,
            mask=motion.mask,
            sparse_deformed=motion.sparse_deformed,
            kp_source=kp_source,
            kp_driving=kp_driving,
            disparity=source_depth,
        )


class SPADEDepthAwareGenerator(DepthAwareGenerator):
    """`DepthAwareGenerator` with upstream's SPADE decoder of fixed widths.

    Args: as of `DepthAwareGenerator`; `num_bottleneck_blocks` has no effect.

    Raises:
        ValueError: the lowest level does not have 256 channels at a quarter of the size, which the decoder takes.
    """

    def __init__(self, **params: Any) -> None:
        super().__init__(**params)
        lowest, levels = self.AttnModule.value_conv.in_channels, len(self.down_blocks)
        if (lowest, levels) != (CHANNELS, 2):
            raise ValueError(
                f"the SPADE decoder takes {CHANNELS} channels after 2 down blocks, not {lowest} after {levels}: "
                f"set block_expansion: 64, num_down_blocks: 2, max_features: {CHANNELS} or more"
            )
        del self.bottleneck, self.up_blocks, self.final
        self.decoder = SpadeDecoder()

    def paint(self, feature: Tensor, deformed: Tensor, motion: DenseMotion) -> Tensor:
        """The feature after the attention, the source warped by the motion → the image (B, 3, H, W) in [0, 1].

        The picture is dimmed by the map that dimmed the feature, as upstream: resized to its size, then to the image's.
        """
        if motion.occlusion_map is not None:
            ones = torch.ones_like(feature[:, :1])
            motion = replace(motion, occlusion_map=self.dim(ones, motion))
        return self.decoder(feature, self.dim(deformed, motion))
