"""The face's paint: skin, lips, brows, beard, eyes and the inside of the mouth, in material coordinates."""

from __future__ import annotations

import torch
from torch import Tensor

from memcomp.experiments.data.heads.eyes import paint_eyes
from memcomp.experiments.data.heads.face import EYE_Y, mouth_y, nose_base
from memcomp.experiments.data.heads.identity import Identity
from memcomp.experiments.data.heads.loft import bump, smoothstep
from memcomp.experiments.data.heads.shading import Label, Samples, Scene, edge, fade, light, over, rgb

SKIN_WRAP = (0.42, 0.28, 0.24)


def lip_heights(who: Identity, x: Tensor) -> tuple[Tensor, Tensor]:
    """Height of the upper and the lower lip's border over the seam at x (head units)."""
    across = (1 - (x / who.mouth_width) ** 2).clamp(min=0)
    bow = 1 + 0.18 * torch.exp(-(((x.abs() - 0.05) / 0.035) ** 2)) - 0.10 * torch.exp(-((x / 0.025) ** 2))
    return who.lip_thickness * across**0.8 * bow, -1.22 * who.lip_thickness * across**0.65


def seam_y(who: Identity, x: Tensor) -> Tensor:
    """Height of the seam of the lips at x, head units."""
    return mouth_y(who) + 0.10 * x**2


def brow_curve(who: Identity, outward: Tensor) -> Tensor:
    """Height of the brow's middle at `outward`, its distance from the eye's middle, head units."""
    t = outward / 0.17
    return EYE_Y + who.brow_y + 0.030 * who.brow_arch * (1 - (t - 0.35) ** 2) - 0.035 * (t - 0.1).clamp(min=0) ** 2


def _shadows(who: Identity, x: Tensor, y: Tensor, z: Tensor, smile: Tensor) -> Tensor:
    """Brightness (M,) of the hollows that the smooth light does not darken."""
    side = x.abs()
    man = 1 - who.femininity
    base = nose_base(who)
    socket = bump(side, y, (who.eye_x - 0.035, EYE_Y + 0.035), (0.16, 0.085))
    inner = bump(side, y, (0.115, EYE_Y + 0.03), (0.055, 0.09))
    under_eye = bump(side, y, (who.eye_x - 0.01, EYE_Y - 0.115), (0.12, 0.035)) * (0.5 + 0.8 * who.age)
    nose_side = bump(side, y, (0.135 * who.nose_width, -0.13), (0.04, 0.13))
    under_nose = bump(side, y, (0.0, base - 0.015), (0.11 * who.nose_width, 0.028))
    wing = bump(side, y, (0.158 * who.nose_width, base + 0.045), (0.018, 0.045))
    line = 0.135 * who.nose_width + 0.03 + (base + 0.05 - y) * 0.55
    fold = torch.exp(-(((side - line) / 0.024) ** 2)) * smoothstep(y, base + 0.07, base - 0.03)
    fold = fold * smoothstep(y, mouth_y(who) - 0.09, mouth_y(who) + 0.06)
    under_lip = bump(x, y, (0.0, mouth_y(who) - 0.125), (0.13, 0.032))
    corner = bump(side, y, (who.mouth_width + 0.012, mouth_y(who)), (0.025, 0.03))
    furrow = torch.exp(-((((y - 0.42 - 0.05 * (x / 0.3) ** 2).remainder(0.095) - 0.0475) / 0.010) ** 2))
    furrow = furrow * bump(x, y, (0.0, 0.43), (0.27, 0.12)) * max(who.age - 0.55, 0.0)
    dark = 0.20 * socket + (0.13 + 0.05 * man) * inner + 0.11 * under_eye + 0.10 * nose_side + 0.30 * under_nose
    dark = dark + 0.24 * wing + (0.04 + 0.11 * who.age + 0.20 * smile.clamp(min=0)) * fold + 0.22 * under_lip
    dark = dark + 0.25 * corner + 0.30 * furrow
    nostril = bump(side, y, (0.058 * who.nose_width, base + 0.006), (0.030 * who.nose_width, 0.017))
    return (1 - dark * smoothstep(z, 0.2, 0.4)) * (1 - 0.72 * nostril * smoothstep(z, 0.55, 0.65))


