"""LPIPS: distance of network features, weighted to agree with people's judgement (Zhang et al., CVPR 2018, v0.1)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

# module numbers of torchvision's `features` after which a feature is taken, and its channels
LAYERS: Mapping[str, Mapping[int, int]] = {
    "alex": {1: 64, 4: 192, 7: 384, 9: 256, 11: 256},
    "vgg": {3: 64, 8: 128, 15: 256, 22: 512, 29: 512},
}
MEAN, DEVIATION = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of ImageNet, for images in [-1, 1]


class LPIPS(nn.Module):
    """The network of one of the two published variants; `memcomp.experiments.backends.perceptual` loads it.

    Args:
        variant: "alex" or "vgg".
        features: torchvision's `features` of that network, ImageNet weights.
    """

    def __init__(self, variant: str, features: nn.Sequential) -> None:
        super().__init__()
        layers = LAYERS[variant]
        self.features = features[: max(layers) + 1]
        self._taps = tuple(layers)
        self.heads = nn.ParameterList([nn.Parameter(torch.zeros(width)) for width in layers.values()])
        self.eval().requires_grad_(False)

    @torch.inference_mode()
    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """(B, 3, H, W) twice, as the network is meant to see them in [-1, 1] → (B,) float64."""
        images = torch.cat([first, second])
        shift, scale = (images.new_tensor(values).view(1, 3, 1, 1) for values in (MEAN, DEVIATION))
        feature = (images - shift) / scale
        exact = torch.device("cpu") if images.device.type == "mps" else images.device  # MPS has no float64
        total = torch.zeros(len(first), dtype=torch.float64, device=exact)
        heads = iter(self.heads)
        for number, module in enumerate(self.features):
            feature = module(feature)
            if number in self._taps:
                unit = feature.to(exact).double()
                unit = unit / (unit.square().sum(1, keepdim=True).sqrt() + 1e-10)
                one, other = unit.chunk(2)
                weight = next(heads).to(exact).double().view(1, -1, 1, 1)
                total += ((one - other).square() * weight).sum(1).mean(dim=(1, 2))
        return total


def lpips(network: LPIPS, prediction: Tensor, target: Tensor, *, centred: bool) -> float:
    """Σ over five layers of the mean over places of Σ_c w_c (p̂_c - t̂_c)², features scaled to unit length.

    Args:
        network: of one variant.
        prediction: (3, H, W), range [0, 1].
        target: (3, H, W), range [0, 1].
        centred: give the network images in [-1, 1], as it is meant to be used; the released evaluation of the AlexNet
            variant gave it [0, 1].

    Returns:
        0 or more, seldom above 1, without unit; lower is better.

    Raises:
        ValueError: shapes differ or are not (3, H, W), or a value is not finite.
    """
    if prediction.shape != target.shape or prediction.ndim != 3 or len(prediction) != 3:
        raise ValueError(
            f"LPIPS compares two images (3, H, W), got {tuple(prediction.shape)} and {tuple(target.shape)}"
        )
    device = next(network.parameters()).device
    pair = torch.stack([prediction, target]).detach().to(device, torch.float32)
    if not bool(pair.isfinite().all()):
        raise ValueError("an image holds values that are not finite")
    if centred:
        pair = pair * 2 - 1
    return float(network(pair[:1], pair[1:]))
