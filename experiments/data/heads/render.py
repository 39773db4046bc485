"""Pictures of one identity in T frames, with depth and labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from memcomp.experiments.data.heads.background import background
from memcomp.experiments.data.heads.hair import paint_cap, paint_curtain, paint_glasses, paint_torso
from memcomp.experiments.data.heads.identity import Identity
from memcomp.experiments.data.heads.mesh import CAMERA, Mesh, Part, build, mesh_detail, pose_mesh, two_sided
from memcomp.experiments.data.heads.pose import Poses
from memcomp.experiments.data.heads.raster import gather, pixel_centres, rasterise, vertex_table
from memcomp.experiments.data.heads.shading import Samples, Scene
from memcomp.experiments.data.heads.skin import paint_ear, paint_head, paint_neck, paint_pocket

RENDERER_VERSION = 1  # raise it whenever a pixel of any picture may change
CHUNK_SAMPLES = 2**18  # sub-pixels rendered at a time: keeps temporaries in the cache
NEAR, FAR = CAMERA - 0.8, CAMERA + 1.0  # half pictures; all of a person is between them
STEEP = 2.0  # depth step across a pixel, in pixels, above which its sub-pixels are painted one by one

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

    def disparity(self) -> Tensor:
        """Disparity (T, 1, H, W) in [0, 1], affine in 1 / depth: 1 at `NEAR`, 0 at `FAR` and on the background."""
        return ((1 / self.depth - 1 / FAR) / (1 / NEAR - 1 / FAR)).clamp(0, 1)

    def rgbd(self) -> Tensor:
        """Join the image and, as fourth channel, the disparity: (T, 4, H, W)."""
        return torch.cat([self.image, self.disparity()], dim=1)


@torch.no_grad()
def render(who: Identity, poses: Poses, size: int) -> Frames:
    """Render `who` in every frame of `poses` at size × size pixels."""
    mesh = build(who, mesh_detail(size))
    behind = background(who, size)
    chunk = max(1, CHUNK_SAMPLES // (4 * size * size))
    done = [_render(mesh, who, poses[i : i + chunk], size, behind) for i in range(0, len(poses), chunk)]
    return Frames(*(torch.cat(parts) for parts in zip(*done, strict=True)))


def _render(mesh: Mesh, who: Identity, poses: Poses, size: int, behind: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Render one chunk at 2 × 2 sub-pixels; where they see one smooth piece of one part, it is painted once."""
    frames, pixels = len(poses), size * size
    posed = pose_mesh(mesh, who, poses)
    screen, closeness = posed.screen, 1 / posed.depth
    seen, close = rasterise(screen, closeness, mesh.triangles, two_sided(mesh), 2 * size)
    seen, close = _sub_pixels(seen, size), _sub_pixels(close, size)  # (T * pixels, 4)
    part = torch.cat([mesh.part, mesh.part.new_tensor([-1])])[seen]
    nearest, nearest_sub = close.max(1)
    step = nearest - close.amin(1)  # closeness is 1 / depth: its steps are those of depth times closeness squared
    smooth = step < STEEP * (2 / size) * nearest * nearest
    same = (part == part[:, :1]).all(1)
    one = (same & smooth & (part[:, 0] >= 0)).nonzero()[:, 0]
    many, many_sub = (~(same & smooth)[:, None] & (part >= 0)).nonzero(as_tuple=True)

    owner = torch.cat([one, many])
    frame = torch.div(owner, pixels, rounding_mode="floor")
    triangle = torch.cat([seen[one, 0], seen[many, many_sub]])
    centre = pixel_centres(size).view(-1, 2)
    sub_centre = pixel_centres(2 * size).view(size, 2, size, 2, 2).transpose(1, 2).reshape(-1, 4, 2)
    at = torch.cat([centre[one.remainder(pixels)], sub_centre[many.remainder(pixels), many_sub]])
    table = vertex_table(screen, closeness, mesh.rest[None], posed.normals, mesh.aux[None, :, None])
    surface = gather(table, mesh.triangles, frame, triangle, at)  # (M, 7): rest, normal, aux
    pixel_size = torch.full((len(owner),), 1 / (size * who.size))  # half a pixel, head units
    pixel_size[len(one) :] *= 0.6
    kind = torch.cat([part[one, 0], part[many, many_sub]])
    colour, found = _paint(Scene(who, poses), surface, frame, pixel_size, kind)

    share = torch.ones(len(owner))
    share[len(one) :] = 0.25
    covered = torch.zeros(frames * pixels).index_add_(0, owner, share)
    image = behind.repeat(1, frames) * (1 - covered)
    image.index_add_(1, owner, colour * share)
    label = torch.zeros(frames * pixels, dtype=torch.uint8)  # of the nearest sub-pixel
    label[one] = found[: len(one)]
    first = (many_sub == nearest_sub[many]).nonzero()[:, 0]
    label[many[first]] = found[len(one) + first]
    image = image.view(3, frames, size, size).transpose(0, 1).clamp(0, 1)
    shape = (frames, 1, size, size)
    return image.contiguous(), (1 / nearest).view(shape), label.view(shape)


def _sub_pixels(values: Tensor, size: int) -> Tensor:
    """Gather the four sub-pixels of every pixel: (T, 2 size, 2 size) → (T * size * size, 4)."""
    return values.view(-1, size, 2, size, 2).transpose(2, 3).reshape(-1, 4)


def _paint(scene: Scene, surface: Tensor, frame: Tensor, pixel: Tensor, part: Tensor) -> tuple[Tensor, Tensor]:
    """Paint M samples, each with the paint of its part → colour (3, M), label (M,) uint8."""
    colour = torch.empty(3, len(part))
    label = torch.empty(len(part), dtype=torch.uint8)
    for kind, paint in PAINT.items():
        index = (part == int(kind)).nonzero()[:, 0]
        if len(index):
            rows = surface.index_select(0, index).T.contiguous()
            normal = rows[3:6]
            normal = normal * (normal * normal).sum(0).clamp_(min=1e-12).rsqrt_()
            footprint = pixel[index] / normal[2].clamp(min=0.2)  # a sample covers more of a surface seen at an angle
            samples = Samples(rows[:3], normal, rows[6], frame[index], footprint)
            colour[:, index], found = paint(scene, samples)
            label[index] = found.to(torch.uint8)
    return colour, label
