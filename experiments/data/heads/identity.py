"""The seeded parameters of one procedural person.

Lengths are in head units (1 = half the height of a head without hair, about 115 mm), colours are RGB in [0, 1].
Sex, age, skin and hair are drawn first and everything else depends on them, so that a beard has the colour of the
hair and rarely meets a fringe.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import partial

Colour = tuple[float, float, float]

SKIN_TONES: tuple[Colour, ...] = (
    (0.95, 0.79, 0.70),
    (0.91, 0.72, 0.60),
    (0.84, 0.63, 0.49),
    (0.74, 0.53, 0.38),
    (0.60, 0.41, 0.29),
    (0.46, 0.31, 0.22),
    (0.36, 0.235, 0.17),
)
DARK_HAIR: tuple[Colour, ...] = ((0.07, 0.055, 0.05), (0.13, 0.09, 0.07), (0.055, 0.055, 0.065))
FAIR_HAIR: tuple[Colour, ...] = (
    (0.13, 0.09, 0.07),
    (0.26, 0.16, 0.10),
    (0.40, 0.26, 0.15),
    (0.72, 0.56, 0.33),
    (0.80, 0.67, 0.45),
    (0.55, 0.22, 0.09),
)
GREY_HAIR: Colour = (0.66, 0.65, 0.63)
DARK_IRIS: tuple[Colour, ...] = ((0.20, 0.12, 0.07), (0.30, 0.19, 0.10))
FAIR_IRIS: tuple[Colour, ...] = (
    (0.30, 0.19, 0.10),
    (0.22, 0.40, 0.56),
    (0.27, 0.45, 0.31),
    (0.42, 0.46, 0.50),
)
HAIRSTYLES = ("bald", "buzz", "short", "swept", "fringe", "bob", "long", "afro")


def _mix(a: Colour, b: Colour, t: float) -> Colour:
    return (a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t, a[2] + (b[2] - a[2]) * t)


@dataclass(frozen=True)
class Identity:
    """One person: shape, colours, hair, clothes, background and light. Hashable; `sample` makes one from a seed."""

    seed: int
    # --- face shape: factors around 1 unless said otherwise
    femininity: float  # in [0, 1]
    age: float  # in [0, 1]
    face_width: float
    jaw_width: float
    jaw_height: float
    cranium_height: float
    cheekbone: float  # in [0, 1]
    chin: float  # how far the chin comes forward, head units
    brow_ridge: float
    nose_length: float
    nose_width: float
    nose_height: float
    ear: float
    eye_x: float  # half the distance of the pupils, head units
    eye_width: float  # half width of the opening
    eye_height: float  # half height of the opening
    eye_tilt: float  # rise of the outer corner over its distance
    brow_y: float  # height above the eye, head units
    brow_thickness: float
    brow_arch: float  # in [0, 1]
    mouth_width: float  # half width, head units
    lip_thickness: float
    # --- surface
    skin: Colour
    lip: Colour
    iris: Colour
    blush: float
    freckles: float
    makeup: float
    noise: tuple[float, float, float, float, float, float]  # phases of the fine patterns, radians
    # --- hair
    hairstyle: str  # one of HAIRSTYLES
    hair: Colour
    brow_colour: Colour
    beard_colour: Colour
    hair_volume: float
    hair_line: float  # height of the hairline on the forehead, head units
    hair_part: float  # where the hair parts, in [-1, 1]
    hair_length: float
    hair_strands: float  # strands over the angle, 1/radian
    beard: float  # opacity in [0, 1]
    beard_length: float  # head units
    moustache: float  # opacity in [0, 1]
    # --- things worn
    glasses: float  # 0 or 1
    glasses_radius: float
    glasses_square: float  # exponent of the lens outline: 2 is round
    glasses_colour: Colour
    cloth: Colour
    cloth_second: Colour
    cloth_stripes: float  # stripes per head unit, 0: plain
    collar: float  # depth of the neckline, head units
    shoulder_width: float
    neck_width: float
    # --- picture
    size: float  # half a head in half pictures
    light: Colour  # direction to the light in camera axes, unit length
    ambient: float
    background: tuple[Colour, Colour, Colour]
    background_kind: int  # 0 gradient, 1 panels, 2 soft lights
    background_angle: float  # radians
    background_phase: tuple[float, float, float, float]

    @classmethod
    def sample(cls, seed: int) -> Identity:
        """Draw the person of a seed, the same one on every machine."""
        rng = random.Random(f"memcomp head {seed}")
        uniform, colour = rng.uniform, partial(_colour, rng)
        female = rng.random() < 0.5
        femininity = min(max(rng.gauss(0.82 if female else 0.18, 0.12), 0.0), 1.0)
        age = rng.random()
        tone = uniform(0, 5.999)
        skin = _mix(SKIN_TONES[int(tone)], SKIN_TONES[int(tone) + 1], tone % 1)
        skin = tuple(min(max(v + rng.gauss(0, 0.01), 0.05), 0.98) for v in skin)  # type: ignore[assignment]
        fair = tone < 2.2
        hair = rng.choice(FAIR_HAIR if fair else DARK_HAIR)
        grey = min(max((age - 0.62) * 2.6, 0.0), 1.0) * uniform(0.3, 1.0)
        hair = _mix(hair, GREY_HAIR, grey)
        hair = _mix(hair, (0.0, 0.0, 0.0), uniform(0.0, 0.12))
        styles = (0, 1, 5, 8, 16, 22, 40, 8) if femininity > 0.5 else (7 + 8 * age, 16, 36, 22, 8, 2, 4, 5)
        hairstyle = rng.choices(HAIRSTYLES, styles)[0]
        hairstyle = "swept" if hairstyle == "afro" and fair else hairstyle
        beard = uniform(0.55, 0.95) if femininity < 0.5 and rng.random() < 0.38 else 0.0
        stubble = (0.12 if max(hair) > 0.3 else 0.26) if femininity < 0.5 and rng.random() < 0.35 else 0.0
        moustache = uniform(0.6, 0.95) if beard > 0 or (femininity < 0.5 and rng.random() < 0.12) else 0.0
        makeup = uniform(0.2, 1.0) if femininity > 0.5 else 0.0
        natural_lip = (skin[0] * 0.86, skin[1] * 0.62, skin[2] * 0.62)
        lip = _mix(natural_lip, (uniform(0.55, 0.78), uniform(0.10, 0.28), uniform(0.18, 0.34)), 0.65 * makeup)
        glasses = float(rng.random() < 0.2)
        light = (uniform(-0.65, 0.65), uniform(0.15, 0.7), 1.0)
        norm = sum(v * v for v in light) ** 0.5
        return cls(
            seed=seed,
            femininity=femininity,
            age=age,
            face_width=uniform(0.93, 1.07) * (1.02 - 0.05 * femininity),
            jaw_width=uniform(0.92, 1.08) * (1.07 - 0.14 * femininity),
            jaw_height=uniform(0.95, 1.05) * (1.03 - 0.06 * femininity),
            cranium_height=uniform(0.97, 1.05),
            cheekbone=uniform(0.1, 0.9),
            chin=uniform(-0.03, 0.05),
            brow_ridge=uniform(0.5, 1.4) * (1.35 - 0.9 * femininity),
            nose_length=uniform(0.9, 1.12) * (1.03 - 0.07 * femininity),
            nose_width=uniform(0.82, 1.2) * (1.06 - 0.14 * femininity) * (1.0 + 0.03 * tone),
            nose_height=uniform(0.82, 1.2) * (1.07 - 0.14 * femininity) * (1.05 - 0.03 * tone),
            ear=uniform(0.88, 1.12) * (1.04 - 0.1 * femininity),
            eye_x=uniform(0.262, 0.298),
            eye_width=uniform(0.128, 0.150) * (0.98 + 0.06 * femininity),
            eye_height=uniform(0.048, 0.064) * (0.95 + 0.20 * femininity),
            eye_tilt=uniform(-0.06, 0.16),
            brow_y=uniform(0.155, 0.195) + 0.015 * femininity,
            brow_thickness=uniform(0.026, 0.040) * (1.15 - 0.45 * femininity),
            brow_arch=uniform(0.2, 0.7) + 0.3 * femininity,
            mouth_width=uniform(0.20, 0.25),
            lip_thickness=uniform(0.045, 0.064) * (0.92 + 0.2 * femininity) * (0.95 + 0.05 * tone),
            skin=skin,
            lip=lip,
            iris=rng.choice(FAIR_IRIS if fair else DARK_IRIS),
            blush=uniform(0.1, 0.45) + 0.3 * makeup,
            freckles=uniform(0.4, 1.0) if fair and rng.random() < 0.3 else 0.0,
            makeup=makeup,
            noise=tuple(uniform(0, 6.283) for _ in range(6)),  # type: ignore[arg-type]
            hairstyle=hairstyle,
            hair=hair,
            brow_colour=_mix(hair, (0.08, 0.06, 0.05), 0.35 if grey < 0.4 else 0.15),
            beard_colour=_mix(hair, (hair[0] * 1.1 + 0.02, hair[1], hair[2]), uniform(0, 0.8)),
            hair_volume=uniform(0.7, 1.3),
            hair_line=uniform(0.56, 0.68) + 0.06 * age * (1 - femininity) - 0.04 * (1 - 2 * abs(femininity - 0.5)),
            hair_part=uniform(-1, 1),
            hair_length=uniform(0.85, 1.25),
            hair_strands=uniform(10, 17),
            beard=beard if beard > 0 else stubble,
            beard_length=uniform(0.01, 0.045) if beard > 0 else 0.0,
            moustache=moustache,
            glasses=glasses,
            glasses_radius=uniform(0.185, 0.215),
            glasses_square=uniform(2.0, 4.5),
            glasses_colour=colour(0.02, 0.12) if rng.random() < 0.6 else colour(0.05, 0.5),
            cloth=colour(0.08, 0.8, 0.8),
            cloth_second=colour(0.08, 0.8, 0.8),
            cloth_stripes=uniform(4, 9) if rng.random() < 0.35 else 0.0,
            collar=uniform(0.04, 0.3),
            shoulder_width=uniform(0.92, 1.08) * (1.08 - 0.16 * femininity),
            neck_width=uniform(0.94, 1.06) * (1.1 - 0.2 * femininity),
            size=uniform(0.66, 0.72),
            light=(light[0] / norm, light[1] / norm, light[2] / norm),
            ambient=uniform(0.42, 0.56),
            background=(colour(0.12, 0.85, 0.45), colour(0.12, 0.85, 0.45), colour(0.2, 0.9, 0.5)),
            background_kind=rng.randrange(3),
            background_angle=uniform(0, 3.1416),
            background_phase=tuple(uniform(0, 6.283) for _ in range(4)),  # type: ignore[arg-type]
        )


def _colour(rng: random.Random, low: float, high: float, saturation: float = 1.0) -> Colour:
    c = (rng.uniform(low, high), rng.uniform(low, high), rng.uniform(low, high))
    mean = sum(c) / 3
    return _mix((mean, mean, mean), c, saturation)
