"""All parts of a person but the face: hair, ears, neck, torso and glasses, each a grid of points at rest."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from memcomp.experiments.data.heads.face import EYE_Y, Face
from memcomp.experiments.data.heads.identity import Identity
from memcomp.experiments.data.heads.loft import (
    angles,
    bump,
    catmull_rom,
    grid_normals,
    interpolate,
    ring_positions,
    smoothstep,
    sweep,
)

TUBE_SIDES = 6
LONG_STYLES = ("bob", "long")


@dataclass(frozen=True)
class Piece:
    """A grid of rows × columns points (R, C, 3) in head units."""

    points: Tensor
    wrap: bool  # the last column joins the first
    head_weight: Tensor  # (R, C)
    aux: Tensor  # (R, C) see Mesh.aux
    keep: Tensor | None = None  # (R, C) bool: triangles without a kept vertex are dropped


def _rigid(points: Tensor, wrap: bool, aux: Tensor | None = None, weight: float = 1.0) -> Piece:
    flat = points[..., 0]
    return Piece(points, wrap, torch.full_like(flat, weight), torch.zeros_like(flat) if aux is None else aux)


# angle from the front in degrees, then the height of the hair's edge there, for each style
_EDGE_AT = (0.0, 26.0, 46.0, 59.0, 68.0, 78.0, 84.0, 99.0, 108.0, 125.0, 180.0)
_EDGES: dict[str, tuple[float | None, ...]] = {
    "buzz": (None, None, None, 0.34, 0.10, 0.02, 0.20, 0.20, -0.20, -0.36, -0.42),
    "short": (None, None, None, 0.34, 0.06, -0.06, 0.19, 0.19, -0.25, -0.42, -0.50),
    "swept": (None, None, None, 0.34, 0.06, -0.08, 0.18, 0.18, -0.25, -0.42, -0.50),
    "fringe": (0.31, 0.31, 0.30, 0.24, 0.02, -0.14, 0.10, 0.10, -0.30, -0.46, -0.55),
    "bob": (0.33, 0.33, 0.32, 0.20, -0.20, -0.35, -0.40, -0.40, -0.40, -0.45, -0.50),
    "long": (None, None, None, 0.30, 0.00, -0.30, -0.40, -0.40, -0.40, -0.45, -0.50),
    "afro": (None, None, None, 0.36, 0.10, 0.00, 0.16, 0.16, -0.25, -0.40, -0.46),
}
_VOLUME = {"buzz": 0.02, "short": 0.075, "swept": 0.12, "fringe": 0.11, "bob": 0.12, "long": 0.10, "afro": 0.22}


def hair_edge(who: Identity, theta: Tensor) -> Tensor:
    """Height of the lower edge of the hair at each angle from the front (radians, signed), head units."""
    degrees = torch.rad2deg(theta)
    if who.hairstyle in ("swept", "long"):  # the parting: the edge is higher on one side of the forehead
        degrees = degrees - 12 * who.hair_part * torch.exp(-((degrees / 35) ** 2))
    line = (who.hair_line + 0.02, who.hair_line + 0.03, who.hair_line - 0.02)
    heights = [line[k] if h is None else h for k, h in enumerate(_EDGES[who.hairstyle])]
    edge = interpolate(torch.tensor(_EDGE_AT), torch.tensor(heights), degrees.abs())
    wave = torch.sin(7 * theta + who.noise[0]) + 0.7 * torch.sin(19 * theta + who.noise[1])
    rough = 0.010 if who.hairstyle in ("fringe", "bob", "swept") else 0.006
    return edge + rough * wave * (theta.abs() < 1.1)


def hair_cap(who: Identity, face: Face) -> list[Piece]:
    """Hair on the skull: the head's own surface moved outwards, diving under the skin at the hairline."""
    if who.hairstyle == "bald":
        return []
    skull = face.rest[: face.seam_row + 1]
    above = skull[..., 1] - hair_edge(who, face.theta)
    volume = _VOLUME[who.hairstyle] * who.hair_volume
    x, y, z = skull.unbind(-1)
    reach = 0.05 if who.hairstyle in ("buzz", "short", "afro") else 0.075
    thickness = volume * (1 - torch.exp(-above.clamp(min=0) / reach)) + 0.25 * above.clamp(-0.12, 0)
    if who.hairstyle == "swept":  # fuller on top, to one side
        thickness = thickness * (1 + 0.55 * bump(x, z, (-0.25 * who.hair_part, 0.25), (0.45, 0.55)) * (y > 0.3))
    if who.hairstyle == "short":  # fades towards the ears
        thickness = thickness * (0.45 + 0.55 * smoothstep(y, 0.1, 0.6)) + 0.004 * (above > 0)
    if who.hairstyle == "afro":
        thickness = thickness * (0.75 + 0.25 * smoothstep(y, -0.2, 0.6))
        thickness = thickness + 0.012 * torch.sin(17 * x + 3 * y + who.noise[2]) * torch.sin(16 * y + 15 * z)
    points = skull + grid_normals(skull, wrap=True) * thickness[..., None]
    keep = above > -0.10
    return [Piece(points, True, torch.ones_like(above), thickness, keep)]


