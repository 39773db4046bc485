"""A small generator made by hand, to hang memories on: the fixture `hand` gives what is defined here."""

import sys

import pytest
import torch
from torch import nn

from memcomp import CompensationConfig, KeypointTap, MemoryCompensation, Tap, inject

KEYPOINTS = 5
TAPS = (Tap("middle"), Tap("up.0", part="second_half"), Tap("up.1", where="output"))


class Motion(nn.Module):
    num_kp = KEYPOINTS

    def forward(self, image, kp_driving, kp_source):
        return (kp_driving["value"] - kp_source["value"]).mean((1, 2)).view(-1, 1, 1, 1)


class Generator(nn.Module):
    """Calls its motion network by keywords or by positions; has norms, skips and nested modules."""

    def __init__(self, by_position=False):
        super().__init__()
        self.by_position = by_position
        self.motion = Motion()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.middle = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.up = nn.ModuleList([nn.Conv2d(16, 6, 3, padding=1), nn.Sequential(nn.Conv2d(6, 4, 1), nn.ReLU())])
        self.final = nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, image, kp_driving, kp_source):
        if self.by_position:
            motion = self.motion(image, kp_driving, kp_source)
        else:
            motion = self.motion(image=image, kp_driving=kp_driving, kp_source=kp_source)
        feature = self.first(image) + motion
        feature = self.up[0](torch.cat([self.middle(feature), feature], dim=1))
        return self.final(self.up[1](feature)).sigmoid()


def memory(start="identity", channels=(8, 8, 4)):
    config = CompensationConfig.paper(memory_channels=8, memory_size=(4, 4), start=start)
    return MemoryCompensation(channels, KEYPOINTS, config)


def attached(start="identity", **kwargs):
    torch.manual_seed(0)
    generator = Generator(**kwargs)
    return generator, inject(generator, memory(start), TAPS, KeypointTap("motion"))


def inputs(seed=0, batch=2, requires_grad=False):
    draw = torch.Generator().manual_seed(seed)
    points = torch.rand(2, batch, KEYPOINTS, 2, generator=draw) * 2 - 1
    points.requires_grad_(requires_grad)
    return torch.rand(batch, 3, 12, 10, generator=draw), {"value": points[0]}, {"value": points[1]}


def hooks(module):
    return [hook for part in module.modules() for hook in (*part._forward_pre_hooks, *part._forward_hooks)]


def gates_opened(handle):
    """Move every memory parameter, so that an identity start no longer hides what the memory does."""
    with torch.no_grad():
        for parameter in handle.compensation.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)), alpha=0.5)


@pytest.fixture(scope="session")
def hand():
    return sys.modules[__name__]
