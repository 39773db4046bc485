"""Pictures of one identity in T frames, with depth and labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from memcomp.experiments.data.heads.background import background
from memcomp.experiments.data.heads.hair import paint_cap, paint_curtain, paint_glasses, paint_torso
from memcomp.experiments.data.heads.identity import Identity
from memcomp.experiments.data.heads.mesh import Mesh, Part, build, mesh_detail, pose_mesh, two_sided
from memcomp.experiments.data.heads.pose import Poses
from memcomp.experiments.data.heads.raster import barycentric, pixel_centres, rasterise
from memcomp.experiments.data.heads.shading import Label, Samples, Scene
from memcomp.experiments.data.heads.skin import paint_ear, paint_head, paint_neck, paint_pocket

RENDERER_VERSION = 1  # raise it whenever a pixel of any picture may change
CHUNK_SAMPLES = 2**18  # sub-pixels rendered at a time: keeps temporaries in the cache

PAINT: dict[Part, Callable[[Scene, Samples], tuple[Tensor, Tensor]]] = {
    Part.HEAD: paint_head,
    Part.POCKET: paint_pocket,
    Part.EAR: paint_ear,
    Part.CAP: paint_cap,
    Part.CURTAIN: paint_curtain,
    Part.NECK: paint_neck,
    Part.TORSO: paint_torso,
    Part.GLASSES: paint_glasses,
}


@dataclass(frozen=True)
class Frames:
    """T rendered frames."""

    image: Tensor  # (T, 3, H, W) RGB in [0, 1]
    depth: Tensor  # (T, 1, H, W) distance along the camera's axis in half pictures, inf where only background is seen
    label: Tensor  # (T, 1, H, W) uint8, Label


@torch.no_grad()
def render(who: Identity, poses: Poses, size: int) -> Frames:
    """Render `who` in every frame of `poses` at size × size pixels."""
    mesh = build(who, mesh_detail(size))
    behind = background(who, size)
    chunk = max(1, CHUNK_SAMPLES // (4 * size * size))
    done = [_render(mesh, who, poses[i : i + chunk], size, behind) for i in range(0, len(poses), chunk)]
    return Frames(*(torch.cat(parts) for parts in zip(*done, strict=True)))


def _render(mesh: Mesh, who: Identity, poses: Poses, size: int, behind: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    frames, pixels = len(poses), size * size
    posed = pose_mesh(mesh, who, poses)
    screen, closeness = posed.screen, 1 / posed.depth
    seen = rasterise(screen, closeness, mesh.triangles, two_sided(mesh), 2 * size)
    # (T * pixels, 4 sub-pixels)
    seen = seen.view(frames, size, 2, size, 2).permute(0, 1, 3, 2, 4).reshape(-1, 4)
    part = torch.where(seen < 0, -1, mesh.part[seen.clamp(min=0)])
    label = torch.zeros(frames * pixels, dtype=torch.uint8)
    depth = torch.full((frames * pixels,), torch.inf)
    image = behind.repeat(1, frames)

    hit_pixel, hit_sub = (seen >= 0).nonzero(as_tuple=True)
    sub_at = pixel_centres(2 * size).view(size, 2, size, 2, 2).permute(0, 2, 1, 3, 4).reshape(-1, 4, 2)
    triangle = seen[hit_pixel, hit_sub]
    frame = hit_pixel // pixels
    weight, vertex = barycentric(
        screen, closeness, mesh.triangles, frame, triangle, sub_at[hit_pixel % pixels, hit_sub]
    )
    table = torch.cat([mesh.rest.expand(frames, -1, -1), posed.normals, mesh.aux.expand(frames, -1)[..., None], posed.depth[..., None]], -1)
    surface = (table[frame[:, None], vertex] * weight[..., None]).sum(1)  # (M, 8)

    # pixels whose four sub-pixels see one smooth piece of one part are painted once, in their middle
    full = torch.zeros(frames * pixels, 4, 8)
    full[hit_pixel, hit_sub] = surface
    rest = full[..., :3]
    spread = (rest.amax(1) - rest.amin(1)).amax(1)
    pixel_size = 2 / (size * who.size)
    uniform = (part[:, 0] >= 0) & (part == part[:, :1]).all(1) & (spread < 4 * pixel_size)
    mixed = ~uniform & (part >= 0).any(1)
    one = uniform.nonzero()[:, 0]
    many, many_sub = (mixed[:, None] & (part >= 0)).nonzero(as_tuple=True)
    points = torch.cat([full[one].mean(1), full[many, many_sub]])
    owner = torch.cat([one, many])
    sample_part = torch.cat([part[one, 0], part[many, many_sub]])
    footprint = torch.cat([spread[one].clamp(max=3 * pixel_size), torch.full((len(many),), pixel_size * 0.6)])
    normal = points[:, 3:6]
    colour, sample_label = _paint(Scene(who, poses), points, normal, owner // pixels, footprint, sample_part)

    depth.scatter_reduce_(0, owner, points[:, 7], "amin")
    share = torch.cat([torch.ones(len(one)), torch.full((len(many),), 0.25)])
    covered = torch.zeros(frames * pixels).index_add_(0, owner, share)
    image = image * (1 - covered)
    image.index_add_(1, owner, colour * share)
    label[many] = sample_label[len(one) :]
    label[one] = sample_label[: len(one)]
    shape = (frames, 1, size, size)
    image = image.view(3, frames, size, size).transpose(0, 1).clamp(0, 1)
    return image.contiguous(), depth.view(shape), label.view(shape)


def _paint(
    scene: Scene, points: Tensor, normal: Tensor, frame: Tensor, footprint: Tensor, part: Tensor
) -> tuple[Tensor, Tensor]:
    """Paint every sample with the paint of its part → colour (3, M), label (M,) uint8."""
    rows = points.T.contiguous()
    normal = torch.nn.functional.normalize(rows[3:6], dim=0)
    samples = Samples(rows[:3], normal, rows[6], frame, footprint)
    colour = torch.empty(3, len(part))
    label = torch.empty(len(part), dtype=torch.uint8)
    for kind, paint in PAINT.items():
        index = (part == int(kind)).nonzero()[:, 0]
        if len(index):
            colour[:, index], found = paint(scene, samples[index])
            label[index] = found.to(torch.uint8)
    return colour, label
