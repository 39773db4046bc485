"""The mesh of a whole person at rest, and where pose and expression take it.

Every vertex is a material point: its rest position is its texture coordinate, so the same point can be looked up in
any frame, which makes landmarks and disocclusion exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

import torch
from torch import Tensor

from memcomp.experiments.data.heads import parts
from memcomp.experiments.data.heads.face import MOUTH_ROWS, Face, build_face
from memcomp.experiments.data.heads.identity import Identity
from memcomp.experiments.data.heads.loft import grid_normals, grid_triangles
from memcomp.experiments.data.heads.pose import Poses, rotation

CAMERA = 5.0  # distance of the camera from the head's centre, half pictures


class Part(IntEnum):
    """The part of a person that a triangle belongs to."""

    HEAD = 0
    POCKET = 1  # between the lips
    EAR = 2
    CAP = 3  # hair on the skull
    CURTAIN = 4  # hair hanging down
    NECK = 5
    TORSO = 6
    GLASSES = 7


@dataclass(frozen=True)
class Mesh:
    """A person at rest; V vertices, N triangles. Lengths in head units."""

    rest: Tensor  # (V, 3)
    normals: Tensor  # (V, 3) at rest
    moves: Tensor  # (3, M, 3) displacement of the first M vertices (the head) at full jaw, smile, brows
    head_weight: Tensor  # (V,) 1: moves with the head, 0: with the body
    aux: Tensor  # (V,) head: 0 above, 1 below the lips' parting; cap: thickness; curtain: 0 top … 1 ends; ear: hollow
    triangles: Tensor  # (N, 3)
    part: Tensor  # (N,) Part
    face: Face  # its grid, row by row, is the first M vertices


@dataclass(frozen=True)
class Posed:
    """A mesh in T frames. Positions are in half pictures: x right, y up, z towards the camera at (0, 0, CAMERA)."""

    points: Tensor  # (T, V, 3)
    normals: Tensor  # (T, V, 3) unit

    @property
    def screen(self) -> Tensor:
        """Picture coordinates of the vertices in [-1, 1], x right, y down, (T, V, 2)."""
        return project(self.points)[0]

    @property
    def depth(self) -> Tensor:
        """Distance of the vertices along the camera's axis in half pictures, (T, V)."""
        return project(self.points)[1]


def project(points: Tensor) -> tuple[Tensor, Tensor]:
    """Project points (…, 3) → picture coordinates (…, 2), x right, y down, and depth (…); lengths in half pictures."""
    depth = CAMERA - points[..., 2]
    return points[..., :2] * (CAMERA / depth)[..., None] * torch.tensor([1.0, -1.0]), depth


def mesh_detail(size: int) -> float:
    """Resolution of the mesh for a picture of this size: small pictures need fewer triangles."""
    return 0.6 if size <= 80 else 0.8 if size <= 160 else 1.0


def two_sided(mesh: Mesh) -> Tensor:
    """Whether each triangle is seen from both sides, (N,) bool."""
    return mesh.part == int(Part.CURTAIN)


