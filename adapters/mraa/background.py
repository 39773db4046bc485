"""MRAA's background predictor (Siarohin et al., 2021, §3.3): the camera's motion between two images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memcomp.adapters.shared.blocks import Encoder, coordinate_grid, unrounded

NUMBERS = {"zero": 0, "shift": 2, "affine": 6, "perspective": 8}  # bg_type → numbers that are predicted


class BackgroundPredictor(nn.Module):
    """The background's motion as one matrix, the identity at the start.

    Args:
        num_channels: channels of an image.
        block_expansion, max_features: block i has min(max_features, block_expansion · 2^(i + 1)) channels.
        num_blocks: of the encoder, which sees both images at full resolution.
        bg_type: "zero" (it stands still; no weights), "shift", "affine" or "perspective".

    Raises:
        ValueError: another `bg_type`.
    """

    def __init__(
        self, num_channels: int, block_expansion: int, max_features: int, num_blocks: int, bg_type: str = "affine"
    ) -> None:
        super().__init__()
        if bg_type not in NUMBERS:
            known = ", ".join(NUMBERS)
            raise ValueError(f"bg_predictor_params.bg_type: expected one of {known}, got {bg_type!r}")
        self.bg_type = bg_type
        if bg_type == "zero":
            return
        widths = [min(max_features, block_expansion * 2**level) for level in range(1, num_blocks + 1)]
        self.encoder = Encoder([2 * num_channels, *widths])
        self.fc = nn.Linear(widths[-1], NUMBERS[bg_type])
        nn.init.zeros_(self.fc.weight)
        still = torch.zeros(2) if bg_type == "shift" else torch.eye(3).flatten()[: NUMBERS[bg_type]]
        with torch.no_grad():
            self.fc.bias.copy_(still)

    def forward(self, source_image: Tensor, driving_image: Tensor) -> Tensor:
        """Images (B, C, H, W) → (B, 3, 3), which maps places (x, y, 1) in the driving image to the source's."""
        if self.bg_type == "zero":
            still = torch.eye(3, dtype=source_image.dtype, device=source_image.device)
            return still.expand(len(source_image), 3, 3)
        feature = self.encoder(torch.cat([source_image, driving_image], dim=1))[-1]
        numbers = unrounded(self.fc, feature.mean((2, 3), dtype=self.fc.weight.dtype))
        if self.bg_type == "shift":
            left = torch.eye(3, 2, dtype=numbers.dtype, device=numbers.device).expand(len(numbers), 3, 2)
            return torch.cat([left, F.pad(numbers, (0, 1), value=1.0).unsqueeze(2)], dim=2)
        whole = numbers if self.bg_type == "perspective" else F.pad(numbers, (0, 2))
        return F.pad(whole, (0, 1), value=1.0).unflatten(1, (3, 3))


def background_motion(bg_params: Tensor, height: int, width: int) -> Tensor:
    """Where the background looks in the source: matrices (B, 3, 3) → (B, height, width, 2)."""
    places = coordinate_grid(height, width, bg_params).unsqueeze(-2)  # (h, w, 1, 2)
    matrix = bg_params[:, None, None]  # (B, 1, 1, 3, 3)
    moved = (matrix[..., :2] * places).sum(-1) + matrix[..., 2]  # (B, h, w, 3)
    return moved[..., :2] / moved[..., 2:]
