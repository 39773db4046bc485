"""The options of `memcomp prepare`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

NOT_THE_CLIPS = ("test_share", "seed", "same_person", "workers", "videos", "shared_people")


@dataclass(frozen=True)
class PrepareOptions:
    """How clips are made of raw videos, and how people are split."""

    size: int = 256
    """Height and width of the clips."""
    rate: float = 25.0
    """Frames per second of the clips, whatever their videos have."""
    increase: float = 0.1
    """Share of the box's longer side that the square is larger by, on each side."""
    min_frames: int = 64
    """Shorter segments are left out."""
    max_frames: int = 1024
    """Longer segments are divided."""
    least_head: int | None = None
    """Pixels: smaller heads, by the height of their box, end a segment; None = three quarters of `size`."""
    iou: float = 0.25
    """A box that overlaps less with the first of its segment ends it."""
    gap: int = 3
    """Frames in a row without the head that do not end a segment."""
    every: int = 5
    """Frames from one look at the whole picture to the next; between them is looked around the known heads."""
    ignore: tuple[str, ...] = ()
    """Policies that are not followed: see `segments.POLICIES`."""
    key_frames: int = 10
    """Frames from one key frame to the next in what is written."""
    backends: tuple[str, ...] = ()
    """KEY=VALUE for `backends.choose`: what finds heads and tells people."""
    test_share: float = 0.1
    """Share of the people who go to test/, as far as the input does not say."""
    seed: int = 0
    """Decides who these are."""
    same_person: float = 0.45
    """Distance of identity codes up to which segments are of one person, where the input does not say."""
    workers: int | None = None
    """Processes; None = one for each core, 0 = this one."""
    videos: Path | None = None
    """Folder of the videos of a metadata CSV; None = the CSV's."""
    shared_people: bool = False
    """Whether a person may be in both train/ and test/."""

    @property
    def least(self) -> int:
        """Height in pixels of the smallest head taken."""
        return self.least_head or 3 * self.size // 4

    def of_clips(self) -> dict[str, Any]:
        """What decides which clips are written and how, as JSON has it."""
        kept = {name: value for name, value in asdict(self).items() if name not in NOT_THE_CLIPS}
        return kept | {"least_head": self.least, "ignore": sorted(self.ignore), "backends": list(self.backends)}