def _beard(who: Identity, x: Tensor, y: Tensor, z: Tensor, footprint: Tensor) -> Tensor:
    """Opacity (M,) of beard and moustache: soft regions with fine strands."""
    side = x.abs()
    my = mouth_y(who)
    p = who.noise
    # upper border: from the sideburn down the cheek to the corner of the mouth
    cheek = my + 0.10 + 0.55 * (side - who.mouth_width).clamp(min=0) ** 1.3
    cover = smoothstep(cheek - y, -0.08, 0.13) * smoothstep(z, -0.12, -0.02)
    cover = cover * smoothstep(y, -1.0, -0.93).clamp(min=0.75)
    patch = bump(side, y, (0.0, my - 0.10), (0.055, 0.03))
    bare = smoothstep(side, 0.21, 0.15) * smoothstep(y, my - 0.09, my - 0.03)  # around the mouth
    bare = torch.maximum(bare, bump(side, y, (0.10, my - 0.13), (0.05, 0.035)) * 0.6) * (1 - 0.7 * patch)
    beard = cover * (1 - bare)
    height = my + who.lip_thickness + 0.045 - 0.22 * side.clamp(max=0.3) ** 1.4
    lip = torch.exp(-(((y - height) / 0.042) ** 4)) * smoothstep(side, who.mouth_width + 0.06, who.mouth_width - 0.04)
    strands = torch.sin(150 * side + 42 * y + 9 * z + p[1]) * torch.sin(38 * y + 75 * x + p[2])
    strands = 1 + (0.18 if who.beard_length else 0.06) * strands * fade(footprint, 0.042)
    return (torch.maximum(beard * who.beard, lip * who.moustache) * strands).clamp_(0, 1)


def paint_head(scene: Scene, s: Samples) -> tuple[Tensor, Tensor]:
    """Paint samples of the head's outside → colour (3, M), label (M,)."""
    who = scene.who
    x, y, z = s.rest
    side = x.abs()
    soft = s.footprint
    front = smoothstep(z, 0.2, 0.42)
    smile = scene.poses.smile[s.frame]
    p = who.noise
    skin = rgb(who.skin)
    # --- complexion
    mottle = torch.sin(9 * x + p[0]) * torch.sin(8 * y + 2 * z + p[1])
    albedo = skin * (1 + 0.022 * mottle)
    cheeks = bump(side, y, (0.37, -0.20), (0.17, 0.14)) * front
    nose_red = bump(x, y, (0.0, nose_base(who) + 0.08), (0.09, 0.08)) * front
    albedo = over(albedo, (0.42 * who.blush * (cheeks + 0.5 * nose_red)).clamp(0, 1), skin * rgb((1.0, 0.62, 0.58)))
    if who.freckles:
        dots = torch.sin(71 * x + p[2]) * torch.sin(67 * y + p[3]) * torch.sin(43 * (x + y) + p[4])
        dots = ((dots - 0.35) * 2.2).clamp_(0, 1) * fade(soft, 0.08) * (cheeks + 0.7 * nose_red).clamp(0, 1)
        albedo = albedo * (1 - 0.35 * who.freckles * dots)
    if who.makeup > 0.5:
        shadow = bump(side, y, (who.eye_x + 0.01, EYE_Y + 0.085), (0.12, 0.05)) * front
        albedo = over(albedo, 0.35 * (who.makeup - 0.4) * shadow, skin * rgb((0.62, 0.42, 0.45)))
    # --- beard, scalp stubble, brows
    if who.beard or who.moustache:
        albedo = over(albedo, _beard(who, x, y, z, soft), rgb(who.beard_colour))
    outward = side - who.eye_x
    bow = y - brow_curve(who, outward)
    thickness = who.brow_thickness * (1 - 0.45 * smoothstep(outward, -0.02, 0.17)) * smoothstep(outward, 0.215, 0.12)
    inside = smoothstep(outward, -0.185, -0.125)
    fine = torch.sin(120 * side - 95 * y + p[3]) * 0.14 * fade(soft, 0.045)
    inside = inside * smoothstep(outward, 0.215, 0.150)
    brow = edge(thickness - bow.abs(), 0.020 + soft) * inside * front * (0.88 + fine)
    albedo = over(albedo, brow.clamp(0, 1), rgb(who.brow_colour))
    # --- lips
    dy = y - seam_y(who, x)
    upper, lower = lip_heights(who, x)
    lips = edge(torch.minimum(upper - dy, dy - lower), 0.014 + soft)
    lips = lips * edge(who.mouth_width - side, 0.03 + soft) * smoothstep(z, 0.35, 0.45)
    tone = torch.where(dy > 0, 0.86, 1.0 + 0.10 * torch.exp(-(((dy + 0.5 * who.lip_thickness) / 0.02) ** 2)))
    albedo = over(albedo, 0.92 * lips, rgb(who.lip) * tone)
    seam = edge(0.008 - dy.abs(), 0.010 + soft) * edge(who.mouth_width * 1.03 - side, 0.04) * smoothstep(z, 0.35, 0.45)
    albedo = over(albedo, 0.75 * seam, rgb(who.lip) * 0.30)
    albedo = albedo * _shadows(who, x, y, z, smile)
    below = smoothstep(y, -0.80, -1.0) * smoothstep(z, 0.52, 0.30)  # under the jaw
    albedo = albedo * (1 - 0.30 * below)
    diffuse, highlight = light(scene, s.normal, wrap=SKIN_WRAP, gloss=0.085, shine=18)
    wet = light(scene, s.normal, wrap=SKIN_WRAP, gloss=0.14, shine=40)[1] * lips
    colour = albedo * diffuse + highlight * (1 - 0.6 * brow) + wet
    label = torch.where(lips > 0.5, int(Label.LIPS), int(Label.SKIN))
    near = ((side - who.eye_x).abs() < 0.20) & ((y - EYE_Y).abs() < 0.14) & (z > 0.2)
    eye = near.nonzero()[:, 0]
    if len(eye):
        colour[:, eye], is_eye = paint_eyes(scene, s[eye], colour[:, eye], diffuse[:, eye])
        label[eye] = torch.where(is_eye, int(Label.EYE), label[eye])
    return colour, label


