"""Colours of videos that are not sRGB: HDR curves (BT.2100 PQ and HLG) and wide primaries, brought to sRGB.

White is 203 cd/m² (BT.2408), which is 75 % of the HLG signal; what is brighter is cut. Colours that sRGB does not have
are cut too. SDR video in the primaries of BT.709 or BT.601 is sRGB as it is.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

WHITE = 203.0  # cd/m²
PQ, HLG = 16, 18  # transfer characteristics of ITU-T H.273
TRANSFERS = {PQ: "HDR (PQ)", HLG: "HDR (HLG)"}
# linear RGB of other primaries → linear RGB of BT.709, by their number in ITU-T H.273
BT2020, P3 = 9, 12
PRIMARIES = {
    BT2020: ((1.660491, -0.587641, -0.072850), (-0.124550, 1.132900, -0.008349), (-0.018151, -0.100579, 1.118730)),
    P3: ((1.224940, -0.224940, 0.0), (-0.042057, 1.042057, 0.0), (-0.019638, -0.078636, 1.098274)),
}
LUMINANCE = np.array((0.2627, 0.6780, 0.0593), np.float32)  # of BT.2020
LEVELS = 4096  # in which light is encoded again
ROWS = 128  # converted at once

Array = npt.NDArray[Any]


def name_of(transfer: int, primaries: int) -> str | None:
    """Name the colours of a video as a warning does; None if they are sRGB's as they are."""
    return TRANSFERS.get(transfer) or ("wide-gamut colours" if primaries in PRIMARIES else None)


def to_srgb(signal: npt.NDArray[np.uint16], transfer: int, primaries: int) -> npt.NDArray[np.uint8]:
    """Bring R'G'B' of full range to sRGB.

    Args:
        signal: (H, W, 3) uint16.
        transfer: `PQ`, `HLG`, or anything else for an SDR curve.
        primaries: a key of `PRIMARIES`, or anything else for sRGB's own.

    Returns:
        (H, W, 3) uint8.
    """
    matrix = np.array(PRIMARIES.get(primaries, np.eye(3)), np.float32).T
    linear, encoded = _linear(transfer), _encoded()
    result = np.empty(signal.shape, np.uint8)
    for row in range(0, len(signal), ROWS):  # a picture in 4K would be 100 MB in each step
        light = linear[signal[row : row + ROWS]]
        if transfer == HLG:  # the display's light from the scene's, for a display of 1000 cd/m²
            light *= (light @ LUMINANCE)[..., None] ** np.float32(0.2) * np.float32(1000 / WHITE)
        place = np.sqrt((light @ matrix).clip(0, 1)) * (LEVELS - 1)
        result[row : row + ROWS] = encoded[(place + 0.5).astype(np.uint16)]
    return result


@cache
def _linear(transfer: int) -> Array:
    """Tabulate light (white = 1; of HLG the scene's) by the signal's 16 bits."""
    signal = np.arange(65536) / 65535
    if transfer == PQ:
        power = signal ** (1 / 78.84375)
        light = (np.maximum(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)) ** (1 / 0.1593017578125)
        light *= 10_000 / WHITE
    elif transfer == HLG:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        light = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    else:
        light = np.where(signal <= 0.04045, signal / 12.92, ((signal + 0.055) / 1.055) ** 2.4)
    return light.astype(np.float32)


@cache
def _encoded() -> Array:
    """Tabulate sRGB's 8 bits by the square root of light, which keeps the shadows apart."""
    light = (np.arange(LEVELS) / (LEVELS - 1)) ** 2
    signal = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return (signal * 255).round().astype(np.uint8)
