"""The head's surface and how expressions move it: rings (skull, jaw) plus smooth hills and hollows (features)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from memcomp.experiments.data.heads.identity import Identity
from memcomp.experiments.data.heads.loft import angles, bump, catmull_rom, ring_positions, smoothstep, sweep

# front height, back height, half width, front z, back z; from crown to the underside of the jaw
RINGS = (
    (1.00, 1.00, 0.00, -0.12, -0.12),
    (0.965, 0.965, 0.27, 0.15, -0.42),
    (0.87, 0.86, 0.465, 0.37, -0.64),
    (0.71, 0.69, 0.595, 0.545, -0.80),
    (0.49, 0.46, 0.66, 0.645, -0.88),
    (0.24, 0.20, 0.675, 0.680, -0.89),
    (0.04, 0.00, 0.665, 0.665, -0.83),
    (-0.15, -0.16, 0.645, 0.655, -0.73),
    (-0.33, -0.30, 0.605, 0.660, -0.62),
    (-0.515, -0.40, 0.555, 0.655, -0.53),  # the seam of the lips
    (-0.69, -0.48, 0.490, 0.625, -0.46),
    (-0.85, -0.55, 0.415, 0.585, -0.42),
    (-0.955, -0.61, 0.330, 0.500, -0.40),
    (-0.985, -0.66, 0.240, 0.350, -0.38),
    (-0.93, -0.70, 0.120, 0.120, -0.34),
    (-0.88, -0.75, 0.000, -0.08, -0.08),
)
SEAM = 9
STEPS = [2, 3, 3, 4, 6, 7, 7, 8, 8, 8, 6, 5, 4, 2, 2]
COLUMNS = 92
MOUTH_ROWS = 4  # rows of the pocket between the lips


@dataclass(frozen=True)
class Face:
    """The head's grid: rows from the crown to the seam of the lips, the pocket, and on to the underside of the jaw."""

    rest: Tensor  # (R, C, 3) head units, mouth closed
    moves: Tensor  # (3, R, C, 3) displacement at full jaw, smile, brows
    theta: Tensor  # (C,) angle of each column, 0 in front
    seam_row: int  # last row of the upper part; the lower part starts MOUTH_ROWS + 1 rows later
    opening: Tensor  # (C,) how much of the jaw's way the lips part at this column, in [0, 1]


def _rings(identity: Identity) -> Tensor:
    """Shape `RINGS` to this person, with a ghost row at either end."""
    rings = torch.tensor(RINGS)
    lower = smoothstep(rings[:, 0], 0.0, -0.6)  # 0 at the eyes, 1 at the jaw
    upper = smoothstep(rings[:, 0], 0.1, 0.9)
    rings[:, 2] *= identity.face_width * (1 + (identity.jaw_width - 1) * lower)
    below = rings[:, :2].clamp(max=0)
    rings[:, :2] += below * (identity.jaw_height - 1) + upper[:, None] * (identity.cranium_height - 1)
    rings[10:14, 3] += identity.chin * torch.tensor([0.5, 1.0, 1.0, 0.6])
    first, last = rings[1:2].clone(), rings[-2:-1].clone()
    for ghost in (first, last):  # a pole is passed straight through: width changes sign, front and back change places
        ghost[:, 2] *= -1
        ghost[:, [3, 4]] = ghost[:, [4, 3]]
        ghost[:, [0, 1]] = ghost[:, [1, 0]]
    return torch.cat([first, rings, last])


def mouth_y(identity: Identity) -> float:
    """Height of the seam of the lips in the middle, head units."""
    return RINGS[SEAM][0] * identity.jaw_height


EYE_Y = 0.04


def nose_base(identity: Identity) -> float:
    """Height of the nose's base, head units."""
    return EYE_Y - 0.335 * identity.nose_length


