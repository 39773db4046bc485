"""Building blocks that the first-order family of hosts shares. Module names are upstream's, so state-dict keys are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memcomp.layers import InstanceNorm, laid_out

Norm = Callable[[int], nn.Module]  # channels → normalisation layer
PADDING = {"zeros": 0, "border": 1, "reflection": 2}  # the numbers that torch gives to `F.grid_sample`'s paddings


def instance_norm(channels: int) -> nn.Module:
    """Instance norm with affine parameters and no running statistics: the `Norm` of TPSM."""
    return InstanceNorm(channels, affine=True)


def axis(size: int, like: Tensor) -> Tensor:
    """`size` coordinates from -1 to 1, the centres of the first and the last pixel; dtype and device of `like`."""
    return 2 * torch.arange(size, dtype=like.dtype, device=like.device) / (size - 1) - 1


def coordinate_grid(height: int, width: int, like: Tensor) -> Tensor:
    """(height, width, 2): the (x, y) of every pixel in [-1, 1]."""
    y, x = torch.meshgrid(axis(height, like), axis(width, like), indexing="ij")
    return torch.stack([x, y], dim=-1)


def gaussians(points: Tensor, height: int, width: int, variance: float) -> Tensor:
    """Points (B, K, 2) in [-1, 1] as heat maps (B, K, height, width) with peak 1.

    The Gaussian is a product of one factor per axis, so it takes height + width exponentials, not height · width.
    """
    along_x = torch.exp((axis(width, points) - points[..., :1]).square() * (-0.5 / variance))  # (B, K, w)
    along_y = torch.exp((axis(height, points) - points[..., 1:]).square() * (-0.5 / variance))  # (B, K, h)
    return along_y.unsqueeze(-1) * along_x.unsqueeze(-2)


def warp(image: Tensor, grid: Tensor, *, align_corners: bool, padding_mode: str = "zeros") -> Tensor:
    """Sample image (B or 1, C, H, W) at grid (B, h, w, 2) → (B, C, h, w); computed in the grid's precision.

    The result has the image's memory format: torch's sampler gives contiguous tensors whatever it is given, and each
    layer after it would convert. The sampler is always torch's own, which takes any strides, of the image and of the
    gradient. `F.grid_sample` hands zero padding with `align_corners` to cuDNN's, with the strides as they are
    (channels_last, an expanded batch), and nothing promises that cuDNN takes these.
    """
    source = image.to(grid.dtype).expand(len(grid), -1, -1, -1)
    sampled = torch.grid_sampler_2d(source, grid, 0, PADDING[padding_mode], align_corners)  # 0: bilinear
    return laid_out(sampled.to(image.dtype), image)


def inverse_2x2(matrix: Tensor) -> Tensor:
    """Inverse of matrices (..., 2, 2) in closed form: cheaper than a factorisation and the same on every device."""
    a, b, c, d = matrix[..., 0, 0], matrix[..., 0, 1], matrix[..., 1, 0], matrix[..., 1, 1]
    adjugate = torch.stack([d, -b, -c, a], dim=-1).unflatten(-1, (2, 2))
    return adjugate / (a * d - b * c)[..., None, None]


def matmul_2x2(left: Tensor, right: Tensor) -> Tensor:
    """Product of matrices (..., 2, 2), in their own precision also under autocast (coordinates need it)."""
    return (left.unsqueeze(-1) * right.unsqueeze(-3)).sum(-2)


def check_halves(what: str, blocks: int, x: Tensor, *, of: str = "") -> None:
    """Raise ValueError unless height and width of (…, H, W), which are those `of` something, can be halved so often."""
    step = 2**blocks
    if x.shape[-2] % step or x.shape[-1] % step:
        got = f"got {x.shape[-2]}×{x.shape[-1]}" + f" ({of})" * bool(of)
        raise ValueError(f"{what} of {blocks} down blocks needs height and width in multiples of {step}, {got}")


def joint_conv(x: Tensor, *convs: nn.Conv2d) -> tuple[Tensor, ...]:
    """The outputs of several convolutions of the same kind on the same input, computed as one.

    CPU kernels pad the output channels to a full vector, so two convolutions with few of them cost up to twice as much.
    """
    bias = torch.cat([conv.bias for conv in convs if conv.bias is not None])
    out = F.conv2d(x, torch.cat([conv.weight for conv in convs]), bias, padding=convs[0].padding)
    return out.split([conv.out_channels for conv in convs], dim=1)


def unrounded(layers: nn.Module, x: Tensor) -> Tensor:
    """What layers make of x in the precision of their weights: autocast's half is too coarse for coordinates."""
    weight = next(layers.parameters())
    with torch.autocast(weight.device.type, enabled=False):
        return layers(x.to(weight.dtype))