def paint_pocket(scene: Scene, s: Samples) -> tuple[Tensor, Tensor]:
    """Paint samples between the parted lips → colour, label: teeth above, tongue below."""
    who = scene.who
    x = s.rest[0]
    across = (1 - (x / (who.mouth_width * 0.97)) ** 2).clamp(min=0)
    mouth = scene.poses.mouth[s.frame]
    gap = mouth_gap(who, x, mouth)
    from_upper, from_lower = s.aux * gap, (1 - s.aux) * gap
    soft = s.footprint
    depth = 0.55 + 0.45 * across
    colour = rgb((0.16, 0.045, 0.045)).expand(3, len(x))
    tongue = smoothstep(from_lower / (0.02 + 0.085 * mouth), 1.0, 0.0) * across**0.7
    colour = over(colour, tongue * 0.9, rgb((0.66, 0.27, 0.27)))
    gaps = 1 - 0.22 * torch.exp(-((((x.abs() + 0.0325).remainder(0.065) - 0.0325) / 0.006) ** 2)) * fade(soft, 0.03)
    teeth = edge(0.058 - from_upper, 0.012 + soft) * edge(across - 0.18, 0.2)
    colour = over(colour, teeth, rgb((0.93, 0.91, 0.86)) * gaps)
    under_lip = 0.45 + 0.55 * smoothstep(from_upper, -0.004, 0.030)
    diffuse, _ = light(scene, s.normal, wrap=(0.5, 0.5, 0.5), gloss=0.0, shine=1)
    return colour * under_lip * depth * diffuse, torch.full_like(s.frame, int(Label.MOUTH))


def mouth_gap(who: Identity, x: Tensor, mouth: Tensor) -> Tensor:
    """Distance of the lips at x (head units) for a mouth opening in [0, 1], head units."""
    return 0.17 * mouth * (1 - (x / (who.mouth_width * 0.97)) ** 2).clamp(min=0) ** 0.75


def paint_neck(scene: Scene, s: Samples) -> tuple[Tensor, Tensor]:
    """Paint samples of the neck → colour, label."""
    x, y, z = s.rest
    shade = 0.58 + 0.40 * smoothstep(y, -0.80, -1.25)
    sinew = bump(x.abs() + 0.16 * (y + 1.0), y, (0.14, -1.15), (0.05, 0.25)) * smoothstep(z, -0.1, 0.1)
    diffuse, highlight = light(scene, s.normal, wrap=SKIN_WRAP, gloss=0.04, shine=18)
    colour = rgb(scene.who.skin) * (shade * (1 - 0.08 * sinew)) * diffuse + highlight
    return colour, torch.full_like(s.frame, int(Label.SKIN))


def paint_ear(scene: Scene, s: Samples) -> tuple[Tensor, Tensor]:
    """Paint samples of an ear → colour, label."""
    diffuse, highlight = light(scene, s.normal, wrap=SKIN_WRAP, gloss=0.05, shine=18)
    tint = rgb(scene.who.skin) * rgb((1.0, 0.90, 0.88))
    colour = tint * (1 - 0.42 * s.aux) * diffuse + highlight
    return colour, torch.full_like(s.frame, int(Label.SKIN))