def _features(p: Tensor, who: Identity) -> Tensor:
    """Displacements (R, C, 3) of the smooth head p (R, C, 3) that make it a face."""
    x, y, z = p.unbind(-1)
    side = x.abs()
    front = smoothstep(z, 0.0, 0.35)
    out = torch.zeros_like(p)
    man = 1 - who.femininity
    # bone
    ridge = bump(side, y, (0.20, EYE_Y + 0.17), (0.26, 0.085)) * 0.032 * who.brow_ridge
    socket = bump(side, y, (who.eye_x - 0.02, EYE_Y + 0.01), (0.16, 0.105)) * -0.085
    lids = bump(side, y, (who.eye_x, EYE_Y - 0.005), (0.105, 0.075)) * 0.045
    cheek = bump(side, y, (0.40 * who.face_width, -0.16), (0.20, 0.17)) * (0.025 + 0.03 * who.cheekbone)
    hollow = bump(side, y, (0.44 * who.face_width, -0.46), (0.16, 0.16)) * -0.028 * (0.4 + who.cheekbone)
    temple = bump(z, y, (0.30, 0.33), (0.22, 0.22)) * 0.025
    corner = bump(z, y, (0.02, -0.52), (0.25, 0.14)) * 0.035 * man
    muzzle = bump(x, y, (0.0, mouth_y(who) + 0.03), (0.27, 0.20)) * 0.060
    chin = bump(x, y, (0.0, -0.86 * who.jaw_height), (0.17 + 0.04 * man, 0.10)) * 0.050
    sulcus = bump(x, y, (0.0, mouth_y(who) - 0.17), (0.17, 0.05)) * -0.040
    # lips: two rolls either side of the seam, thinner towards the corners
    across = (1 - (x / (who.mouth_width * 1.05)) ** 2).clamp(min=0) ** 0.6
    dy = y - mouth_y(who)
    roll = who.lip_thickness
    upper = torch.exp(-(((dy - 0.5 * roll) / (0.55 * roll + 0.006)) ** 2)) * 0.030
    lower = torch.exp(-(((dy + 0.62 * roll) / (0.62 * roll + 0.006)) ** 2)) * 0.036
    groove = torch.exp(-((dy / 0.018) ** 2)) * -0.016
    philtrum = bump(x, y, (0.0, mouth_y(who) + 0.125), (0.028, 0.05)) * -0.012
    lips = (upper + lower + groove) * across + philtrum
    # nose: a ridge that grows from the bridge to the tip, a ball and two wings
    base, top = nose_base(who), EYE_Y + 0.10
    along = ((top - y) / (top - base)).clamp(0, 1.4)
    grow = 0.045 + 0.150 * along**1.2
    ending = smoothstep(y, base - 0.035, base + 0.075) * smoothstep(y, top + 0.14, top - 0.08)
    width = who.nose_width * (0.070 + 0.050 * along**2)
    ridge_nose = grow * ending * torch.exp(-((side / width) ** 2.5))
    tip = bump(x, y, (0.0, base + 0.075), (0.085 * who.nose_width, 0.070)) * 0.060
    wings = bump(side, y, (0.098 * who.nose_width, base + 0.050), (0.050 * who.nose_width, 0.048)) * 0.078
    nose = (ridge_nose + tip) * who.nose_height + wings
    beard = who.beard_length * smoothstep(y, mouth_y(who) - 0.10, mouth_y(who) - 0.24) * smoothstep(z, -0.15, 0.1)
    out[..., 2] = front * (ridge + socket + lids + muzzle + chin + sulcus + lips + nose + 0.9 * cheek + hollow) + beard
    sideways = front * (0.7 * cheek + 0.8 * hollow) - temple + corner * smoothstep(side, 0.2, 0.4) + 0.6 * beard
    out[..., 0] = x.sign() * sideways
    out[..., 1] = front * (-0.25 * tip - 0.2 * ridge) - 0.9 * beard * smoothstep(y, -0.65, -0.90)
    return out


def _moves(p: Tensor, seam_y: Tensor, below: Tensor, opening: Tensor, who: Identity) -> Tensor:
    """Displacement (3, R, C, 3) of the finished face p (R, C, 3) at full jaw, smile and brows."""
    x, y, z = p.unbind(-1)
    side = x.abs()
    moves = torch.zeros(3, *p.shape)
    # jaw: turns about the ears; across the seam inside the lips the weight jumps, beyond their corners it is smooth
    gradual = smoothstep(y - seam_y, 0.28, -0.30)
    weight = opening * below + (1 - opening) * gradual
    weight = weight * smoothstep(z, -0.15, 0.30)
    angle = 0.235
    arm_y, arm_z = y + 0.10, z + 0.08
    moves[0, ..., 1] = weight * (arm_y * (torch.cos(torch.tensor(angle)) - 1) - arm_z * angle)
    moves[0, ..., 2] = weight * (arm_z * (torch.cos(torch.tensor(angle)) - 1) + arm_y * angle)
    moves[0, ..., 0] = -x * 0.10 * bump(side, y, (who.mouth_width, mouth_y(who)), (0.10, 0.16)) * smoothstep(z, 0, 0.3)
    # smile: corners out, up and back; cheeks forward and up
    face = smoothstep(z, 0.05, 0.4)
    corner = bump(side, y, (who.mouth_width, mouth_y(who)), (0.115, 0.13)) * face
    cheeks = bump(side, y, (0.36, -0.24), (0.16, 0.14)) * face
    moves[1, ..., 0] = x.sign() * (0.075 * corner + 0.012 * cheeks)
    moves[1, ..., 1] = 0.075 * corner + 0.030 * cheeks
    moves[1, ..., 2] = -0.045 * corner + 0.032 * cheeks
    # brows
    brow = bump(side, y, (who.eye_x, EYE_Y + who.brow_y + 0.03), (0.22, 0.11)) * face
    moves[2, ..., 1] = 0.055 * brow
    return moves


def build_face(who: Identity, detail: float = 1.0) -> Face:
    """Build the head's grid of a person; `detail` scales the number of rows and columns."""
    theta = angles(2 * round(COLUMNS * detail / 2))
    at = ring_positions(STEPS, detail)
    smooth = sweep(catmull_rom(_rings(who), at), theta, square=0.025)
    rest = smooth + _features(smooth, who)
    seam = int((at == SEAM).nonzero()[0, 0])
    side = rest[seam, :, 0].abs() / (who.mouth_width * 0.97)
    opening = (1 - side**2).clamp(min=0) ** 0.75 * (theta.abs() < 1.5)
    rows = len(at)
    # the seam row appears twice (upper and lower lip) with the pocket's rows in between
    index = torch.cat([torch.arange(seam + 1), torch.full((MOUTH_ROWS,), seam), torch.arange(seam, rows)])
    rest = rest[index]
    lower = torch.arange(len(index)) > seam + MOUTH_ROWS
    moves = _moves(rest, rest[seam, :, 1], lower[:, None].float(), opening, who)
    pocket = torch.arange(1, MOUTH_ROWS + 1) / (MOUTH_ROWS + 1)
    upper_lip, lower_lip = moves[:, seam, None], moves[:, seam + MOUTH_ROWS + 1, None]
    inside = upper_lip + (lower_lip - upper_lip) * pocket[:, None, None]
    inside[0, ..., 2] -= 0.26 * opening * (1 - (2 * pocket[:, None] - 1) ** 2) ** 0.5
    moves[:, seam + 1 : seam + MOUTH_ROWS + 1] = inside
    return Face(rest, moves, theta, seam, opening)
