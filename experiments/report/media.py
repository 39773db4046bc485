"""Pictures and clips as small files that a page can hold in itself."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

from memcomp.experiments.files import atomic_write
from memcomp.experiments.video import Frame, rate_of, write_video

TYPES = {".png": "image/png", ".webm": "video/webm"}


def data_uri(path: Path) -> str:
    """A file as a data: URI; PNG and WebM."""
    return f"data:{TYPES[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"


def save_picture(path: Path, picture: Frame) -> str:
    """Write (H, W, 3) uint8 as PNG; returns the file's name."""
    with atomic_write(path) as temporary:
        Image.fromarray(np.ascontiguousarray(picture)).save(temporary, format="PNG", optimize=True)
    return path.name


def save_heat(path: Path, values: np.ndarray, colours: str, low: float, high: float) -> str:
    """Write (H, W) as a PNG of one pixel a value, coloured from `low` to `high`; NaN is transparent.

    Args:
        path: PNG to write.
        values: (H, W).
        colours: a colour map of matplotlib.
        low: what gets its first colour.
        high: what gets its last.

    Returns:
        the file's name.
    """
    share = np.clip((values - low) / ((high - low) or 1.0), 0, 1)
    index = np.where(np.isnan(share), 0, 1 + np.nan_to_num(share) * 254).round().astype(np.uint8)
    table = matplotlib.colormaps[colours](np.linspace(0, 1, 255))[:, :3]
    image = Image.fromarray(index, mode="L").convert("P")
    image.putpalette([0, 0, 0, *(table * 255).round().astype(int).ravel().tolist()])
    with atomic_write(path) as temporary:
        image.save(temporary, format="PNG", optimize=True, transparency=0)
    return path.name


def save_clip(path: Path, frames: Iterable[Frame] | Sequence[Frame], times: Sequence[float]) -> str:
    """Write frames (H, W, 3) uint8, shown at `times` in seconds, as VP9 in WebM; returns the file's name.

    Not H.264: Chromium as Linux distributions and test tools build it, and Firefox without the system's codecs, cannot
    play that, while VP9 plays in every Chromium and Firefox, and in current Safari.
    """
    with write_video(path, rate_of(times)) as append:
        for frame, time in zip(frames, times, strict=True):
            append(frame, time)
    return path.name
