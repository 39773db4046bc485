"""Eyes: an opening between the lids, painted on the face, behind which a ball with iris and pupil turns."""

from __future__ import annotations

import torch
from torch import Tensor

from memcomp.experiments.data.heads.face import EYE_Y
from memcomp.experiments.data.heads.identity import Identity
from memcomp.experiments.data.heads.loft import smoothstep
from memcomp.experiments.data.heads.shading import Samples, Scene, edge, over, rgb

IRIS = 0.064  # radius, head units


def lid_curves(who: Identity, outward: Tensor, blink: Tensor) -> tuple[Tensor, Tensor]:
    """Heights of the upper and the lower lid above the eye's middle at `outward` (head units from the middle)."""
    t = outward / who.eye_width
    almond = (1 - t**2).clamp(min=0)
    tilt = who.eye_tilt * outward
    upper = who.eye_height * 1.18 * almond**0.75 * (1 + 0.12 * t)
    lower = -who.eye_height * 0.80 * almond**0.9
    closed = lower * 0.75 - 0.004
    return upper + (closed - upper) * blink + tilt, torch.minimum(lower, upper) + tilt


def opening(who: Identity, x: Tensor, y: Tensor, blink: Tensor) -> Tensor:
    """Distance of a point of the face inside the opening of the lids (head units); negative on a lid."""
    outward = x.abs() - who.eye_x
    upper, lower = lid_curves(who, outward, blink)
    height = y - EYE_Y
    inside = torch.minimum(upper - height, height - lower)
    return torch.where(outward.abs() < who.eye_width, inside, -torch.ones_like(inside))


def paint_eyes(scene: Scene, s: Samples, skin: Tensor, diffuse: Tensor) -> tuple[Tensor, Tensor]:
    """Paint around the eyes, over skin colour and light (3, M) → colour (3, M), whether the ball is seen (M,)."""
    who, poses = scene.who, scene.poses
    x, y, _ = s.rest
    outward, height = x.abs() - who.eye_x, y - EYE_Y
    blink = poses.blink[s.frame]
    soft = s.footprint
    upper, lower = lid_curves(who, outward, blink)
    inside = torch.minimum(upper - height, height - lower)
    span = edge(who.eye_width - outward.abs(), 0.010 + soft)
    seen = edge(inside, 0.009 + soft) * span
    # the ball turns behind the opening: the centre of the iris moves with the gaze
    dx = x - x.sign() * who.eye_x - 0.050 * poses.gaze_x[s.frame]
    dy = height - 0.004 - 0.026 * poses.gaze_y[s.frame]
    radius = (dx * dx + dy * dy).sqrt()
    w = 0.010 + soft
    veins = 0.80 + 0.20 * smoothstep(outward.abs() / who.eye_width, 1.0, 0.35)
    ball = rgb((0.93, 0.92, 0.90)) * veins
    iris = rgb(who.iris) * (0.75 + 6.0 * radius.clamp(0, 0.06))
    ball = over(ball, edge(IRIS - radius, w), iris)
    ball = over(ball, 0.55 * edge(IRIS - radius, w) * edge(radius - 0.80 * IRIS, 0.02), rgb(who.iris) * 0.2)
    ball = over(ball, edge(0.027 - radius, w), rgb((0.02, 0.02, 0.025)))
    lid_shadow = 0.62 + 0.38 * smoothstep(upper - height, 0.0, 0.035)
    ball = ball * lid_shadow * (0.35 + 0.65 * diffuse)
    glint_x, glint_y = dx - 0.022 * (1 if who.light[0] >= 0 else -1), dy - 0.024
    glint = edge(0.013 - (glint_x * glint_x + glint_y * glint_y).sqrt(), w) * 0.9
    ball = over(ball, glint, torch.ones(3, 1))
    # lids: crease above, lashes along the upper edge, a faint lower edge
    colour = skin
    open_upper, _ = lid_curves(who, outward, torch.zeros_like(blink))
    crease = edge(0.006 - (height - open_upper - 0.036).abs(), 0.014 + soft) * span
    colour = colour * (1 - 0.30 * crease)
    lower_rim = edge(0.006 - (height - lower).abs(), 0.010 + soft) * span
    colour = over(colour, 0.30 * lower_rim, rgb(who.skin) * 0.35)
    colour = over(colour, seen, ball)
    thick = 0.013 + 0.006 * who.makeup
    wing = edge(who.eye_width * (1.05 + 0.08 * who.makeup) - outward.abs(), 0.02 + soft)
    lashes = edge(thick - (height - upper - 0.3 * thick).abs(), 0.010 + soft) * wing
    colour = over(colour, (0.82 + 0.1 * who.makeup) * lashes, rgb((0.07, 0.05, 0.045)))
    return colour, seen > 0.5
