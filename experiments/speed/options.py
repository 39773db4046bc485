"""What `memcomp speed` is asked for. Imports the standard library alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

CHANNELS = {32: 512, 64: 256, 128: 128, 256: 64}  # size in pixels: channels there in a generator of the vox-256 width
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
    half: bool = False
    """Bf16 and fp16 on a CPU too, where they take minutes; elsewhere they are always measured."""


@dataclass(frozen=True)
class TrainingSpeedOptions:
    """What `memcomp speed training` times."""

    overrides: tuple[str, ...] = ()
    """`key=value` words that change the recipe."""
    recipe: str = "fomm_mcnet"
    """Name or path of one with a memory; the host alone is the same without it."""
    size: int = 256
    """Pixels."""
    batch: int = 2
    rounds: int = 5
    """Steps of each that are timed."""
    device: str = "auto"
    output: Path | None = None
    """JSON file for the rows."""


@dataclass(frozen=True)
class DataOptions:
    """What `memcomp speed data` times."""

    root: Path | None = None
    """Folder with train/; none = clips are made."""
    size: int = 256
    """Pixels."""
    pairs: int = 64
    """Loaded for each number."""
    batch: int = 8
    workers: tuple[int, ...] = (0, 2)
    """Numbers of processes that load."""
    step: float = 0.25
    """Seconds that a device works on a batch, for the waiting share."""
    jitter: bool = True
    """Change colours, each by up to 0.1."""
    rounds: int = 3
    clips: int = 4
    """Made, where there is no root."""
    frames: int = 200
    """Of each made clip."""
    key_frames: tuple[int, ...] = (250, 50)
    """Frames from one key frame to the next in made clips that are otherwise as x264 makes them."""
    prepared: int = 10
    """The same in those that are as `memcomp prepare` makes them, whose frames refer to earlier ones only."""
    against: Path | None = None
    """Folder with another installed memcomp, which is timed in turn."""
    output: Path | None = None
    """JSON file for the rows."""