def hair_curtain(who: Identity) -> list[Piece]:
    """Long hair hanging down beside and behind the face; its ends follow the shoulders more than the head."""
    if who.hairstyle not in LONG_STYLES:
        return []
    long = who.hairstyle == "long"
    rows, columns = 18, 40
    down = torch.linspace(0, 1, rows)[:, None]
    front = math.radians(64 if long else 60)
    around = torch.linspace(front, 2 * math.pi - front, columns)[None]
    volume = 0.10 * who.hair_volume
    end = (-0.55 - 0.65 * who.hair_length) if long else (-0.52 - 0.28 * who.hair_length)
    shape = torch.sin(math.pi * down.clamp(0, 1))
    flare = (0.10 * down**1.5 if long else 0.12 * shape - 0.10 * down**3) * who.hair_volume
    half_width = 0.665 * who.face_width + volume + flare
    ripple = 0.018 * torch.sin(9 * around + 4 * down + who.noise[3]) * down
    x = (half_width + ripple) * around.sin()
    depth = torch.where(around.cos() > 0, torch.tensor(0.66), torch.tensor(0.74)) + volume + 0.4 * flare
    z = -0.16 + (depth + ripple) * around.cos() - 0.06 * down
    toward_front = smoothstep(around.cos(), -0.2, 0.4)
    y = 0.30 + (end - 0.30 + 0.03 * torch.sin(13 * around + who.noise[4])) * down + 0.10 * toward_front * down
    points = torch.stack([x, y.expand_as(x), z.expand_as(x)], -1)
    weight = 1 - 0.45 * smoothstep(down, 0.35, 1.0).expand(rows, columns)
    return [Piece(points, False, weight, down.expand(rows, columns).clone())]


def ears(who: Identity) -> list[Piece]:
    """Two flattened ellipsoids with a hollow, turned outwards at the back."""
    if who.hairstyle in LONG_STYLES:
        return []
    rows, columns = 13, 18
    latitude = torch.linspace(0.5, -0.5, rows)[:, None] * math.pi
    longitude = (torch.arange(columns) / columns * 2 * math.pi - math.pi)[None]
    out = (latitude.cos() * longitude.sin()).expand(rows, columns)
    up = latitude.sin().expand(rows, columns)
    forward = (latitude.cos() * longitude.cos()).expand(rows, columns)
    pieces = []
    for sign in (-1.0, 1.0):
        outer = smoothstep(sign * out, 0.0, 0.5)
        hollow = bump(up, forward, (0.05, 0.15), (0.55, 0.50)) * outer
        taper = 0.78 + 0.22 * smoothstep(up, -1.0, 0.3)
        local_x = 0.060 * out - sign * 0.050 * hollow
        local_y = 0.195 * up
        local_z = (0.115 * forward * taper) - 0.035 * up
        turn = math.radians(24) * sign
        x = local_x * math.cos(turn) - local_z * math.sin(turn)
        z = local_x * math.sin(turn) + local_z * math.cos(turn)
        centre = torch.tensor([sign * (0.665 * who.face_width + 0.02), -0.03, -0.13])
        points = torch.stack([x, local_y, z], -1) * who.ear + centre
        pieces.append(_rigid(points, True, aux=hollow))
    return pieces