@lru_cache(maxsize=32)
def build(who: Identity, detail: float = 1.0) -> Mesh:
    """Build the mesh of a person; `detail` scales its resolution."""
    face = build_face(who, detail)
    cap = parts.hair_cap(who, face)
    bare = torch.ones(face.rest.shape[:2], dtype=torch.bool)  # the skull under thick hair is never seen
    for hair in cap:
        bare[: len(hair.aux)] = hair.aux < 0.03
    pieces = [parts.Piece(face.rest, True, torch.ones(bare.shape), torch.zeros(bare.shape), bare)]
    kinds = [Part.HEAD]
    for kind, made in (
        (Part.EAR, parts.ears(who)),
        (Part.CAP, cap),
        (Part.CURTAIN, parts.hair_curtain(who)),
        (Part.NECK, parts.neck(who)),
        (Part.TORSO, parts.torso(who)),
        (Part.GLASSES, parts.glasses(who)),
    ):
        pieces += made
        kinds += [kind] * len(made)
    triangles, part, normals, start = [], [], [], 0
    for kind, piece in zip(kinds, pieces, strict=True):
        rows, columns = piece.points.shape[:2]
        faces = grid_triangles(rows, columns, piece.wrap)
        if piece.keep is not None:
            faces = faces[piece.keep.flatten()[faces].any(1)]
        label = torch.full((len(faces),), int(kind))
        if kind == Part.HEAD:
            row = faces // columns
            pocket = (row.min(1).values >= face.seam_row) & (row.max(1).values <= face.seam_row + MOUTH_ROWS + 1)
            label[pocket] = int(Part.POCKET)
            between = (torch.arange(rows) - face.seam_row).clamp(0, MOUTH_ROWS + 1) / (MOUTH_ROWS + 1)
            piece.aux.copy_(between[:, None])
            normals.append(_head_normals(piece.points[None], face)[0].reshape(-1, 3))
        else:
            normals.append(grid_normals(piece.points, piece.wrap).reshape(-1, 3))
        triangles.append(faces + start)
        part.append(label)
        start += rows * columns
    return Mesh(
        rest=torch.cat([p.points.reshape(-1, 3) for p in pieces]),
        normals=torch.cat(normals),
        moves=face.moves.flatten(1, 2),
        head_weight=torch.cat([p.head_weight.flatten() for p in pieces]),
        aux=torch.cat([p.aux.flatten() for p in pieces]),
        triangles=torch.cat(triangles),
        part=torch.cat(part),
        face=face,
    )


def _head_normals(points: Tensor, face: Face) -> Tensor:
    """Unit normals (T, R, C, 3) of the head's grid: one-sided at the parting lips, joined beyond their corners."""
    seam, low = face.seam_row, face.seam_row + MOUTH_ROWS + 1
    upper = grid_normals(points[:, : seam + 1], wrap=True)
    lower = grid_normals(points[:, low:], wrap=True)
    joined = upper[:, -1] + lower[:, 0]
    part = face.opening[None, :, None] ** 0.5 * 0.7
    upper[:, -1] = torch.nn.functional.normalize(upper[:, -1] * part + joined * (1 - part), dim=-1)
    lower[:, 0] = torch.nn.functional.normalize(lower[:, 0] * part + joined * (1 - part), dim=-1)
    pocket = torch.zeros_like(points[:, seam + 1 : low])
    pocket[..., 2] = 1
    return torch.cat([upper, pocket, lower], 1)


def pose_mesh(mesh: Mesh, who: Identity, poses: Poses) -> Posed:
    """Move the mesh as `poses` say, frame by frame."""
    frames, head = len(poses), mesh.moves.shape[1]
    amount = torch.stack([poses.mouth, poses.smile, poses.brows], 1)
    moved = mesh.rest[:head] + (amount @ mesh.moves.flatten(1)).view(frames, head, 3)
    head_normals = _head_normals(moved.view(frames, *mesh.face.rest.shape), mesh.face).view(frames, head, 3)
    others = mesh.rest[head:].expand(frames, -1, -1)
    points = torch.cat([moved, others], 1)
    normals = torch.cat([head_normals, mesh.normals[head:].expand(frames, -1, -1)], 1)

    scale = (who.size * poses.zoom)[:, None, None]
    turn_head = rotation(poses.yaw, poses.pitch, poses.roll)
    turn_body = rotation(poses.yaw * 0.25, poses.pitch * 0, poses.roll * 0.15)
    zero = torch.zeros(frames)
    at_head = torch.stack([poses.shift_x, poses.shift_y + 0.05, zero], 1)[:, None]
    at_body = torch.stack([poses.shift_x * 0.75, poses.shift_y * 0.75 + 0.05, zero], 1)[:, None]
    weight = mesh.head_weight[:, None]
    with_head = points @ turn_head.transpose(1, 2) * scale + at_head
    with_body = points @ turn_body.transpose(1, 2) * scale + at_body
    turned = normals @ turn_head.transpose(1, 2) * weight + normals @ turn_body.transpose(1, 2) * (1 - weight)
    return Posed(
        points=with_body + (with_head - with_body) * weight,
        normals=torch.nn.functional.normalize(turned, dim=-1),
    )
