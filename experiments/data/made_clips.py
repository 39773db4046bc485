"""Clips to time the loading of: a photograph that comes with scikit-image, panned over, with a little grain."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import torch.nn.functional as F

from memcomp.experiments.video import Frame, write_video

RATE = 25  # frames a second


def moving(seed: int, frames: int, size: int) -> Iterator[Frame]:
    """Frames (size, size, 3) uint8 of a window that wanders over the photograph."""
    from skimage.data import astronaut

    photograph = torch.from_numpy(astronaut()).permute(2, 0, 1)[None].float()
    random = np.random.default_rng(seed)
    phases = random.uniform(0, 2 * np.pi, 2)
    for number in range(frames):
        top, left = (int(64 + 40 * np.sin(phase + number / 25)) for phase in phases)
        window = photograph[..., top : top + 360, left : left + 360]
        picture = F.interpolate(window, (size, size), mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()
        yield (picture + random.normal(0, 2, picture.shape)).clip(0, 255).astype(np.uint8)


def encode(path: Path, frames: Iterator[Frame], key_frames: int) -> None:
    """Write frames (size, size, 3) as x264 does by default, in mp4, a key frame every so many."""
    first = next(frames)
    with av.open(str(path), "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=RATE, options={"crf": "16", "g": str(key_frames)})
        stream.pix_fmt, (stream.height, stream.width, _) = "yuv420p", first.shape
        for frame in chain([first], frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def as_prepared(path: Path, frames: Iterator[Frame], key_frames: int) -> None:
    """Write frames (size, size, 3) as `memcomp prepare` writes clips."""
    with write_video(path, RATE, key_frames=key_frames, threads=1) as append:
        for frame in frames:
            append(frame)
