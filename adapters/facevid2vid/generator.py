"""face-vid2vid's generators (§3.2): a volume of the source's appearance is warped, flattened, dimmed and decoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memcomp.adapters.facevid2vid.motion import DenseMotionNetwork
from memcomp.adapters.facevid2vid.volumes import ResBlock3d, warp_volume
from memcomp.adapters.outputs import HostOutput, Keypoints
from memcomp.adapters.shared.blocks import DownBlock, ResBlock, SameBlock, UpBlock, check_halves
from memcomp.adapters.shared.spade import SpadeBlock

WIDE, FINEST = 512, 64  # of the SPADE decoder, which no parameter changes


class LeakyBlock(SameBlock):
    """Convolution, norm, leaky ReLU; keeps the size."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C', H, W)."""
        return F.leaky_relu(self.norm(self.conv(x)), inplace=True)


class Generator(nn.Module):
    """The generator of the paper, its decoder made of residual blocks.

    Args:
        image_channel: channels of the image.
        feature_channel: channels of the volume for the dense motion; the same as `reshape_channel`.
        num_kp: number K of keypoints.
        block_expansion, max_features: encoder level i has min(max_features, block_expansion · 2^i) channels, the
            decoder's block_expansion · 2^i.
        num_down_blocks: levels below the image's size.
        reshape_channel, reshape_depth: channels and depth of the volume (upstream's product is `max_features`).
        num_resblocks: residual blocks of the volume, and of the flat feature.
        estimate_occlusion_map: dim what the source hides.
        dense_motion_params: further arguments of `DenseMotionNetwork`.

    Raises:
        ValueError: sizes of the volume that do not go together.
    """

    first_kernel: ClassVar[int] = 7

    def __init__(
        self,
        image_channel: int,
        feature_channel: int,
        num_kp: int,
        block_expansion: int,
        max_features: int,
        num_down_blocks: int,
        reshape_channel: int,
        reshape_depth: int,
        num_resblocks: int,
        dense_motion_params: Mapping[str, Any],
        estimate_occlusion_map: bool = False,
    ) -> None:
        super().__init__()
        _check_volume(feature_channel, reshape_channel, reshape_depth, dense_motion_params)
        self.dense_motion_network = DenseMotionNetwork(
            num_kp=num_kp,
            feature_channel=feature_channel,
            estimate_occlusion_map=estimate_occlusion_map,
            **dense_motion_params,
        )
        widths = [min(max_features, block_expansion * 2**level) for level in range(num_down_blocks + 1)]
        self.first = SameBlock(image_channel, widths[0], kernel_size=self.first_kernel)
        self.down_blocks = nn.ModuleList(DownBlock(fine, coarse) for fine, coarse in pairwise(widths))
        self.second = nn.Conv2d(widths[-1], reshape_channel * reshape_depth, 1)
        self.resblocks_3d = nn.Sequential()
        for index in range(num_resblocks):
            self.resblocks_3d.add_module(f"3dr{index}", ResBlock3d(reshape_channel))
        flat = block_expansion * 2**num_down_blocks
        self.third = LeakyBlock(reshape_channel * reshape_depth, flat)
        self.fourth = nn.Conv2d(flat, flat, 1)
        self.reshape_depth = reshape_depth
        self.make_decoder(block_expansion, num_down_blocks, num_resblocks, image_channel)

    def make_decoder(self, block_expansion: int, num_down_blocks: int, num_resblocks: int, image_channel: int) -> None:
        """The modules of `decode`, with fresh weights; called by the constructor."""
        widths = [block_expansion * 2**level for level in range(num_down_blocks, -1, -1)]
        self.resblocks_2d = nn.Sequential()
        for index in range(num_resblocks):
            self.resblocks_2d.add_module(f"2dr{index}", ResBlock(widths[0]))
        self.up_blocks = nn.ModuleList(UpBlock(coarse, fine) for coarse, fine in pairwise(widths))
        self.final = nn.Conv2d(widths[-1], image_channel, 7, padding=3)

    def encode(self, image: Tensor) -> tuple[Tensor, ...]:
        """Images (B, C, H, W) → the volume of their appearance (B, reshape_channel, D, H / 2^n, W / 2^n)."""
        check_halves("the generator", len(self.down_blocks), image)
        out = self.first(image)
        for block in self.down_blocks:
            out = block(out)
        return (self.resblocks_3d(self.second(out).unflatten(1, (-1, self.reshape_depth))),)

    def flatten(self, volume: Tensor, visible: Tensor | None) -> Tensor:
        """A warped volume, dimmed where it is not `visible` (B, 1, h, w) → what is decoded, (B, C, h, w)."""
        out = self.fourth(self.third(volume.flatten(1, 2)))
        return out if visible is None else out * visible

    def decode(self, feature: Tensor) -> Tensor:
        """(B, C, h, w) → the image (B, 3, H, W) in [0, 1]."""
        out = self.resblocks_2d(feature)
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
            kp_driving, kp_source: keypoints of both images, (B, K, 3).
            encoded: of that image, what `encode` made.
        """
        kp_driving, kp_source = Keypoints.of(kp_driving), Keypoints.of(kp_source)
        volume = (encoded or self.encode(source_image))[0]
        motion = self.dense_motion_network(feature=volume, kp_driving=kp_driving, kp_source=kp_source)
        feature = self.flatten(warp_volume(volume, motion.deformation), motion.occlusion_map)
        return HostOutput(
            prediction=self.decode(feature),
            deformed=None,
            deformation=motion.deformation,
            occlusion_map=motion.occlusion_map,
            mask=motion.mask,
            sparse_deformed=None,
            kp_source=kp_source,
            kp_driving=kp_driving,
        )


class SpadeDecoder(nn.Module):
    """The flat feature doubled twice, and its own guide at every size (Park et al., CVPR 2019).

    Its widths are fixed: 512 channels, then 256 and 64.
    """

    def __init__(self, image_channel: int = 3) -> None:
        super().__init__()
        guide = WIDE // 2
        self.fc = nn.Conv2d(guide, WIDE, 3, padding=1)
        for index in range(6):
            self.add_module(f"G_middle_{index}", SpadeBlock(WIDE, WIDE, guide))
        self.up_0 = SpadeBlock(WIDE, guide, guide)
        self.up_1 = SpadeBlock(guide, FINEST, guide)
        self.conv_img = nn.Conv2d(FINEST, image_channel, 3, padding=1)

    def forward(self, feature: Tensor) -> Tensor:
        """(B, 256, h, w) → the image (B, C, 4h, 4w) in [0, 1]."""
        out = self.fc(feature)
        for index in range(6):
            out = self.get_submodule(f"G_middle_{index}")(out, feature)
        for block in (self.up_0, self.up_1):
            out = block(F.interpolate(out, scale_factor=2, mode="nearest"), feature)
        return torch.sigmoid(self.conv_img(F.leaky_relu(out, 0.2)))


class SpadeGenerator(Generator):
    """The variant with a `SpadeDecoder`; the arguments are those of `Generator`.

    Raises:
        ValueError: block_expansion and num_down_blocks do not make the decoder's 256 channels and four-fold size.
    """

    first_kernel = 3

    def make_decoder(self, block_expansion: int, num_down_blocks: int, num_resblocks: int, image_channel: int) -> None:
        """The modules of `decode`, with fresh weights; called by the constructor."""
        if (block_expansion, num_down_blocks) != (WIDE // 8, 2):
            raise ValueError(
                f"generator_params: expected block_expansion {WIDE // 8} and num_down_blocks 2 with generator spade, "
                f"whose decoder takes {WIDE // 2} channels, got {block_expansion} and {num_down_blocks}"
            )
        self.decoder = SpadeDecoder(image_channel)

    def decode(self, feature: Tensor) -> Tensor:
        """(B, 256, h, w) → the image (B, 3, 4h, 4w) in [0, 1]."""
        return self.decoder(feature)


def _check_volume(feature_channel: int, channels: int, depth: int, dense_motion_params: Mapping[str, Any]) -> None:
    if feature_channel != channels:
        raise ValueError(
            f"common_params.feature_channel: expected generator_params.reshape_channel, {channels}, "
            f"got {feature_channel}"
        )
    if dense_motion_params.get("reshape_depth") != depth:
        raise ValueError(
            f"generator_params.dense_motion_params.reshape_depth: expected generator_params.reshape_depth {depth}, "
            f"got {dense_motion_params.get('reshape_depth')}"
        )
