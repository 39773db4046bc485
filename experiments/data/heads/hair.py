"""Paint of hair and of what a person wears."""

from __future__ import annotations

import torch
from torch import Tensor

from memcomp.experiments.data.heads.loft import smoothstep
from memcomp.experiments.data.heads.shading import Label, Samples, Scene, edge, fade, light, over, rgb


def _strand_light(scene: Scene, s: Samples, strands: Tensor, shade: Tensor) -> Tensor:
    """Hair colour (3, M) under the light: two soft bands of highlight broken up by the strands."""
    who = scene.who
    diffuse, _ = light(scene, s.normal, wrap=(0.45, 0.45, 0.45), gloss=0.0, shine=1)
    half = torch.nn.functional.normalize(torch.tensor(who.light) + torch.tensor([0.0, 0.5, 1.0]), dim=0)
    across = half @ s.normal
    band = torch.exp(-(((across - 0.93) / 0.10) ** 2)) * (1 + 1.2 * strands)
    base = rgb(who.hair)
    bright = 0.2126 * who.hair[0] + 0.7152 * who.hair[1] + 0.0722 * who.hair[2]
    contrast = 0.42 - 0.22 * bright  # fair hair is more even
    sheen = (base * 0.45 + 0.05) * (0.50 - 0.28 * bright)
    return base * ((1 + contrast * strands) * shade) * diffuse + sheen * band.clamp(min=0)


def paint_cap(scene: Scene, s: Samples) -> tuple[Tensor, Tensor]:
    """Paint samples of the hair on the skull → colour, label. `aux` is the thickness of the hair there."""
    who = scene.who
    x, y, z = s.rest
    p = who.noise
    if who.hairstyle == "afro":
        curls = torch.sin(37 * x + p[1]) * torch.sin(35 * y + p[2]) * torch.sin(33 * z + p[3])
        curls = curls + 0.5 * torch.sin(61 * x + 21 * z) * torch.sin(57 * y + p[4])
        strands = 0.55 * curls * fade(s.footprint, 0.12)
    else:
        # strands run from the crown to the edge of the hair; whole numbers of them, so that they close at the back
        crown = 0.22 * who.hair_part if who.hairstyle in ("swept", "long") else 0.0
        away = ((x - crown) ** 2 + (z + 0.30) ** 2).sqrt()
        turn = torch.atan2(x - crown, z + 0.30) + 0.05 * torch.sin(5 * y + p[2])
        coarse, medium, fine = (
            torch.sin(n * turn + phase) * fade(s.footprint, 6.28 * away / n)
            for n, phase in ((round(2.2 * who.hair_strands), p[3]), (round(5.1 * who.hair_strands), p[4]), (170, p[5]))
        )
        strands = 0.16 * coarse + 0.26 * medium + 0.24 * fine
        if who.hairstyle == "buzz":
            strands = 0.12 * fine
    shade = 0.80 + 0.20 * smoothstep(s.aux, 0.0, 0.05)
    colour = _strand_light(scene, s, strands, shade)
    # the scalp shines through where the hair is thin: at the hairline, between strands
    thin = 0.012 if who.hairstyle == "buzz" else 0.022
    scalp = smoothstep(s.aux + 0.02 * strands, thin, 0.0) * 0.85 + (0.16 if who.hairstyle == "buzz" else 0.0)
    skin = rgb(who.skin) * light(scene, s.normal, wrap=(0.42, 0.28, 0.24), gloss=0.0, shine=1)[0]
    colour = over(colour, scalp.clamp(0, 0.9), skin)
    return colour, torch.full_like(s.frame, int(Label.HAIR))


def paint_curtain(scene: Scene, s: Samples) -> tuple[Tensor, Tensor]:
    """Paint samples of the hanging hair → colour, label. `aux` runs from the top to the ends."""
    who = scene.who
    x, y, z = s.rest
    p = who.noise
    f = who.hair_strands
    turn = torch.atan2(x, -z - 0.16) + 0.03 * torch.sin(4 * y + p[2])
    coarse = torch.sin(2.0 * f * turn + p[3]) * fade(s.footprint, 2.2 / f)
    medium = torch.sin(4.7 * f * turn + p[4] + coarse) * fade(s.footprint, 0.95 / f)
    fine = torch.sin(11.0 * f * turn + p[5]) * fade(s.footprint, 0.4 / f)
    strands = 0.22 * coarse + 0.28 * medium + 0.22 * fine
    inner = smoothstep(s.normal[2], 0.05, -0.05)  # the sheet's inside, darker
    shade = (0.95 - 0.18 * s.aux) * (1 - 0.50 * inner)
    return _strand_light(scene, s, strands, shade), torch.full_like(s.frame, int(Label.HAIR))


def paint_torso(scene: Scene, s: Samples) -> tuple[Tensor, Tensor]:
    """Paint samples of shoulders and chest → colour, label: skin inside the neckline, cloth below."""
    who = scene.who
    x, y, z = s.rest
    soft = s.footprint
    dip = who.collar * smoothstep(z, -0.5, 0.3) * torch.exp(-((x / 0.45) ** 2))
    neckline = -1.05 - dip - 0.30 * x.abs().clamp(max=0.6)
    below = neckline - y
    cloth = rgb(who.cloth).expand(3, len(x))
    if who.cloth_stripes:
        stripe = torch.sin(who.cloth_stripes * 6.283 * (y + 0.25 * x.abs()))
        cloth = over(cloth, edge(stripe, 0.3 + 14 * soft * who.cloth_stripes / 4), rgb(who.cloth_second))
    folds = torch.sin(9 * x + 5 * y + who.noise[0]) * torch.sin(4 * x - 7 * y + who.noise[1])
    cloth = cloth * (1 + 0.06 * folds)
    hem = edge(0.028 - (below - 0.035).abs(), 0.012 + soft)
    cloth = over(cloth, 0.55 * hem, rgb(who.cloth) * 0.55)
    worn = edge(below, 0.012 + soft)
    albedo = over((rgb(who.skin) * 0.94).expand(3, len(x)), worn, cloth)
    diffuse, highlight = light(scene, s.normal, wrap=(0.35, 0.32, 0.30), gloss=0.02, shine=10)
    label = torch.where(worn > 0.5, int(Label.CLOTH), int(Label.SKIN))
    return albedo * diffuse + highlight, label


def paint_glasses(scene: Scene, s: Samples) -> tuple[Tensor, Tensor]:
    """Paint samples of the glasses' frame → colour, label."""
    diffuse, highlight = light(scene, s.normal, wrap=(0.3, 0.3, 0.3), gloss=0.35, shine=30)
    colour = rgb(scene.who.glasses_colour) * diffuse + highlight
    return colour, torch.full_like(s.frame, int(Label.GLASSES))
