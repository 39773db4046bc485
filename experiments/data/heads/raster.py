"""Which triangle is seen at every pixel: a z-buffer over all frames at once, without a loop over triangles.

Every triangle lists the pixel centres in its bounding box; candidates outside its edges are dropped, and one
scatter-maximum over (closeness, triangle) packed into an integer leaves the visible triangle.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rasterise(screen: Tensor, closeness: Tensor, triangles: Tensor, two_sided: Tensor, size: int) -> Tensor:
    """Seen triangles (T, size, size), int64, -1 where there is none.

    screen: (T, V, 2) in [-1, 1], x right, y down; closeness: (T, V) 1 / depth > 0; triangles: (N, 3), counter-clockwise
    towards the camera; two_sided: (N,) bool, the others are seen from their front only.
    """
    frames = len(screen)
    pixels = (screen + 1) * (size / 2) - 0.5  # pixel centres are integers
    corner = pixels[:, triangles]  # (T, N, 3, 2)
    x, y = corner[..., 0], corner[..., 1]
    low_x, high_x = x.amin(-1).ceil().clamp_(min=0), x.amax(-1).floor().clamp_(max=size - 1)
    low_y, high_y = y.amin(-1).ceil().clamp_(min=0), y.amax(-1).floor().clamp_(max=size - 1)
    area = (x[..., 2] - x[..., 0]) * (y[..., 1] - y[..., 0]) - (x[..., 1] - x[..., 0]) * (y[..., 2] - y[..., 0])
    seen = (high_x >= low_x) & (high_y >= low_y) & ((area > 1e-6) | (two_sided & (area < -1e-6)))
    frame, triangle = seen.nonzero(as_tuple=True)

    x, y, area = x[seen], y[seen], area[seen]
    low_x, low_y = low_x[seen], low_y[seen]
    width = (high_x[seen] - low_x).long() + 1
    count = width * ((high_y[seen] - low_y).long() + 1)
    near = closeness[frame[:, None], triangles[triangle]]
    # edge functions and closeness are affine in the pixel: value = a x + b y + c, one row per triangle
    nx, ny = x.roll(-1, 1), y.roll(-1, 1)
    mx, my = x.roll(-2, 1), y.roll(-2, 1)
    a = (my - ny) / area[:, None]
    b = (nx - mx) / area[:, None]
    c = (mx * ny - nx * my) / area[:, None]
    plane = torch.stack([a, b, c], 1)  # (S, 3 coefficients, 3 corners)
    depth_plane = (plane * near[:, None]).sum(-1)  # (S, 3)

    which = torch.repeat_interleave(torch.arange(len(count)), count)
    first = count.cumsum(0) - count
    local = torch.arange(len(which)) - first[which]
    across = width[which]
    row = torch.div(local, across, rounding_mode="floor")
    px = low_x[which] + (local - row * across)
    py = low_y[which] + row
    p = plane[which]
    edges = p[:, 0] * px[:, None] + p[:, 1] * py[:, None] + p[:, 2]
    inside = (edges.amin(1) >= -1e-5).nonzero()[:, 0]
    which, px, py = which[inside], px[inside], py[inside]
    d = depth_plane[which]
    close = d[:, 0] * px + d[:, 1] * py + d[:, 2]
    # positive floats order like their bits
    key = (close.view(torch.int32).long() << 32) | triangle[which]
    pixel = (frame[which] * size + py.long()) * size + px.long()
    buffer = torch.full((frames * size * size,), -1, dtype=torch.int64)
    buffer.scatter_reduce_(0, pixel, key, "amax")
    return torch.where(buffer < 0, buffer, buffer & 0xFFFFFFFF).view(frames, size, size)


def barycentric(
    screen: Tensor, closeness: Tensor, triangles: Tensor, frame: Tensor, triangle: Tensor, at: Tensor
) -> tuple[Tensor, Tensor]:
    """Perspective-correct weights (M, 3) and corner vertices (M, 3) of picture points `at` (M, 2) on given triangles."""
    vertex = triangles[triangle]
    corner = screen[frame[:, None], vertex] - at[:, None]  # (M, 3, 2)
    x, y = corner.unbind(-1)
    weight = x.roll(-1, 1) * y.roll(-2, 1) - x.roll(-2, 1) * y.roll(-1, 1)
    weight = weight * closeness[frame[:, None], vertex]
    return weight / weight.sum(1, keepdim=True), vertex


def pixel_centres(size: int) -> Tensor:
    """(size, size, 2) picture coordinates in [-1, 1], x right, y down."""
    t = (torch.arange(size) + 0.5) * (2 / size) - 1
    y, x = torch.meshgrid(t, t, indexing="ij")
    return torch.stack([x, y], -1)
