"""What `memcomp animate` is asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from memcomp.experiments.animation.motion import Motion


@dataclass(frozen=True)
class AnimationOptions:
    """What `memcomp animate` is asked for."""

    checkpoint: str
    """Trained host: see `read_trained`."""
    source: Path
    """Picture."""
    driving: Path
    """Video, or folder of pictures."""
    output: Path
    """mp4 file; it appears when all frames are done, or those before an interruption."""
    motion: Motion = field(default_factory=Motion)
    best_frame: bool | None = None
    """Let relative motion count from the driving frame most like the source; None = if the motion is relative."""
    smooth: float = 0
    """Seconds over which the driving keypoints are averaged; 0 = not."""
    side_by_side: bool = False
    """Source, driving frame and result beside each other."""
    batch: int = 8
    """Frames generated at once."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""

    @property
    def wants_best_frame(self) -> bool:
        """Whether a reference is to be chosen; only relative motion has one."""
        relative = self.motion.mode == "relative"
        return relative and (self.best_frame is None or self.best_frame)

    @property
    def wants_track(self) -> bool:
        """Whether the whole driving video must be looked at before its first frame is generated."""
        return self.wants_best_frame or self.smooth > 0
