"""Distance of an ImageNet network's features that needs no download: 1 - cosine at every place, mean over layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from memcomp.experiments.metrics.ssim import BORDER, inner

Network = Callable[[Tensor], Sequence[Tensor]]


@torch.inference_mode()
def feature_distance(network: Network, prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> float:
    """Mean over layers and places of 1 - cosine of two pictures' features; each layer's map is resized to the picture.

    It is no published measure: LPIPS has weights that agree with people's judgement, this has none.

    Args:
        network: pictures (B, 3, H, W) in [0, 1] → features (B, C, h, w) of each layer.
        prediction: (3, H, W), range [0, 1].
        target: (3, H, W), range [0, 1].
        mask: (1, H, W) bool; only its places count, as far as SSIM counts them. None = all.

    Returns:
        0 for equal pictures, at most 2; lower is better.

    Raises:
        ValueError: shapes differ or are not (3, H, W), or a value is not finite.
    """
    if prediction.shape != target.shape or prediction.ndim != 3 or len(prediction) != 3:
        raise ValueError(f"expected two images (3, H, W), got {tuple(prediction.shape)} and {tuple(target.shape)}")
    pair = torch.stack([prediction, target]).float()
    if not bool(pair.isfinite().all()):
        raise ValueError("an image holds values that are not finite")
    size = tuple(pair.shape[-2:])
    maps = [1 - F.cosine_similarity(one[:1], one[1:], dim=1) for one in (each.cpu().double() for each in network(pair))]
    total = torch.stack([F.interpolate(one[None], size=size, mode="bilinear")[0, 0] for one in maps]).mean(0)
    where = None if mask is None else inner(mask)
    return float((total if where is None else total[BORDER:-BORDER, BORDER:-BORDER][where[0]]).mean())
