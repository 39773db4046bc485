"""MRAA's region predictor (Siarohin et al., 2021, §3.2): heat maps, and the affine frame of each by its covariance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memcomp.adapters.outputs import Keypoints
from memcomp.adapters.shared.blocks import AntiAliasDown, Hourglass, axis, joint_conv, matmul_2x2

LEAST = 1e-10  # of a variance, in the units of [-1, 1]²: a region of one line of pixels still has a frame


@dataclass(frozen=True)
class Regions(Keypoints):
    """Regions of an image: where each lies, how it is turned and stretched, how far it spreads.

    Attributes:
        value: (B, K, 2), upstream's ``shift``: the region's mean.
        jacobian: (B, K, 2, 2), upstream's ``affine``: its frame; None if motions are shifts alone.
        covar: (B, K, 2, 2), its covariance; None without a frame.
    """

    covar: Tensor | None = None

    @classmethod
    def of(cls, keypoints: Keypoints | Mapping[str, Tensor]) -> Regions:
        """Make `Regions` of `Keypoints`, or of a dict with upstream's names; a covariance that is lacking is A Aᵀ."""
        if isinstance(keypoints, Regions):
            return keypoints
        if isinstance(keypoints, Keypoints):
            return cls(keypoints.value, keypoints.jacobian, spread(keypoints.jacobian))
        affine = keypoints.get("affine")
        return cls(keypoints["shift"], affine, keypoints.get("covar", spread(affine)))

    @property
    def shift(self) -> Tensor:
        """Upstream's name of `value`."""
        return self.value

    @property
    def affine(self) -> Tensor | None:
        """Upstream's name of `jacobian`."""
        return self.jacobian


def spread(affine: Tensor | None) -> Tensor | None:
    """Covariance A Aᵀ of a unit circle in frames A (..., 2, 2)."""
    return None if affine is None else matmul_2x2(affine, affine.transpose(-1, -2))


def principal_frame(covar: Tensor) -> Tensor:
    """Frames U √S of covariances (..., 2, 2) with U S Uᵀ = C, the larger axis first, in closed form.

    U is [[a, b], [b, -a]], of determinant -1, with the signs that LAPACK's decomposition gives: a < 0, unless
    C₀₀² + C₀₁² < det C and C₀₁ > 0. Variances below `LEAST` count as that; where they differ by no more than it, the
    region is a circle, whose axes are those of the picture and have no gradient.
    """
    xx, xy, yy = covar[..., 0, 0], covar[..., 0, 1], covar[..., 1, 1]
    half, determinant = (xx - yy) / 2, xx * yy - xy * xy
    circle = torch.maximum(half.abs(), xy.abs()) <= LEAST  # smaller squares vanish, and leave a gradient of 0 / 0
    across = torch.where(circle, torch.ones_like(half), half)
    angle = torch.atan2(xy, across) / 2  # of the larger axis, in (-π/2, π/2]
    apart = torch.where(circle, torch.zeros_like(half), torch.hypot(across, xy))
    larger = ((xx + yy) / 2 + apart).clamp(min=LEAST)
    smaller = (determinant / larger).clamp(min=LEAST)
    sign = torch.where((xx.square() + xy.square() < determinant) & (xy > 0), 1.0, -1.0).to(covar.dtype)
    a, b, wide, narrow = sign * torch.cos(angle), sign * torch.sin(angle), larger.sqrt(), smaller.sqrt()
    return torch.stack([a * wide, b * narrow, b * wide, -a * narrow], dim=-1).unflatten(-1, (2, 2))


class RegionPredictor(nn.Module):
    """Regions as softmaxed heat maps, their frames by principal component analysis or by regression.

    Args:
        num_regions: number K of regions.
        num_channels: channels of the image.
        block_expansion, max_features, num_blocks: of the hourglass.
        temperature: of the softmax over places; lower is more peaked.
        estimate_affine: without `pca_based`, predict frames by one map of four numbers for all regions.
        scale_factor: the image is reduced by it first.
        pca_based: frames by the covariance of the heat maps.
        fast_svd: upstream's choice between two libraries; no effect here, where the decomposition is a formula.
        pad: padding of the 7×7 convolutions that make the maps.

    Attributes:
        framed: whether regions have frames.
    """

    def __init__(
        self,
        num_regions: int,
        num_channels: int,
        block_expansion: int,
        max_features: int,
        num_blocks: int,
        temperature: float,
        estimate_affine: bool = False,
        scale_factor: float = 1,
        pca_based: bool = False,
        fast_svd: bool = False,
        pad: int = 3,
    ) -> None:
        super().__init__()
        self.predictor = Hourglass(block_expansion, num_channels, num_blocks, max_features)
        self.regions = nn.Conv2d(self.predictor.out_filters, num_regions, 7, padding=pad)
        self.jacobian: nn.Conv2d | None = None
        if estimate_affine and not pca_based:
            self.jacobian = nn.Conv2d(self.predictor.out_filters, 4, 7, padding=pad)
            nn.init.zeros_(self.jacobian.weight)
            assert self.jacobian.bias is not None
            with torch.no_grad():
                self.jacobian.bias.copy_(torch.eye(2).flatten())
        if scale_factor != 1:
            self.down = AntiAliasDown(num_channels, scale_factor)
        self.scale_factor = scale_factor
        self.temperature = temperature
        self.pca_based = pca_based
        self.framed = pca_based or estimate_affine

    def maps(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images (B, C, H, W) → heat maps (B, K, h, w) that sum to 1, and the regressed frames' map (B, 4, h, w)."""
        if self.scale_factor != 1:
            image = self.down(image)
        feature = self.predictor(image)
        convs = [self.regions] if self.jacobian is None else [self.regions, self.jacobian]
        logits, *further = joint_conv(feature, *convs)
        logits = logits.to(self.regions.weight.dtype)  # autocast's half precision is too coarse for coordinates
        heatmap = F.softmax(logits.flatten(2) / self.temperature, dim=2).unflatten(2, logits.shape[2:])
        return heatmap, further[0] if further else None

    def forward(self, image: Tensor) -> Regions:
        """Images (B, C, H, W) → K regions of each."""
        heatmap, frames = self.maps(image)
        height, width = heatmap.shape[2:]
        x, y = axis(width, heatmap), axis(height, heatmap)
        # products and sums rather than matrix products, which autocast would round
        along_x, along_y = heatmap.sum(2), heatmap.sum(3)  # (B, K, w), (B, K, h)
        mean_x, mean_y = (along_x * x).sum(-1, keepdim=True), (along_y * y).sum(-1, keepdim=True)
        value = torch.cat([mean_x, mean_y], dim=-1)  # (B, K, 2)
        if frames is not None:
            affine = (heatmap.unsqueeze(2) * frames.unsqueeze(1)).sum((3, 4)).unflatten(-1, (2, 2))
            return Regions(value, affine, spread(affine))
        if not self.pca_based:
            return Regions(value)
        from_x, from_y = x - mean_x, y - mean_y  # (B, K, w), (B, K, h)
        xx, yy = (along_x * from_x.square()).sum(-1), (along_y * from_y.square()).sum(-1)
        xy = ((heatmap * from_x.unsqueeze(2)).sum(3) * from_y).sum(-1)
        covar = torch.stack([xx, xy, xy, yy], dim=-1).unflatten(-1, (2, 2))  # (B, K, 2, 2)
        return Regions(value, principal_frame(covar), covar)
