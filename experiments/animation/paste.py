"""Putting a generated face back into the picture that it was cut out of, through a feathered mask."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from memcomp.experiments.animation.square import Square
from memcomp.experiments.video import Frame

FEATHER = 0.2  # of the square's side, over which the mask falls from 1 to 0
ROUND = 4  # power of the norm that gives the mask rounded corners; 2 would be a circle


class Paste:
    """Lays pictures over a square of a picture.

    Args:
        frame: the whole picture, (H, W, 3) uint8.
        square: the place.
        itself: what the host makes of the square without motion, (3, size, size) in [0, 1]; the colour that it then
            lacks or adds on average is put right in all pictures. None = none.

    Attributes:
        mask: (H, W) float32 in [0, 1], the share of what is laid over it; 0 at the square's edge and outside.
    """

    def __init__(self, frame: Frame, square: Square, itself: Tensor | None = None) -> None:
        self.frame, self.square = frame, square
        height, width = frame.shape[:2]
        corners = np.array(square.corners())
        (left, top), (right, bottom) = np.floor(corners.min(0)).astype(int), np.ceil(corners.max(0)).astype(int)
        self._rows = slice(max(0, top), min(height, bottom))
        self._columns = slice(max(0, left), min(width, right))
        x = torch.arange(self._columns.start, self._columns.stop) + 0.5
        y = torch.arange(self._rows.start, self._rows.stop) + 0.5
        across, down = square.seen_from(*torch.meshgrid(x, y, indexing="xy"))  # (h, w) each
        self._grid = torch.stack([across, down], dim=-1)[None] * 2
        reach = (across.abs() ** ROUND + down.abs() ** ROUND) ** (1 / ROUND)
        share = ((0.5 - reach) / FEATHER).clamp(0, 1)
        self._share = share * share * (3 - 2 * share)  # no edge where it begins and ends
        self._below = torch.from_numpy(frame[self._rows, self._columns].astype(np.float32))
        self.mask = np.zeros((height, width), np.float32)
        self.mask[self._rows, self._columns] = self._share.numpy()
        self._cast = torch.zeros(3)
        if itself is not None:
            lacking = (self._below - self._laid(itself)) * self._share[..., None]
            self._cast = lacking.sum((0, 1)) / self._share.sum()

    def __call__(self, image: Tensor) -> Frame:
        """Lay an image (3, size, size) in [0, 1] over the square → (H, W, 3) uint8, the frame itself where not."""
        over = self._laid(image) + self._cast
        mixed = torch.lerp(self._below, over, self._share[..., None]).round().clamp(0, 255).byte().numpy()
        result = self.frame.copy()
        result[self._rows, self._columns] = mixed
        return result

    def _laid(self, image: Tensor) -> Tensor:
        """An image (3, size, size) in [0, 1] as it lies in the picture, (h, w, 3) in [0, 255]."""
        side = self.square.side
        if image.shape[-1] < side:  # smoother than bilinear where it is enlarged much
            image = F.interpolate(image[None], (side, side), mode="bicubic", align_corners=False)[0].clamp(0, 1)
        elif image.shape[-1] > side:
            image = F.interpolate(image[None], (side, side), mode="bilinear", antialias=True, align_corners=False)[0]
        turned = F.grid_sample(image[None], self._grid, padding_mode="border", align_corners=False)[0]
        return turned.permute(1, 2, 0) * 255
