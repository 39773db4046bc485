"""ResNet of 18 or 50 layers (He et al., 2016, Table 1) with torchvision's state-dict keys."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from memcomp.adapters.shared.blocks import unrounded

BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}  # residual blocks of the four groups


class BasicBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut; the first one has the stride."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, width, ⌈H / stride⌉, ⌈W / stride⌉)."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(out)) + self.downsample(x), inplace=True)


class Bottleneck(nn.Module):
    """1×1, 3×3 (with the stride, as torchvision has it) and 1×1 convolutions beside a shortcut."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = _shortcut(channels, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, 4 width, ⌈H / stride⌉, ⌈W / stride⌉)."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        return F.relu(self.bn3(self.conv3(out)) + self.downsample(x), inplace=True)


def _shortcut(channels: int, out_channels: int, stride: int) -> nn.Module:
    if stride == 1 and channels == out_channels:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))


class ResNet(nn.Module):
    """A ResNet.

    Args:
        num_layers: 18 (`BasicBlock`) or 50 (`Bottleneck`).
        in_channels: channels of the image.
        num_classes: outputs of the last layer `fc`.

    Attributes:
        channels: of the five features, fine to coarse.

    Raises:
        ValueError: another number of layers.
    """

    def __init__(self, num_layers: int = 18, in_channels: int = 3, num_classes: int = 1000) -> None:
        super().__init__()
        if num_layers not in BLOCKS:
            known = ", ".join(map(str, BLOCKS))
            raise ValueError(f"a ResNet of {num_layers!r} layers is not known here; known: {known}")
        block = BasicBlock if num_layers == 18 else Bottleneck
        self.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.channels = [64]
        for index, count in enumerate(BLOCKS[num_layers]):
            width = 64 * 2**index
            inputs = [self.channels[-1]] + [block.expansion * width] * (count - 1)
            strides = [1 if index == 0 else 2] + [1] * (count - 1)
            group = [block(channels, width, stride) for channels, stride in zip(inputs, strides, strict=True)]
            self.add_module(f"layer{index + 1}", nn.Sequential(*group))
            self.channels.append(block.expansion * width)
        self.fc = nn.Linear(self.channels[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, x: Tensor) -> list[Tensor]:
        """(B, C, H, W) → the stem's output at H / 2 and the four groups' at H / 4, H / 8, H / 16, H / 32."""
        stem = F.relu(self.bn1(self.conv1(x)), inplace=True)
        features = [stem, self.get_submodule("layer1")(F.max_pool2d(stem, 3, stride=2, padding=1))]
        for index in (2, 3, 4):
            features.append(self.get_submodule(f"layer{index}")(features[-1]))
        return features

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, num_classes): `fc` of the mean over the coarsest feature, in its own precision."""
        return unrounded(self.fc, self.features(x)[-1].mean((2, 3), dtype=self.fc.weight.dtype))
