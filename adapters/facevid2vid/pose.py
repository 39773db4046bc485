"""Head pose and expression (face-vid2vid, §3.1), and how they move canonical keypoints.

Angles are in degrees; what their signs mean is the teacher's choice (see `with_pose`), as nothing else tells it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memcomp.adapters.outputs import Keypoints

BIN, LEAST = 3.0, -99.0  # degrees that a bin of the head pose is wide, and that the first one stands for
HALF_TURN = 3.14  # 180 degrees in radians, as published
WIDTHS = (256, 512, 1024, 2048)  # of the four groups
ROWS = (3, 3, 5, 2)  # blocks that keep the size, in each group


class Bottleneck(nn.Module):
    """1×1, 3×3 (with the stride) and 1×1 convolutions, a quarter as wide inside, beside a shortcut."""

    def __init__(self, channels: int, stride: int = 1) -> None:
        super().__init__()
        inner = channels // 4
        self.conv1 = nn.Conv2d(channels, inner, 1)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1)
        self.conv3 = nn.Conv2d(inner, channels, 1)
        self.norm1 = nn.BatchNorm2d(inner)
        self.norm2 = nn.BatchNorm2d(inner)
        self.norm3 = nn.BatchNorm2d(channels)
        self.strided = stride != 1
        if self.strided:
            self.skip = nn.Conv2d(channels, channels, 1, stride)
            self.norm4 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, ⌈H / stride⌉, ⌈W / stride⌉)."""
        out = F.relu(self.norm1(self.conv1(x)), inplace=True)
        out = F.relu(self.norm2(self.conv2(out)), inplace=True)
        shortcut = self.norm4(self.skip(x)) if self.strided else x
        return F.relu(self.norm3(self.conv3(out)) + shortcut, inplace=True)


@dataclass(frozen=True)
class HeadPose:
    """How a head is held and moved.

    Attributes:
        degrees: (B, 3), yaw, pitch and roll.
        shift: (B, 3), x, y, z.
        expression: (B, K, 3), by how much each keypoint is off.
    """

    degrees: Tensor
    shift: Tensor
    expression: Tensor


class HeadPoseEstimator(nn.Module):
    """A residual network that reads head pose and expression off the whole picture.

    Args:
        num_kp: number K of keypoints.
        image_channel: channels of the image.
        block_expansion: channels of the first convolution.
        max_features: of no effect, as published.
        num_bins: classes of each angle, 3 degrees each.
        widths: channels of the four groups, which upstream does not let anyone choose.

    Raises:
        ValueError: not four widths, each a multiple of four.
    """

    def __init__(
        self,
        num_kp: int,
        image_channel: int,
        block_expansion: int,
        max_features: int = 2048,
        num_bins: int = 66,
        widths: Sequence[int] = WIDTHS,
    ) -> None:
        super().__init__()
        if len(widths) != len(WIDTHS) or any(width < 4 or width % 4 for width in widths):
            raise ValueError(f"he_estimator_params.widths: expected four multiples of 4, got {list(widths)}")
        inputs = (block_expansion, *widths[:-1])
        self.conv1 = nn.Conv2d(image_channel, block_expansion, 7, stride=2, padding=3)
        self.norm1 = nn.BatchNorm2d(block_expansion)
        for index, (channels, width, row) in enumerate(zip(inputs, widths, ROWS, strict=True)):
            self.add_module(f"conv{index + 2}", nn.Conv2d(channels, width, 1))
            self.add_module(f"norm{index + 2}", nn.BatchNorm2d(width))
            if index > 0:  # the first group keeps the size
                self.add_module(f"block{2 * index}", Bottleneck(width, stride=2))
            blocks = nn.Sequential()
            for count in range(row):
                blocks.add_module(f"b{2 * index + 1}_{count}", Bottleneck(width))
            self.add_module(f"block{2 * index + 1}", blocks)
        for angle in ("roll", "pitch", "yaw"):
            self.add_module(f"fc_{angle}", nn.Linear(widths[3], num_bins))
        self.fc_t = nn.Linear(widths[3], 3)
        self.fc_exp = nn.Linear(widths[3], 3 * num_kp)

    def stem(self, image: Tensor) -> Tensor:
        """Images (B, C, H, W) → (B, block_expansion, ⌈H / 4⌉, ⌈W / 4⌉)."""
        return F.max_pool2d(F.relu(self.norm1(self.conv1(image))), 3, stride=2, padding=1)

    def code(self, image: Tensor) -> Tensor:
        """Images (B, C, H, W) → what all heads read, (B, widths[3])."""
        out = self.stem(image)
        for index in range(len(ROWS)):
            conv, norm = self.get_submodule(f"conv{index + 2}"), self.get_submodule(f"norm{index + 2}")
            out = F.relu(norm(conv(out)), inplace=True)
            if index > 0:
                out = self.get_submodule(f"block{2 * index}")(out)
            out = self.get_submodule(f"block{2 * index + 1}")(out)
        return out.mean((2, 3))

    def logits(self, code: Tensor) -> Tensor:
        """A code (B, C) → logits of yaw, pitch and roll, (B, 3, num_bins).

        In published weights yaw is read by the layer that is called roll, and roll by the one called yaw.
        """
        heads = [self.get_submodule(f"fc_{name}") for name in ("roll", "pitch", "yaw")]
        return torch.stack([head(code) for head in heads], dim=1)

    def forward(self, image: Tensor) -> HeadPose:
        """Images (B, C, H, W) → head pose and expression of each."""
        code = self.code(image)
        kept = self.fc_t.weight.dtype  # half precision is too coarse for coordinates
        code = code.to(kept)
        with torch.autocast(code.device.type, enabled=False):
            degrees = in_degrees(self.logits(code))
            return HeadPose(degrees, self.fc_t(code), self.fc_exp(code).unflatten(1, (-1, 3)))


