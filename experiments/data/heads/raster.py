"""A z-buffer over all frames at once, without a loop over triangles: which one is seen at every pixel.

Every triangle lists the pixel centres in its bounding box; candidates outside its edges are dropped, and one
scatter-maximum over (closeness, triangle) packed into an integer leaves the visible triangle.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rasterise(
    screen: Tensor, closeness: Tensor, triangles: Tensor, two_sided: Tensor, size: int
) -> tuple[Tensor, Tensor]:
    """Find the seen triangle (T, size, size), int64, and its closeness there, float32; without one: N and 0.

    screen: (T, V, 2) in [-1, 1], x right, y down; closeness: (T, V) 1 / depth > 0; triangles: (N, 3), counter-clockwise
    towards the camera; two_sided: (N,) bool, the others are seen from their front only.
    """
    frames, number = len(screen), len(triangles)
    pixels = (screen + 1) * (size / 2) - 0.5  # pixel centres are integers
    corners = triangles.T.contiguous()
    px, py = pixels.unbind(-1)
    x = [px.index_select(1, c).view(-1) for c in corners]  # three of (T * N,)
    y = [py.index_select(1, c).view(-1) for c in corners]
    low_x, high_x = _span(x, size)
    low_y, high_y = _span(y, size)
    area = (x[2] - x[0]) * (y[1] - y[0]) - (x[1] - x[0]) * (y[2] - y[0])
    facing = (area > 1e-6) | (two_sided.repeat(frames) & (area < -1e-6))
    seen = ((high_x >= low_x) & (high_y >= low_y) & facing).nonzero()[:, 0]

    x, y = [v.index_select(0, seen) for v in x], [v.index_select(0, seen) for v in y]
    low_x, low_y, inverse = low_x[seen], low_y[seen], 1 / area[seen]
    across = high_x[seen] - low_x + 1
    count = (across * (high_y[seen] - low_y + 1)).long()
    triangle = seen.remainder(number)
    frame = torch.div(seen, number, rounding_mode="floor")
    near = [closeness.view(-1)[frame * closeness.shape[1] + c[triangle]] for c in corners]
    # barycentric weights of corner 0 and 1 are affine in the pixel; from the box's first pixel on: w + a i + b j
    planes = [across]
    for k, m in ((1, 2), (2, 0)):
        a, b = (y[m] - y[k]) * inverse, (x[k] - x[m]) * inverse
        planes += [a, b, (low_x - x[k]) * a + (low_y - y[k]) * b]
    weights = torch.stack(planes, 1)  # (S, 7)
    places = torch.stack([low_x, low_y, near[2], near[0] - near[2], near[1] - near[2]], 1)  # (S, 5)

    which = torch.repeat_interleave(count)  # candidate → triangle
    first = (count.cumsum(0) - count).index_select(0, which)
    local = (torch.arange(len(which)) - first).float()
    across, a0, b0, w0, a1, b1, w1 = weights.index_select(0, which).unbind(1)
    j = ((local + 0.5) / across).floor_()
    i = local - j * across
    w0 = w0 + a0 * i + b0 * j
    w1 = w1 + a1 * i + b1 * j
    inside = ((torch.minimum(w0, w1) >= -1e-5) & (w0 + w1 <= 1 + 1e-5)).nonzero()[:, 0]
    which, w0, w1, i, j = (v.index_select(0, inside) for v in (which, w0, w1, i, j))
    left, top, base, slope0, slope1 = places.index_select(0, which).unbind(1)
    close = base + w0 * slope0 + w1 * slope1
    column, row = (left + i).long(), (top + j).long()
    # positive floats order like their bits
    key = (close.view(torch.int32).long() << 32) | triangle[which]
    buffer = torch.full((frames * size * size,), number, dtype=torch.int64)
    buffer.scatter_reduce_(0, (frame[which] * size + row) * size + column, key, "amax")
    shape = (frames, size, size)
    return (buffer & 0xFFFFFFFF).view(shape), (buffer >> 32).to(torch.int32).view(torch.float32).view(shape)


def _span(corner: list[Tensor], size: int) -> tuple[Tensor, Tensor]:
    """Find the first and last pixel centre between three corner coordinates, inside the picture."""
    low = torch.minimum(torch.minimum(corner[0], corner[1]), corner[2]).ceil_().clamp_(min=0)
    high = torch.maximum(torch.maximum(corner[0], corner[1]), corner[2]).floor_().clamp_(max=size - 1)
    return low, high


def gather(table: Tensor, triangles: Tensor, frame: Tensor, triangle: Tensor, at: Tensor) -> Tensor:
    """Interpolate vertex values, perspective-correct, at picture points.

    table: (T, V, 3 + F): screen x, y, closeness and F values of every vertex; triangles: (N, 3); frame, triangle: (M,);
    at: (M, 2) picture points → (M, F).
    """
    flat = table.view(-1, table.shape[-1])
    offset = frame * table.shape[1]
    vertex = triangles.index_select(0, triangle).unbind(1)
    corner = [flat.index_select(0, offset + v) for v in vertex]
    x = [c[:, 0] - at[:, 0] for c in corner]
    y = [c[:, 1] - at[:, 1] for c in corner]
    weight = [(x[k - 2] * y[k - 1] - x[k - 1] * y[k - 2]) * corner[k][:, 2] for k in range(3)]
    total = weight[0] + weight[1] + weight[2]
    return sum(c[:, 3:] * (w / total)[:, None] for c, w in zip(corner, weight, strict=True))  # type: ignore[return-value]


def vertex_table(screen: Tensor, closeness: Tensor, *values: Tensor) -> Tensor:
    """The table `gather` reads: screen (T, V, 2), closeness (T, V), values (T or 1, V, F) → (T, V, 3 + sum of F)."""
    frames = len(screen)
    return torch.cat([screen, closeness[..., None], *(v.expand(frames, -1, -1) for v in values)], -1)


def pixel_centres(size: int) -> Tensor:
    """Picture coordinates of the pixel centres in [-1, 1], x right, y down, (size, size, 2)."""
    t = (torch.arange(size) + 0.5) * (2 / size) - 1
    y, x = torch.meshgrid(t, t, indexing="ij")
    return torch.stack([x, y], -1)
