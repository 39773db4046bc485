"""What `memcomp speed` is asked for. Imports the standard library alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

CHANNELS = {64: 256, 128: 128, 256: 64}  # size in pixels: channels there in a generator of the vox-256 width
MODES = {"inference": "forward", "training": "forward + backward", "training_eq4": "the same with Eq. 4's loss"}


@dataclass(frozen=True)
class CompensationOptions:
    """What `memcomp speed compensation` times."""

    sizes: tuple[int, ...] = tuple(CHANNELS)
    modes: tuple[str, ...] = tuple(MODES)
    repeats: int = 7
    threads: int = 0
    """CPU threads; 0 = torch's own number."""
    memory_channels: int = 512
    peak: bool = True
    """Also measure the peak memory, where /proc tells it."""
    output: Path | None = None
    """JSON file for the rows."""


@dataclass(frozen=True)
class AnimationSpeedOptions:
    """What `memcomp speed animate` times."""

    hosts: tuple[str, ...] = ("fomm", "tpsm")
    """Names, as published for VoxCeleb."""
    size: int = 256
    """Pixels."""
    frames: int = 200
    batch: int = 8
    device: str = "auto"
    minutes: float = 0
    """Of a driving video whose peak memory is compared with one of 10 seconds; 0 = none."""
    output: Path | None = None
    """JSON file for the rows."""


@dataclass(frozen=True)
class HostsOptions:
    """What `memcomp speed hosts` measures."""

    output: Path
    """Folder of hosts.json."""
    overrides: tuple[str, ...] = ()
    """`key=value` words that change every recipe."""
    recipes: tuple[str, ...] = ()
    """Names; none = all that are not demo/."""
    size: int = 256
    """Pixels."""
    steps: int = 20
    batch: int = 4
    device: str = "auto"
    compile: bool = True
