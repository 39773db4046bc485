"""MCNet's generator without its memory (Hong & Xu, 2023, Fig. 2; the layers as released)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from memcomp.adapters.fomm.motion import DenseMotion, DenseMotionNetwork
from memcomp.adapters.outputs import HostOutput, Keypoints
from memcomp.adapters.shared.blocks import Norm
from memcomp.adapters.shared.warped_skip import WarpedSkipGenerator


class UNetGenerator(WarpedSkipGenerator):
    """FOMM's dense motion and occlusion map, resized to every level of a generator with warped skips.

    Args:
        num_channels: channels of the image.
        num_kp: number K of keypoints.
        block_expansion, max_features: level i has min(max_features, block_expansion · 2^i) channels.
        num_down_blocks: levels below the image's size.
        dense_motion_params: further arguments of `DenseMotionNetwork`.
        estimate_occlusion_map: must be true: what is blended needs it.
        num_bottleneck_blocks, memsize: in upstream's configuration, and without effect there as well.
        align_corners: of the dense motion's `grid_sample` (see `memcomp.adapters.mcnet.MCNet`).

    Raises:
        ValueError: `estimate_occlusion_map` is false.
    """

    motion_type: ClassVar[type[nn.Module]] = DenseMotionNetwork
    norm: ClassVar[Norm] = nn.BatchNorm2d

    def __init__(
        self,
        num_channels: int,
        num_kp: int,
        block_expansion: int,
        max_features: int,
        num_down_blocks: int,
        dense_motion_params: Mapping[str, Any],
        estimate_occlusion_map: bool = True,
        num_bottleneck_blocks: int = 0,
        memsize: int = 0,
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        if not estimate_occlusion_map:
            raise ValueError("model.generator_params.estimate_occlusion_map: this host needs it, give true")
        self.dense_motion_network = self.motion_type(
            num_kp=num_kp,
            num_channels=num_channels,
            estimate_occlusion_map=True,
            align_corners=align_corners,
            **dense_motion_params,
        )
        self.build(num_channels, block_expansion, max_features, num_down_blocks, type(self).norm)

    def warped_features(
        self,
        source_image: Tensor,
        kp_driving: Keypoints,
        kp_source: Keypoints,
        encoded: Sequence[Tensor] | None = None,
    ) -> tuple[list[Tensor], DenseMotion]:
        """The features of every level, coarse to fine, warped and dimmed where occluded, and the motion that did."""
        levels = encoded or self.encode(source_image)
        motion = self.dense_motion_network(source_image=source_image, kp_driving=kp_driving, kp_source=kp_source)
        visible = motion.occlusion_map
        return [self.occlude_input(self.deform_input(level, motion.deformation), visible) for level in levels], motion

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
        warped, motion = self.warped_features(source_image, kp_driving, kp_source, encoded)
        visible = motion.occlusion_map
        assert visible is not None  # the constructor demands it
        deformed = self.deform_input(source_image, motion.deformation)
        return HostOutput(
            prediction=self.decode(warped, deformed, visible),
            deformed=deformed,
            deformation=motion.deformation,
            occlusion_map=visible,
            mask=motion.mask,
            sparse_deformed=motion.sparse_deformed,
            kp_source=kp_source,
            kp_driving=kp_driving,
        )
