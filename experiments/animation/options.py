"""What `memcomp animate` is asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from memcomp.experiments.animation.motion import Motion
from memcomp.experiments.files import untaken
from memcomp.experiments.video import is_pipe

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class AnimationOptions:
    """What `memcomp animate` is asked for."""

    checkpoint: str
    """Trained host: see `read_trained`."""
    sources: tuple[Path, ...]
    """Pictures."""
    drivings: tuple[Path, ...]
    """Videos, or folders of pictures; none: the sources are turned, see `turning`. A pipe ("-" is the standard
    input) comes alone and becomes one result: it shows each frame once."""
    output: Path
    """mp4, webm or gif file, or a folder of PNG; with several results a folder of them. Each appears when it is done,
    or when it is interrupted."""
    motion: Motion = field(default_factory=Motion)
    best_frame: bool | None = None
    """Let relative motion count from the driving frame most like the source; None = if the motion is relative.
    Never of a pipe."""
    smooth: float = 0
    """Seconds over which the driving keypoints are averaged, before and after each frame; of a pipe before it alone, so
    that the motion comes about as late. 0 = not."""
    crop: str | None = None
    """The square of the source, see `find_square`; None = the largest centred one."""
    face: int | None = None
    """Which of several faces, from 1 on."""
    crop_driving: str | None = None
    """The square of the driving video, by its first frame."""
    paste: bool = False
    """Put the result back into the whole source picture."""
    size: int | None = None
    """Height and width of the host's pictures; None = those that it was trained with."""
    side_by_side: bool = False
    """Source, driving frame and result beside each other."""
    labels: bool = False
    """Say above each column what it is."""
    grid: bool = False
    """All sources in one video for each driving video."""
    form: str = "mp4"
    """Of several results: mp4, webm, gif or png."""
    contact_sheet: bool = False
    """Also draw some frames of each result as a picture beside it."""
    batch: int = 8
    """Frames generated at once."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    dtype: str = "float32"
    """In which pictures are generated: one of `DTYPES`."""
    compile: bool = False
    """Generate by torch.compile."""

    @cached_property
    def piped(self) -> bool:
        """Whether the driving video comes through a pipe; asked once, since its writer may take its name away."""
        return any(is_pipe(path) for path in self.drivings)

    @property
    def wants_best_frame(self) -> bool:
        """Whether a reference is to be chosen; only relative motion has one, and who sees each frame once cannot."""
        relative = self.motion.mode == "relative"
        return relative and not self.piped and (self.best_frame is None or self.best_frame)

    @property
    def wants_track(self) -> bool:
        """Whether the whole driving video must be looked at before its first frame is generated."""
        return self.wants_best_frame or (self.smooth > 0 and not self.piped)

    def jobs(self) -> list[Job]:
        """The videos to write of driving videos."""
        groups = [self.sources] if self.grid else [(source,) for source in self.sources]
        pairs = [(group, driving) for driving in self.drivings for group in groups]
        if len(pairs) == 1:
            return [Job(*pairs[0], self.output)]
        suffix = "" if self.form == "png" else f".{self.form}"
        jobs, taken = list[Job](), set[str]()
        for group, driving in pairs:
            name = untaken(driving.stem if self.grid else f"{group[0].stem}_{driving.stem}", taken)
            taken.add(name)
            jobs.append(Job(group, driving, self.output / f"{name}{suffix}"))
        return jobs


@dataclass(frozen=True)
class Job:
    """One video to write."""

    sources: tuple[Path, ...]
    driving: Path
    output: Path
