"""Identity codes by OpenFace's nn4.small2 (Amos et al. 2016), with which AED was published; weights from a file."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from skimage.transform import resize
from torch import Tensor, nn
from torch.nn import functional as F

from memcomp.experiments.backends.base import OneByOne
from memcomp.experiments.backends.files import load_weights
from memcomp.experiments.metrics.labels import Label
from memcomp.experiments.video import Frame

SIDE = 96  # pixels that the network sees


class OpenFace(OneByOne):
    """Unit 128-d codes of whole pictures, resized to 96×96 without looking for the face, as the released code does.

    Args:
        file: `openface.pth` of the PyTorch port.

    Raises:
        Unavailable: there is no such file.
        UserError: it does not fit the network.
    """

    def __init__(self, file: str | Path) -> None:
        self._network = OpenFaceNetwork()
        self.about = f"OpenFace nn4.small2, 128-d, whole picture ({load_weights(self._network, file)})"
        self._network.eval()

    @torch.inference_mode()
    def read(self, picture: Frame) -> Label:
        """Code a picture, its channels in the order blue, green, red; there is always a code."""
        small = resize(picture[..., ::-1], (SIDE, SIDE))  # floats in [0, 1], smoothed before it is made smaller
        image = torch.from_numpy(np.ascontiguousarray(small.transpose(2, 0, 1))).float()
        return self._network(image[None])[0].double().numpy()


class Inception(nn.Module):
    """The Inception block: branches side by side, concatenated.

    The branches are 1×1 → k×k each, pooling (→ 1×1 if it has a width) and perhaps a 1×1 alone.

    Args:
        inputs: channels in.
        convolutions: (k, reduced width, width) of each k×k branch.
        pool: what the pooling branch does.
        pooled: its width after a 1×1 convolution, None = no convolution.
        alone: width of the 1×1 branch, None = no such branch.
        stride: of the k×k branches.
    """

    def __init__(
        self,
        inputs: int,
        convolutions: Sequence[tuple[int, int, int]],
        pool: nn.Module,
        pooled: int | None,
        alone: int | None,
        stride: int = 1,
    ) -> None:
        super().__init__()
        branches = [
            _named(
                *_unit(inputs, reduced, 1),
                *_unit(reduced, width, kernel, stride=stride, padding=kernel // 2),
            )
            for kernel, reduced, width in convolutions
        ]
        branches.append(_named(pool, *(_unit(inputs, pooled, 1) if pooled else ())))
        if alone:
            branches.append(_named(*_unit(inputs, alone, 1)))
        self.seq_list = nn.ModuleList(branches)

    def forward(self, feature: Tensor) -> Tensor:
        """(B, C, H, W) → (B, sum of the widths, H', W'); branches that came out smaller are padded with zeros."""
        results = [branch(feature) for branch in self.seq_list]
        height, width = (max(result.shape[axis] for result in results) for axis in (2, 3))
        padded = []
        for result in results:
            down, right = height - result.shape[2], width - result.shape[3]
            padded.append(F.pad(result, (right // 2, right - right // 2, down // 2, down - down // 2)))
        return torch.cat(padded, 1)


class OpenFaceNetwork(nn.Module):
    """The network nn4.small2 with the state-dict keys of its PyTorch port."""

    def __init__(self) -> None:
        super().__init__()
        self.layer1 = nn.Conv2d(3, 64, 7, stride=2, padding=3)
        self.layer2 = nn.BatchNorm2d(64)
        self.layer6 = nn.Conv2d(64, 64, 1)
        self.layer7 = nn.BatchNorm2d(64)
        self.layer9 = nn.Conv2d(64, 192, 3, padding=1)
        self.layer10 = nn.BatchNorm2d(192)
        largest = nn.MaxPool2d(3, stride=2)
        self.layer14 = Inception(192, [(3, 96, 128), (5, 16, 32)], largest, 32, 64)
        self.layer15 = Inception(256, [(3, 96, 128), (5, 32, 64)], nn.LPPool2d(2, 3, stride=3), 64, 64)
        self.layer16 = Inception(320, [(3, 128, 256), (5, 32, 64)], largest, None, None, stride=2)
        self.layer17 = Inception(640, [(3, 96, 192), (5, 32, 64)], nn.LPPool2d(2, 3, stride=3), 128, 256)
        self.layer18 = Inception(640, [(3, 160, 256), (5, 64, 128)], largest, None, None, stride=2)
        self.layer19 = Inception(1024, [(3, 96, 384)], nn.LPPool2d(2, 3, stride=3), 96, 256)
        self.layer21 = Inception(736, [(3, 96, 384)], largest, 96, 256)
        self.layer25 = nn.Linear(736, 128)
        self.normalise = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, 96, 96) BGR in [0, 1] → (B, 128) of unit length."""
        feature = F.max_pool2d(F.relu(self.layer2(self.layer1(image))), 3, 2, 1)  # (B, 64, 24, 24)
        feature = F.relu(self.layer7(self.layer6(self.normalise(feature))))
        feature = F.relu(self.layer10(self.layer9(feature)))  # (B, 192, 24, 24)
        feature = F.max_pool2d(self.normalise(feature), 3, 2, 1)  # (B, 192, 12, 12)
        for block in (self.layer14, self.layer15, self.layer16, self.layer17, self.layer18, self.layer19, self.layer21):
            feature = block(feature)  # 256, 320 at 12×12; 640, 640 at 6×6; 1024, 736, 736 at 3×3
        code = self.layer25(F.avg_pool2d(feature, 3).flatten(1))
        return code / (code.square().sum(1, keepdim=True) + 1e-6).sqrt()


def _unit(inputs: int, outputs: int, kernel: int, stride: int = 1, padding: int = 0) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, kernel, stride, padding), nn.BatchNorm2d(outputs), nn.ReLU()


def _named(*modules: nn.Module) -> nn.Sequential:
    """Name modules as the port does, by their number and kind."""
    kinds = {nn.Conv2d: "conv", nn.BatchNorm2d: "bn", nn.ReLU: "relu"}
    names = [f"{number}_{kinds.get(type(module), 'pool')}" for number, module in enumerate(modules, 1)]
    return nn.Sequential(OrderedDict(zip(names, modules, strict=True)))
