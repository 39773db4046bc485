"""Identity codes by the small ArcFace network (ResNet-18, grey 128×128) that GFPGAN uses; weights from a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from memcomp.experiments.backends.base import OneByOne
from memcomp.experiments.backends.files import load_weights
from memcomp.experiments.metrics.labels import Label
from memcomp.experiments.video import Frame

SIDE = 128  # pixels that the network sees
GREY = (0.2989, 0.5870, 0.1140)  # of red, green, blue


class ArcFace(OneByOne):
    """512-d codes of whole pictures, grey in [-1, 1] and resized to 128×128 without looking for the face.

    Args:
        file: `arcface_resnet18.pth`.

    Raises:
        Unavailable: there is no such file.
        UserError: it does not fit the network.
    """

    def __init__(self, file: str | Path) -> None:
        self._network = ArcFaceNetwork()
        self.about = f"ArcFace ResNet-18, 512-d, whole picture ({load_weights(self._network, file)})"
        self._network.eval()

    @torch.inference_mode()
    def read(self, picture: Frame) -> Label:
        """Code a picture; there is always a code."""
        image = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1).float() / 127.5 - 1
        grey = (image * torch.tensor(GREY).view(3, 1, 1)).sum(0)[None, None]
        small = interpolate(grey, (SIDE, SIDE), mode="bilinear", align_corners=False)
        return self._network(small)[0].double().numpy()


class Block(nn.Module):
    """Residual block: norm, 3×3, norm, PReLU, 3×3, norm; the same PReLU again behind the sum."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn0 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, inputs, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.prelu = nn.PReLU()
        self.conv2 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, feature: Tensor) -> Tensor:
        """(B, inputs, H, W) → (B, outputs, H / stride, W / stride)."""
        inner = self.prelu(self.bn1(self.conv1(self.bn0(feature))))
        inner = self.bn2(self.conv2(inner))
        return self.prelu(inner + (feature if self.downsample is None else self.downsample(feature)))


class ArcFaceNetwork(nn.Module):
    """Four stages of two blocks, with the published checkpoint's keys."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.prelu = nn.PReLU()
        self.maxpool = nn.MaxPool2d(2)
        self.layer1 = nn.Sequential(Block(64, 64, 1), Block(64, 64, 1))
        self.layer2 = nn.Sequential(Block(64, 128, 2), Block(128, 128, 1))
        self.layer3 = nn.Sequential(Block(128, 256, 2), Block(256, 256, 1))
        self.layer4 = nn.Sequential(Block(256, 512, 2), Block(512, 512, 1))
        self.bn4 = nn.BatchNorm2d(512)
        self.fc5 = nn.Linear(512 * 8 * 8, 512)
        self.bn5 = nn.BatchNorm1d(512)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 1, 128, 128) in [-1, 1] → (B, 512)."""
        feature = self.maxpool(self.prelu(self.bn1(self.conv1(image))))  # (B, 64, 64, 64)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            feature = stage(feature)  # … (B, 512, 8, 8)
        return self.bn5(self.fc5(self.bn4(feature).flatten(1)))
