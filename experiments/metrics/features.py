"""Distance of an ImageNet network's features that needs no download: 1 - cosine at every place, mean over layers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memcomp.experiments.metrics.ssim import BORDER, inner


@torch.inference_mode()
def feature_map(network: nn.Module, prediction: Tensor, target: Tensor) -> Tensor:
    """Mean over layers of 1 - cosine of two pictures' features at every place, each layer resized to the picture.

    Args:
        network: pictures (B, 3, H, W) in [0, 1] → features (B, C, h, w) of each layer.
        prediction: (3, H, W), range [0, 1].
        target: (3, H, W), range [0, 1].

    Returns:
        (H, W) float64 on the CPU, 0 for equal pictures, at most 2.

    Raises:
        ValueError: shapes differ or are not (3, H, W), or a value is not finite.
    """
    if prediction.shape != target.shape or prediction.ndim != 3 or len(prediction) != 3:
        raise ValueError(f"expected two images (3, H, W), got {tuple(prediction.shape)} and {tuple(target.shape)}")
    pair = torch.stack([prediction, target]).to(next(network.parameters()).device, torch.float32)
    if not bool(pair.isfinite().all()):
        raise ValueError("an image holds values that are not finite")
    size = tuple(pair.shape[-2:])
    maps = [1 - F.cosine_similarity(one[:1], one[1:], dim=1) for one in (each.cpu().double() for each in network(pair))]
    return torch.stack([F.interpolate(one[None], size=size, mode="bilinear")[0, 0] for one in maps]).mean(0)


def feature_distance(places: Tensor, mask: Tensor | None = None) -> float:
    """Mean of a `feature_map` over its places.

    It is no published measure: LPIPS has weights that agree with people's judgement, this has none.

    Args:
        places: (H, W).
        mask: (1, H, W) bool; only its places count, as far as SSIM counts them. None = all.

    Returns:
        0 for equal pictures, at most 2; lower is better.
    """
    where = inner(mask)
    return float((places if where is None else places[BORDER:-BORDER, BORDER:-BORDER][where[0]]).mean())
