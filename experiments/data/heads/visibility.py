"""Visibility of a person's material points in a frame: landmarks, and disocclusion between two frames."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d, pad

from memcomp.experiments.data.heads.anchors import UPPER_LIDS, landmark_anchors
from memcomp.experiments.data.heads.eyes import opening
from memcomp.experiments.data.heads.face import EYE_Y
from memcomp.experiments.data.heads.identity import Identity
from memcomp.experiments.data.heads.mesh import (
    CAMERA,
    Mesh,
    Part,
    Posed,
    build,
    mesh_detail,
    pose_mesh,
    project,
    two_sided,
)
from memcomp.experiments.data.heads.pose import Poses
from memcomp.experiments.data.heads.raster import gather, pixel_centres, rasterise, vertex_table
from memcomp.experiments.data.heads.skin import mouth_gap

TOLERANCE = 0.02  # half pictures: a point this far behind the seen surface still counts as seen
GRAZING = -0.05  # cosine below which a surface is turned away from the camera


@dataclass(frozen=True)
class View:
    """The view of T frames: the seen triangle and depth at every pixel centre."""

    triangle: Tensor  # (T, H, W) int64, N: background
    depth: Tensor  # (T, H, W) half pictures, inf: background

    @classmethod
    def of(cls, mesh: Mesh, posed: Posed, size: int) -> View:
        """Rasterise at size × size, one sample per pixel."""
        triangle, close = rasterise(posed.screen, 1 / posed.depth, mesh.triangles, two_sided(mesh), size)
        return cls(triangle, 1 / close)

    def sees(self, frame: Tensor, point: Tensor, normal: Tensor) -> Tensor:
        """Whether each frame (M,) shows points (M, 3) in half pictures with unit normals (M, 3) → (M,) bool.

        The farthest depth of the 3 × 3 pixels around counts, so that a slope is not taken for an obstacle.
        """
        size = self.depth.shape[-1]
        farthest = max_pool2d(self.depth[:, None], 3, stride=1, padding=1)[:, 0]
        screen, depth = project(point)
        column, row = ((screen + 1) * (size / 2)).floor().long().unbind(1)
        framed = (row >= 0) & (row < size) & (column >= 0) & (column < size)
        nearest = farthest[frame, row.clamp(0, size - 1), column.clamp(0, size - 1)]
        to_camera = torch.nn.functional.normalize(torch.tensor([0.0, 0.0, CAMERA]) - point, dim=1)
        return framed & (depth <= nearest + TOLERANCE) & ((normal * to_camera).sum(1) > GRAZING)


@dataclass(frozen=True)
class Landmarks:
    """68 landmarks in T frames, iBUG order."""

    points: Tensor  # (T, 68, 2) picture coordinates in [-1, 1], x right, y down; outside it when out of the picture
    visible: Tensor  # (T, 68) bool: inside the picture and not hidden
    depth: Tensor  # (T, 68) half pictures


@torch.no_grad()
def landmarks(who: Identity, poses: Poses, size: int = 256) -> Landmarks:
    """Exact landmarks of every frame; `size` is the resolution at which visibility is decided."""
    mesh = build(who, mesh_detail(size))
    posed = pose_mesh(mesh, who, poses)
    eyes_open, eyes_closed = landmark_anchors(who, mesh_detail(size))
    points, normals = eyes_open.on(posed.points), eyes_open.on(posed.normals)
    lids = list(UPPER_LIDS)
    points[:, lids] = torch.lerp(points[:, lids], eyes_closed.on(posed.points)[:, lids], poses.blink[:, None, None])
    frame = torch.arange(len(poses))[:, None].expand(-1, points.shape[1])
    visible = View.of(mesh, posed, size).sees(frame.flatten(), points.flatten(0, 1), normals.flatten(0, 1))
    screen, depth = project(points)
    return Landmarks(screen, visible.view(frame.shape), depth)


@dataclass(frozen=True)
class Correspondence:
    """Where T driving frames find their pixels in the source frame, exactly. The background stands still."""

    flow: Tensor  # (T, H, W, 2) picture coordinates (x, y) in the source; also of hidden points, so perhaps outside
    hidden: Tensor  # (T, 1, H, W) bool: pixels showing a point of the person that the source hides
    revealed: Tensor  # (T, 1, H, W) bool: pixels showing background that the person covers in the source

    @property
    def visibility(self) -> Tensor:
        """(T, 1, H, W) float: 1 where the source shows what the driving frame shows, 0 elsewhere."""
        return (~(self.hidden | self.revealed)).float()


@torch.no_grad()
def correspondence(who: Identity, source: Poses, driving: Poses, size: int) -> Correspondence:
    """Follow every pixel of the driving frames through the mesh to the same material point in the source frame.

    The source frame's jaw, smile and brows count. Hidden are also: the inside of the mouth that the source's lips
    cover, eyeball behind the source's lids, and lids that the source's open eyes fold away.

    Args:
        who: whose head.
        source: T frames or one.
        driving: T frames.
        size: height and width, pixels; one sample per pixel centre.

    Raises:
        ValueError: source and driving do not pair up.
    """
    if len(source) not in (1, len(driving)):
        raise ValueError(f"source has {len(source)} frames, expected 1 or the driving's {len(driving)}")
    if len(source) != len(driving):
        source = source[torch.zeros(len(driving), dtype=torch.long)]
    mesh = build(who, mesh_detail(size))
    before, after = pose_mesh(mesh, who, source), pose_mesh(mesh, who, driving)
    shown, seen = View.of(mesh, before, size), View.of(mesh, after, size).triangle
    is_person = seen < len(mesh.triangles)
    frame, row, column = is_person.nonzero(as_tuple=True)
    triangle = seen[frame, row, column]
    # at every seen point: its place and normal in the source frame, its place at rest, aux
    table = vertex_table(
        after.screen, 1 / after.depth, before.points, before.normals, mesh.rest[None], mesh.aux[None, :, None]
    )
    found = gather(table, mesh.triangles, frame, triangle, pixel_centres(size)[row, column])
    point, normal, rest, aux = found[:, :3], found[:, 3:6], found[:, 6:9], found[:, 9]
    part = mesh.part[triangle]
    any_side = (part == int(Part.CURTAIN)) | (part == int(Part.POCKET))
    normal[any_side] = torch.tensor([0.0, 0.0, 1.0])
    visible = shown.sees(frame, point, normal)

    x, y, z = rest.unbind(1)
    from_upper_lip = aux * mouth_gap(who, x, driving.mouth[frame])
    covered = (part == int(Part.POCKET)) & (from_upper_lip >= mouth_gap(who, x, source.mouth[frame]))
    near_eye = (part == int(Part.HEAD)) & (z > 0.2) & ((y - EYE_Y).abs() < 0.14)
    was_open = opening(who, x, y, source.blink[frame]) > 0
    is_open = opening(who, x, y, driving.blink[frame]) > 0
    hidden = torch.zeros(len(driving), 1, size, size, dtype=torch.bool)
    hidden[frame, 0, row, column] = ~visible | covered | (near_eye & (was_open != is_open))
    flow = pixel_centres(size).repeat(len(driving), 1, 1, 1)
    flow[frame, row, column] = project(point)[0]
    revealed = ~is_person & (shown.triangle < len(mesh.triangles))
    return Correspondence(flow, hidden, revealed[:, None])


@torch.no_grad()
def disocclusion(who: Identity, source: Poses, driving: Poses, size: int) -> Tensor:
    """Find the pixels of driving frames that show what the source frame hides of the person → (T, 1, H, W) bool.

    The `hidden` of `correspondence` without contours one pixel wide. The background is never marked.
    """
    return opened(correspondence(who, source, driving, size).hidden)


def opened(mask: Tensor) -> Tensor:
    """Open a mask (T, 1, H, W) by 2 × 2 pixels: contours one pixel wide and lone pixels go, other regions stay."""
    eroded = -max_pool2d(-mask.float(), 2, stride=1)
    return max_pool2d(pad(eroded, (1, 1, 1, 1)), 2, stride=1) > 0.5