def neck(who: Identity) -> list[Piece]:
    """A tube from inside the head down into the shoulders, bending with the head."""
    w = 0.43 * who.neck_width
    rings = torch.tensor(
        [
            (-0.10, -0.10, w * 0.98, 0.14, -0.66),
            (-0.30, -0.30, w * 0.98, 0.14, -0.66),
            (-0.80, -0.62, w * 0.97, 0.12, -0.68),
            (-1.05, -0.90, w * 1.00, 0.11, -0.70),
            (-1.30, -1.15, w * 1.12, 0.12, -0.74),
            (-1.60, -1.50, w * 1.40, 0.12, -0.80),
            (-1.90, -1.90, w * 1.40, 0.12, -0.80),
        ]
    )
    at = ring_positions([5, 6, 5, 4], 1.0)
    points = sweep(catmull_rom(rings, at), angles(40))
    weight = smoothstep(points[..., 1], -1.25, -0.60)
    return [Piece(points, True, weight, torch.zeros_like(weight))]


def torso(who: Identity) -> list[Piece]:
    """Trapezius, shoulders and chest."""
    s, n = who.shoulder_width, 0.43 * who.neck_width
    rings = torch.tensor(
        [
            (-0.98, -0.68, -0.20, -0.50, -0.10),
            (-0.98, -0.68, 0.00, -0.30, -0.30),
            (-1.02, -0.72, n * 0.86, 0.04, -0.68),
            (-1.16, -0.84, n * 1.10, 0.10, -0.76),
            (-1.30, -0.98, n * 1.60, 0.16, -0.80),
            (-1.40, -1.12, 0.96 * s, 0.22, -0.84),
            (-1.50, -1.27, 1.20 * s, 0.29, -0.86),
            (-1.66, -1.46, 1.37 * s, 0.36, -0.88),
            (-2.00, -1.85, 1.47 * s, 0.44, -0.90),
            (-2.60, -2.50, 1.50 * s, 0.46, -0.90),
            (-3.20, -3.10, 1.50 * s, 0.46, -0.90),
        ]
    )
    at = ring_positions([2, 3, 4, 4, 4, 4, 4, 4], 1.0)
    return [_rigid(sweep(catmull_rom(rings, at), angles(48), square=0.03), True, weight=0.0)]


def _tube(path: Tensor, radius: float, closed: bool) -> Piece:
    """A tube (L, TUBE_SIDES, 3) around a path (L, 3); a closed one ends where it starts."""
    if closed:
        ahead = path.roll(-1, 0) - path.roll(1, 0)
        path, ahead = torch.cat([path, path[:1]]), torch.cat([ahead, ahead[:1]])
    else:
        ahead = torch.gradient(path, dim=0)[0]
    ahead = torch.nn.functional.normalize(ahead, dim=-1)
    askew = torch.tensor([[0.31, 0.2, 0.93]]).expand_as(ahead)
    side = torch.nn.functional.normalize(torch.linalg.cross(ahead, askew), dim=-1)
    over = torch.linalg.cross(side, ahead)
    turn = (torch.arange(TUBE_SIDES) / TUBE_SIDES * 2 * math.pi)[None, :, None]
    points = path[:, None] + radius * (turn.cos() * side[:, None] + turn.sin() * over[:, None])
    return _rigid(points, True)


def glasses(who: Identity) -> list[Piece]:
    """Two rims, a bridge and two arms."""
    if not who.glasses:
        return []
    turn = torch.arange(30) / 30 * 2 * math.pi
    power = 2 / who.glasses_square
    r = who.glasses_radius
    lens_x = r * turn.cos().sign() * turn.cos().abs() ** power
    lens_y = r * 0.78 * turn.sin().sign() * turn.sin().abs() ** power
    centre_x, centre_y = who.eye_x + 0.015, EYE_Y - 0.035

    def bend(x: Tensor) -> Tensor:
        return 0.80 - 0.30 * x**2

    rims = [
        _tube(torch.stack([s * centre_x + lens_x, centre_y + lens_y, bend(s * centre_x + lens_x)], 1), 0.019, True)
        for s in (-1.0, 1.0)
    ]
    across = torch.linspace(-1, 1, 7) * (centre_x - r)
    bridge = _tube(torch.stack([across, centre_y + 0.05 - 0.4 * across**2, bend(across)], 1), 0.015, False)
    along = torch.linspace(0, 1, 8)
    hinge = torch.tensor([centre_x + r, centre_y + 0.06])
    ear = 0.665 * who.face_width + 0.02
    arms = []
    for s in (-1.0, 1.0):
        x = s * (hinge[0] + (ear - hinge[0]) * along**0.6)
        z = bend(hinge[0]) * (1 - along) - 0.15 * along
        arms.append(_tube(torch.stack([x, hinge[1] + 0 * along, z], 1), 0.014, False))
    return [*rims, bridge, *arms]
