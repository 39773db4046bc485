"""Samples for the regressor of procedural heads: rendered, moved, mirrored, made as poor as generated pictures."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from memcomp.experiments.backends.heads.network import LANDMARKS
from memcomp.experiments.data.heads import landmarks
from memcomp.experiments.data.heads_set import HeadsSet
from memcomp.experiments.files import atomic_write

# landmark → the one on the other side of the face
MIRRORED = [
    *(*range(16, -1, -1), *range(26, 16, -1), *range(27, 31), *range(35, 30, -1)),  # outline, brows, nose
    *(45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40),  # eyes
    *(*range(54, 47, -1), *range(59, 54, -1), *range(64, 59, -1), *range(67, 64, -1)),  # lips
]
TURN, SCALE, SHIFT = 10.0, 0.12, 0.15  # degrees, share, half pictures: at most this much, either way
BLUR = (0.3, 1.6)  # pixels, standard deviation
COARSE = (20, 48)  # pixels: pictures are made this small and large again
NOISE = 0.03
COLOUR = 0.2  # brightness, contrast and saturation: at most this share, either way
CAST = 0.06  # of each channel

Samples = tuple[Tensor, Tensor, Tensor]  # pictures (N, 3, 64, 64) in [0, 1], landmarks (N, 68, 2), angles (N, 3)


def read_heads(heads: HeadsSet) -> Samples:
    """Read all frames: pictures (N, 3, H, W) uint8, landmarks (N, 68, 2) in [-1, 1], angles (N, 3) in degrees."""
    parts = []
    for i in tqdm(range(len(heads)), unit="head", desc=f"rendering {heads.split} heads at {heads.size} px"):
        parts.append((heads.frames(i), true_points(heads, i), heads.angles(i)))
    pictures, points, angles = (torch.cat(part) for part in zip(*parts, strict=True))
    return pictures, points, angles


def true_points(heads: HeadsSet, i: int) -> Tensor:
    """Landmarks (T, 68, 2) of clip i, kept beside it in the cache."""
    path = heads.path(i).with_suffix(".npy")
    try:
        points = torch.from_numpy(np.load(path, allow_pickle=False))
        if points.shape == (heads.length, LANDMARKS, 2) and points.dtype == torch.float32:
            return points
    except (OSError, ValueError):
        pass
    points = landmarks(heads.identity(i), heads.poses(i), heads.size).points
    with atomic_write(path) as temporary:
        np.save(temporary, points.numpy())
    return points


def draw_batch(samples: Samples, size: int, draw: torch.Generator) -> Samples:
    """Draw `size` of the samples, each moved and, by half of them each, mirrored, blurred, made coarse, made noisy."""
    chosen = torch.randint(len(samples[0]), (size,), generator=draw)
    pictures, points, angles = (tensor[chosen] for tensor in samples)
    pictures, points, angles = mirrored(pictures.float() / 255, points, angles, torch.rand(size, generator=draw) < 0.5)
    turn, scale, x, y = (2 * torch.rand(4, size, generator=draw) - 1) * torch.tensor([TURN, SCALE, SHIFT, SHIFT])[
        :, None
    ]
    pictures, points, angles = moved(pictures, points, angles, turn, 1 + scale, torch.stack([x, y], 1))
    return degraded(pictures, draw), points, angles


def mirrored(pictures: Tensor, points: Tensor, angles: Tensor, which: Tensor) -> Samples:
    """Exchange left and right where `which` (N,) says so."""
    flip = which[:, None, None]
    other = points[:, MIRRORED] * torch.tensor([-1.0, 1.0])
    turned = angles * torch.tensor([-1.0, 1.0, -1.0])
    return (
        torch.where(flip[..., None], pictures.flip(-1), pictures),
        torch.where(flip, other, points),
        torch.where(which[:, None], turned, angles),
    )


def moved(pictures: Tensor, points: Tensor, angles: Tensor, turn: Tensor, scale: Tensor, shift: Tensor) -> Samples:
    """Turn pictures about their centre, enlarge and shift them; the edge is repeated.

    Args:
        pictures: (N, 3, H, W).
        points: (N, 68, 2) in [-1, 1].
        angles: (N, 3) degrees; roll changes by the turn, yaw and pitch do not.
        turn: (N,) degrees, anticlockwise as seen.
        scale: (N,).
        shift: (N, 2) right and down, half pictures.
    """
    sin, cos = torch.sin(torch.deg2rad(turn)), torch.cos(torch.deg2rad(turn))
    forth = torch.stack([cos, sin, -sin, cos], 1).view(-1, 2, 2) * scale[:, None, None]
    back = torch.linalg.inv(forth)
    grid = F.affine_grid(torch.cat([back, -back @ shift[..., None]], 2), list(pictures.shape), align_corners=False)
    pictures = F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)
    rolled = angles + turn[:, None] * torch.tensor([0.0, 0.0, 1.0])
    return pictures, points @ forth.mT + shift[:, None], rolled


def degraded(pictures: Tensor, draw: torch.Generator) -> Tensor:
    """Change the colours of all of (N, 3, H, W), and give half each the softness and noise of generated pictures."""
    number = len(pictures)

    def some(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(number, *shape, 1, 1, generator=draw)

    def half() -> Tensor:
        return torch.rand(number, 1, 1, 1, generator=draw) < 0.5

    grey = pictures.mean(1, keepdim=True)
    pictures = grey + (pictures - grey) * some(1 - COLOUR, 1 + COLOUR, 1)
    middle = grey.mean((2, 3), keepdim=True)
    pictures = middle + (pictures - middle) * some(1 - COLOUR, 1 + COLOUR, 1)
    pictures = pictures * some(1 - COLOUR, 1 + COLOUR, 1) * some(1 - CAST, 1 + CAST, 3)
    small = int(torch.randint(COARSE[0], COARSE[1] + 1, (), generator=draw))
    coarse = F.interpolate(F.interpolate(pictures, small, mode="area"), pictures.shape[-1], mode="bilinear")
    pictures = torch.where(half(), coarse, pictures)
    pictures = torch.where(half(), blurred(pictures, some(*BLUR, 1).flatten()), pictures)
    noise = torch.randn(pictures.shape, generator=draw) * some(0, NOISE, 1)
    return torch.where(half(), pictures + noise, pictures).clamp(0, 1)


def blurred(pictures: Tensor, sigma: Tensor) -> Tensor:
    """Blur (N, C, H, W) with a Gaussian of `sigma` (N,) pixels each; the edge is repeated."""
    number, channels, height, width = pictures.shape
    reach = math.ceil(3 * float(sigma.max()))
    offset = torch.arange(-reach, reach + 1)
    kernel = torch.exp(-0.5 * (offset / sigma[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)[:, None, None]  # (N·C, 1, 1, K)
    flat = pictures.reshape(1, number * channels, height, width)
    flat = F.conv2d(F.pad(flat, (reach, reach, 0, 0), mode="replicate"), kernel, groups=number * channels)
    flat = F.conv2d(F.pad(flat, (0, 0, reach, reach), mode="replicate"), kernel.mT, groups=number * channels)
    return flat.view_as(pictures)
