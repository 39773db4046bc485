"""One way to bring a frame of any shape to the size that networks are trained at."""

import torch
import torch.nn.functional as F
from torch import Tensor


def fit(frame: Tensor, size: int) -> Tensor:
    """Cut uint8 (3, H, W) to its middle square and resize it with antialiasing → uint8 (3, size, size)."""
    height, width = frame.shape[1:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    frame = frame[:, top : top + side, left : left + side]
    if side == size:
        return frame.contiguous()
    resized = F.interpolate(frame[None].float(), (size, size), mode="bilinear", antialias=True)
    return resized[0].round().to(torch.uint8)
