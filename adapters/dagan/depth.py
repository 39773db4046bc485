"""DaGAN's face-depth network: monodepth2's encoder and decoder (Godard et al., ICCV 2019), frozen in this host."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memcomp.adapters.shared.resnet import ResNet
from memcomp.adapters.upstream.checkpoint import read_checkpoint

WIDTHS = (16, 32, 64, 128, 256)  # of the decoder at 1, 1/2, 1/4, 1/8 and 1/16 of the picture's size
SCALES = 4  # disparities are predicted at the finest four
SECTIONS = ("depth_encoder", "depth_decoder")  # of a checkpoint
NOT_WEIGHTS = {  # entries which monodepth2 stores among the encoder's weights
    "height": "size of the pictures it was trained with",
    "width": "size of the pictures it was trained with",
    "use_stereo": "setting of its training",
}


class DepthEncoder(nn.Module):
    """A whole ResNet, classifier included, of which the features are used.

    Args:
        num_layers: 18 or 50.
    """

    def __init__(self, num_layers: int) -> None:
        super().__init__()
        self.encoder = ResNet(num_layers)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) in [0, 1] → five features at H / 2 … H / 32.

        Raises:
            ValueError: height or width is less than 64 or not a multiple of 32.
        """
        height, width = image.shape[2:]
        if height % 32 or width % 32 or min(height, width) < 64:
            raise ValueError(
                f"the depth network needs height and width in multiples of 32, at least 64, got {height}×{width}"
            )
        return self.encoder.features((image - 0.45) / 0.225)


class ReflectConv(nn.Module):
    """3×3 convolution, reflected at the border."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels, 3, padding=1, padding_mode="reflect")

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C', H, W)."""
        return self.conv(x)


class ConvBlock(nn.Module):
    """`ReflectConv`, then an exponential linear unit."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = ReflectConv(channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C', H, W)."""
        return F.elu(self.conv(x), inplace=True)


class DepthDecoder(nn.Module):
    """Features, coarse to fine, joined with the encoder's, into disparities.

    Args:
        channels: of the encoder's five features.
    """

    def __init__(self, channels: list[int]) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        skips = [0, *channels[:-1]]
        inputs = [*WIDTHS[1:], channels[-1]]
        for level in reversed(range(len(WIDTHS))):
            blocks += [ConvBlock(inputs[level], WIDTHS[level]), ConvBlock(WIDTHS[level] + skips[level], WIDTHS[level])]
        self.decoder = nn.ModuleList([*blocks, *(ReflectConv(WIDTHS[scale], 1) for scale in range(SCALES))])

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """The encoder's features → disparities (B, 1, H / 2^i, W / 2^i) in (0, 1), i = 0 … 3; near is large."""
        disparities: list[Tensor] = []
        out = features[-1]
        heads = self.decoder[-SCALES:]
        for step, level in enumerate(reversed(range(len(WIDTHS)))):
            out = F.interpolate(self.decoder[2 * step](out), scale_factor=2, mode="nearest")
            if level > 0:
                out = torch.cat([out, features[level - 1]], dim=1)
            out = self.decoder[2 * step + 1](out)  # (B, WIDTHS[level], H / 2^level, W / 2^level)
            if level < SCALES:
                disparities.insert(0, torch.sigmoid(heads[level](out)))
        return disparities


def num_layers(encoder: Mapping[str, Tensor]) -> int:
    """Layers of the encoder with this state dict: only the blocks of 50 layers have a third convolution."""
    return 50 if any(key.endswith("layer1.0.conv3.weight") for key in encoder) else 18


def read_depth(place: str | Path) -> dict[str, dict[str, Tensor]]:
    """The sections ``depth_encoder`` and ``depth_decoder`` from a file or folder.

    Args:
        place: a folder with upstream's ``encoder.pth`` and ``depth.pth``, or one file with both: sections, or keys
            that start with ``depth_encoder.`` and ``depth_decoder.`` (others are ignored).

    Raises:
        ValueError: there is no such file or folder, it cannot be read or lacks one of the two.
    """
    place = Path(place)
    files = [place / "encoder.pth", place / "depth.pth"] if place.is_dir() else [place]
    if not place.exists():
        raise ValueError(
            f"model.depth: {str(place)!r} is neither zeros nor truth, nor a file or folder that exists, "
            'nor a mapping such as {"num_layers": 18}'
        )
    if absent := [file.name for file in files if not file.is_file()]:
        raise ValueError(f"model.depth: {place}: expected upstream's encoder.pth and depth.pth, no {absent[0]} there")
    try:
        sections = read_checkpoint(*files).sections
    except ValueError as error:
        raise ValueError(f"model.depth: {error}; expected one file of both networks, or upstream's folder") from None
    for name in SECTIONS:
        if not sections.get(name):
            raise ValueError(f"model.depth: {place} has no weights of {name}")
    return {name: sections[name] for name in SECTIONS}