def in_degrees(logits: Tensor) -> Tensor:
    """Logits (…, bins) → the mean of the bins, in degrees."""
    bins = torch.arange(logits.shape[-1], dtype=logits.dtype, device=logits.device)
    return (F.softmax(logits, dim=-1) * bins).sum(-1) * BIN + LEAST


def rotation(degrees: Tensor) -> Tensor:
    """Yaw, pitch and roll (…, 3) → R_x(pitch) R_y(yaw) R_z(roll), (…, 3, 3)."""
    yaw, pitch, roll = (degrees / 180 * HALF_TURN).unbind(-1)
    (sy, sp, sr), (cy, cp, cr) = ([f(angle) for angle in (yaw, pitch, roll)] for f in (torch.sin, torch.cos))
    rows = (
        (cy * cr, -cy * sr, sy),
        (cp * sr + sp * sy * cr, cp * cr - sp * sy * sr, -sp * cy),
        (sp * sr - cp * sy * cr, sp * cr + cp * sy * sr, cp * cy),
    )
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


@dataclass(frozen=True)
class PosedKeypoints(Keypoints):
    """Keypoints of a picture, and what they were made of: value = R canonical + shift + expression.

    Attributes:
        canonical: (B, K, 3), the person's keypoints from the front and at rest.
        degrees, shift, expression: see `HeadPose`.
        canonical_jacobian: (B, K, 3, 3) or None.
    """

    canonical: Tensor | None = None
    degrees: Tensor | None = None
    shift: Tensor | None = None
    expression: Tensor | None = None
    canonical_jacobian: Tensor | None = None

    @classmethod
    def make(cls, canonical: Keypoints, pose: HeadPose) -> PosedKeypoints:
        """Canonical keypoints (B or 1, K, 3) in the poses of B pictures."""
        turn = rotation(pose.degrees)  # (B, 3, 3)
        # products and sums: autocast would round a matrix product
        turned = (turn.unsqueeze(1) * canonical.value.unsqueeze(-2)).sum(-1)
        value = turned + pose.shift.unsqueeze(1) + pose.expression
        jacobian = None
        if canonical.jacobian is not None:
            jacobian = (turn[:, None, :, :, None] * canonical.jacobian.unsqueeze(-3)).sum(-2)
        of_each = canonical.each(lambda x: x.expand(len(value), *x.shape[1:]))
        return cls(value, jacobian, of_each.value, pose.degrees, pose.shift, pose.expression, of_each.jacobian)

    @property
    def rest(self) -> Keypoints:
        """The canonical keypoints."""
        assert self.canonical is not None
        return Keypoints(self.canonical, self.canonical_jacobian)

    @property
    def pose(self) -> HeadPose:
        """Head pose and expression."""
        assert self.degrees is not None and self.shift is not None and self.expression is not None
        return HeadPose(self.degrees, self.shift, self.expression)

    def on(self, source: Keypoints) -> PosedKeypoints:
        """The person of `source` in the same poses; its own keypoints are kept where `source` has no pose."""
        rest = source.rest if isinstance(source, PosedKeypoints) else self.rest
        return PosedKeypoints.make(rest, self.pose)

    def turned(self, degrees: Tensor) -> PosedKeypoints:
        """The head turned further by yaw, pitch and roll (3,) or (B, 3)."""
        pose = self.pose
        return PosedKeypoints.make(self.rest, replace(pose, degrees=pose.degrees + degrees.to(pose.degrees)))


def with_pose(picture: Tensor, degrees: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) with the yaw, pitch and roll (B, 3) that a teacher sees in them, (B, 6, H, W).

    Yaw and roll change their sign in the middle of their channels, so that a mirrored picture has a mirrored pose.
    """
    width = picture.shape[-1]
    side = torch.ones(width, dtype=picture.dtype, device=picture.device)
    side[(width + 1) // 2 :] = -1
    signs = torch.stack([side, torch.ones_like(side), side])  # (3, W)
    planes = degrees.to(picture)[..., None, None] * signs[:, None, :]  # (B, 3, 1, W)
    return torch.cat([picture, planes.expand(*picture.shape[:-3], 3, *picture.shape[-2:])], dim=-3)


def pose_of(picture: Tensor) -> Tensor | None:
    """The yaw, pitch and roll (B, 3) of pictures (B, 6, H, W) by `with_pose`; None if there are no such channels."""
    return picture[:, 3:6, 0, 0] if picture.shape[1] == 6 else None
