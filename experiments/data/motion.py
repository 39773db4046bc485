"""Pictures of procedural heads with their exact motion as further channels: for the laboratory host `true_motion`.

A picture of seven channels holds red, green, blue, the flow to the source (x, y), what the source shows of it, and ten
of its landmarks (see `memcomp.adapters.true_motion.pack`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from memcomp.adapters.true_motion import pack
from memcomp.experiments.data.heads import Identity, Poses, correspondence, landmarks
from memcomp.experiments.data.heads.raster import pixel_centres
from memcomp.experiments.data.heads.visibility import opened

LANDMARKS = (8, 0, 16, 30, 36, 45, 48, 54, 19, 24)  # iBUG: chin, ends of the jaw, nose, eyes, mouth, brows
MIRRORED = (0, 2, 1, 3, 5, 4, 7, 6, 9, 8)  # which of them each becomes in a mirror


def with_motion(picture: Tensor, flow: Tensor, visibility: Tensor, points: Tensor) -> Tensor:
    """One picture (3, H, W) with its motion: (7, H, W)."""
    return pack(picture[None], flow[None], visibility[None], points[None])[0]


def mirrored(picture: Tensor) -> Tensor:
    """A picture (7, H, W) and its motion in a mirror."""
    count = 2 * len(LANDMARKS)
    points = picture[6].flatten()[:count].view(-1, 2)[list(MIRRORED)] * torch.tensor([-1.0, 1.0])
    flow = picture[3:5].flip(-1) * torch.tensor([-1.0, 1.0])[:, None, None]
    return with_motion(picture[:3].flip(-1), flow.permute(1, 2, 0), picture[5:6].flip(-1), points)


def pair_with_motion(
    source: Tensor, driving: Tensor, who: Identity, of_source: Poses, of_driving: Poses
) -> tuple[Tensor, Tensor, Tensor]:
    """Give pictures (3, H, W) of a pair the exact motion of `who` from one pose to the other.

    Returns:
        source and driving (7, H, W), and the revealed pixels (1, H, W) bool.
    """
    size = source.shape[-1]
    found = correspondence(who, of_source, of_driving, size)
    points = [landmarks(who, poses, size).points[0, LANDMARKS] for poses in (of_source, of_driving)]
    still = torch.ones_like(found.visibility[0])
    return (
        with_motion(source, pixel_centres(size), still, points[0]),
        with_motion(driving, found.flow[0], found.visibility[0], points[1]),
        opened(found.revealed)[0],
    )