def linear_layers(*widths: int) -> nn.Sequential:
    """Linear layers with batch norm and ReLU between them."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU()]
    return nn.Sequential(*layers[:-2])


class ResBlock(nn.Module):
    """Pre-activation residual block; keeps channels and size."""

    def __init__(self, channels: int, norm: Norm = nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm1 = norm(channels)
        self.norm2 = norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → the same shape."""
        out = self.conv1(F.relu(self.norm1(x), inplace=True))
        out = self.conv2(F.relu(self.norm2(out), inplace=True))
        return out + x


class SameBlock(nn.Module):
    """Convolution, norm, ReLU; keeps the size."""

    def __init__(self, channels: int, out_channels: int, kernel_size: int = 3, norm: Norm = nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels, kernel_size, padding=kernel_size // 2)
        self.norm = norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C', H, W)."""
        return F.relu(self.norm(self.conv(x)), inplace=True)


class DownBlock(SameBlock):
    """`SameBlock`, then the mean of each 2×2 square."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C', H / 2, W / 2)."""
        return F.avg_pool2d(super().forward(x), 2)


class UpBlock(SameBlock):
    """Each pixel doubled along both axes, then `SameBlock`.

    A 3×3 convolution of doubled pixels is a transposed 4×4 convolution with stride 2 of the pixels: 4 products per
    output instead of 9 and no doubled copy. On CPU it is used where the picture is large enough to repay the making of
    the 4×4 kernel (forward and backward 1.4 to 2.5 times faster); hooks on `conv` itself do not see it.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C', 2H, 2W)."""
        if x.device.type != "cpu" or x.shape[0] * x.shape[2] * x.shape[3] < 1024:
            return super().forward(F.interpolate(x, scale_factor=2, mode="nearest"))
        # along each axis the taps (a, b, c) meet doubled pixels: (c, b + c, a + b, a) after the flip of the transpose
        flipped = self.conv.weight.flip(2, 3).transpose(0, 1)
        rows = F.pad(flipped, (0, 0, 0, 1)) + F.pad(flipped, (0, 0, 1, 0))
        kernel = F.pad(rows, (0, 1)) + F.pad(rows, (1, 0))  # (C, C', 4, 4)
        out = F.conv_transpose2d(x, kernel, self.conv.bias, stride=2, padding=1)
        return F.relu(self.norm(out), inplace=True)


class Encoder(nn.Module):
    """The descending half of an `Hourglass`."""

    def __init__(self, widths: Sequence[int], norm: Norm = nn.BatchNorm2d) -> None:
        super().__init__()
        self.down_blocks = nn.ModuleList(DownBlock(before, after, norm=norm) for before, after in pairwise(widths))

    def forward(self, x: Tensor) -> list[Tensor]:
        """The input and the output of every block, from fine to coarse."""
        levels = [x]
        for block in self.down_blocks:
            levels.append(block(levels[-1]))
        return levels


class Decoder(nn.Module):
    """The ascending half of an `Hourglass`: each block's output is joined with the encoder's level of that size."""

    def __init__(self, widths: Sequence[int], out_channels: int, norm: Norm = nn.BatchNorm2d) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        outs = [out_channels, *widths[1:-1]]
        for level in range(len(widths) - 1, 0, -1):
            joined = 1 if level == len(widths) - 1 else 2
            blocks.append(UpBlock(joined * widths[level], outs[level - 1], norm=norm))
        self.up_blocks = nn.ModuleList(blocks)

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Levels of the encoder, fine to coarse → every joined level, coarse to fine, (B, out_channels + C, H, W)."""
        out, outs = levels[-1], []
        for block, skip in zip(self.up_blocks, reversed(levels[:-1]), strict=True):
            out = torch.cat([block(out), skip], dim=1)
            outs.append(out)
        return outs


class Hourglass(nn.Module):
    """U-Net without skip convolutions. Level i has min(max_features, block_expansion · 2^i) channels.

    Attributes:
        out_filters: channels of the output.
        level_filters: channels of the outputs of `levels`, coarse to fine; the last is `out_filters`.
    """

    def __init__(
        self,
        block_expansion: int,
        in_features: int,
        num_blocks: int = 3,
        max_features: int = 256,
        norm: Norm = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        widths = [in_features, *(min(max_features, block_expansion * 2**i) for i in range(1, num_blocks + 1))]
        self.encoder = Encoder(widths, norm)
        finest = min(max_features, block_expansion)
        self.decoder = Decoder(widths, finest, norm)
        self.out_filters = finest + in_features
        self.level_filters = [*(2 * width for width in widths[-2:0:-1]), self.out_filters]

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, out_filters, H, W); see `levels`."""
        return self.levels(x)[-1]

    def levels(self, x: Tensor) -> list[Tensor]:
        """(B, C, H, W) → what the decoder makes at every size, coarse to fine; the last is the output.

        Raises:
            ValueError: height or width is not a multiple of 2^num_blocks.
        """
        of = "size of the image times the network's scale_factor"
        check_halves("an hourglass", len(self.encoder.down_blocks), x, of=of)
        return self.decoder(self.encoder(x))


class AntiAliasDown(nn.Module):
    """Gaussian blur and subsampling by int(1 / scale), computed only at the pixels that are kept.

    The kernel `weight` is a buffer, part of upstream's state dict unless not `persistent`.

    Raises:
        ValueError: scale not in (0, 1].
    """

    weight: Tensor

    def __init__(self, channels: int, scale: float, *, persistent: bool = True) -> None:
        super().__init__()
        if not 0 < scale <= 1:
            raise ValueError(f"a scale factor must be in (0, 1], not {scale}")
        sigma = (1 / scale - 1) / 2
        radius = round(sigma * 4)
        self.stride = int(1 / scale)
        self.radius = radius
        offsets = torch.arange(2 * radius + 1, dtype=torch.float32) - radius
        profile = torch.exp(-(offsets**2) / (2 * sigma**2))
        kernel = profile[:, None] * profile[None, :]
        kernel = kernel / kernel.sum()
        self.register_buffer("weight", kernel.expand(channels, 1, -1, -1).clone(), persistent=persistent)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, ⌈H / stride⌉, ⌈W / stride⌉)."""
        return F.conv2d(x, self.weight.to(x.dtype), stride=self.stride, padding=self.radius, groups=x.shape[1])


class SpectralConv2d(nn.Module):
    """Convolution whose weight, as an out × rest matrix, is divided by its largest singular value.

    One step of power iteration per training forward estimates it (Miyato et al., 2018). The state dict has the entries
    of `torch.nn.utils.spectral_norm`, but no derived tensor stays on the module, so it can be copied and pickled.
    """

    weight_u: Tensor
    weight_v: Tensor

    def __init__(
        self, channels: int, out_channels: int, kernel_size: int, *, padding: int = 0, bias: bool = True
    ) -> None:
        super().__init__()
        conv = nn.Conv2d(channels, out_channels, kernel_size, bias=bias)
        self.bias = conv.bias
        self.padding = padding
        self.weight_orig = conv.weight
        flat = conv.weight.detach().flatten(1)
        self.register_buffer("weight_u", F.normalize(torch.randn(flat.shape[0]), dim=0))
        self.register_buffer("weight_v", F.normalize(torch.randn(flat.shape[1]), dim=0))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C', H + 2p - k + 1, W + 2p - k + 1)."""
        flat = self.weight_orig.flatten(1)
        if self.training:
            with torch.no_grad():
                self.weight_v.copy_(F.normalize(flat.T @ self.weight_u, dim=0, eps=1e-12))
                self.weight_u.copy_(F.normalize(flat @ self.weight_v, dim=0, eps=1e-12))
        # clones: the next training forward overwrites the buffers while this graph may still need them
        sigma = torch.dot(self.weight_u.clone(), flat @ self.weight_v.clone())
        return F.conv2d(x, self.weight_orig / sigma, self.bias, padding=self.padding)
