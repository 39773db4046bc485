"""A head-pose teacher for real faces: Hopenet (Ruiz et al., 2018), its weights from a file."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memcomp.adapters.facevid2vid.pose import in_degrees
from memcomp.adapters.shared.resnet import ResNet
from memcomp.adapters.upstream.files import fill, read_state
from memcomp.experiments.errors import UserError

SIDE = 224  # pixels that the network sees
BINS = 66
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Hopenet(nn.Module):
    """A ResNet of 50 layers with a classifier for each angle; keys as published, without its `fc_finetune`."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        body = ResNet(50)
        for name, module in body.named_children():
            if name != "fc":
                self.add_module(name, module)
        for angle in ("yaw", "pitch", "roll"):
            self.add_module(f"fc_{angle}", nn.Linear(body.channels[-1], BINS))
        for name, values in (("mean", MEAN), ("std", STD)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def forward(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [0, 1] → yaw, pitch and roll in degrees, (B, 3)."""
        x = F.interpolate(pictures, size=(SIDE, SIDE), mode="bilinear")
        x = F.relu(self.get_submodule("bn1")(self.get_submodule("conv1")((x - self.mean) / self.std)))
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        for index in range(1, 5):
            x = self.get_submodule(f"layer{index}")(x)
        code = x.mean((2, 3))
        heads = [self.get_submodule(f"fc_{angle}") for angle in ("yaw", "pitch", "roll")]
        return in_degrees(torch.stack([head(code) for head in heads], dim=1).float())

    def train(self, mode: bool = True) -> Hopenet:
        """Stay in eval mode whatever `mode` says: a teacher does not learn."""
        return super().train(False)


def load_teacher(file: str | Path) -> Hopenet:
    """The head-pose network whose weights are in a file of Hopenet's, in eval mode, without gradients.

    Raises:
        UserError: there is no such file, or it does not fit the network; the recipe's key is named.
    """
    path, network = Path(file), Hopenet()
    if not path.is_file():
        raise UserError(
            f"loss.pose_teacher: {path}: expected the weights of a head-pose network in Hopenet's format (Ruiz et al., "
            "2018; hopenet_robust_alpha1.pkl of its authors), found no such file"
        )
    try:
        state = read_state(path)
    except (ValueError, OSError) as error:
        raise UserError(f"loss.pose_teacher: {error}") from None
    try:
        fill(network, state)
    except ValueError as error:
        raise UserError(f"loss.pose_teacher: {path}: {error}") from None
    return network.requires_grad_(False).eval()
