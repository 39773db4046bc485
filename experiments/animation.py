"""Motion transfer: one source picture and driving frames in, generated frames out, a batch at a time.

`animate_video` goes from files to a file; `animate` from tensors to tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from memcomp.adapters import Host, Keypoints
from memcomp.experiments.checkpoints.trained import read_trained
from memcomp.experiments.data.batching import batched
from memcomp.experiments.errors import UserError
from memcomp.experiments.files import writable_folder
from memcomp.experiments.processes import resolve_device
from memcomp.experiments.video import Frames, Timetable, fit, keep_audio, read_picture, to_frame, write_video


@dataclass(frozen=True)
class Motion:
    """How the driving head's motion becomes the source's."""

    mode: str = "relative"
    """One of the host's `motion_modes`. "relative": the motion since the first driving frame is added to the source's
    keypoints. "absolute": the driving keypoints replace them. "avd": a network of TPSM or MRAA keeps the source's
    shape."""
    adapt_scale: bool = True
    """Scale the relative motion by the ratio of the heads' sizes."""

    def check(self, host: Host) -> None:
        """Raise UserError unless the host has such a motion."""
        if self.mode not in host.motion_modes:
            known = ", ".join(host.motion_modes)
            raise UserError(f"motion: expected one of {known} of the host {host.name!r}, got {self.mode!r}")


@dataclass(frozen=True)
class Animated:
    """A video that was written.

    Attributes:
        frames: how many.
        size: their height and width.
        pace: what to say of their times, such as "at 25 per second".
        sound: whether the driving video's sound is in it.
        broken: why it is incomplete, with both numbers of frames; None if it is not.
    """

    frames: int
    size: int
    pace: str
    sound: bool
    broken: str | None


def animate_video(
    checkpoint: str,
    source: Path,
    driving: Path,
    output: Path,
    motion: Motion,
    *,
    side_by_side: bool = False,
    batch: int = 8,
    device: str = "auto",
    warn: Callable[[str], None] = lambda text: None,
) -> Animated:
    """Write a video of the source picture's face that moves as the driving video's does, at its times, with its sound.

    Args:
        checkpoint: trained host: see `read_trained`.
        source: picture.
        driving: video, or folder of pictures.
        output: mp4 file; it appears when all frames are done.
        motion: how it is transferred.
        side_by_side: source, driving frame and result beside each other.
        batch: frames generated at once.
        device: auto, cpu, cuda or mps.
        warn: told what a file's own words made necessary, such as a conversion of its colours.

    Raises:
        UserError: a file that cannot be read or written; what `animate` refuses.
    """
    face, frames = read_picture(source, warn), Frames(driving, warn)
    trained = read_trained(checkpoint)
    host = trained.host(resolve_device(device))
    motion.check(host)  # before the first line of progress
    writable_folder(output.parent)
    picture, times = fit(face, trained.size), Timetable()
    poses = (fit(frame, trained.size) for frame in times.pictures(frames.timed()))
    bar = tqdm(total=frames.length, unit=" frames", desc="animate")
    with bar, write_video(output, frames.frame_rate) as append:
        for pose, result in animate(host, picture, poses, motion, batch):
            append(to_frame(torch.cat([picture, pose, result], dim=-1) if side_by_side else result), *times.next())
            bar.update()
    sound = keep_audio(output, driving, output, times.start, append.end if times.broken else None)
    return Animated(int(bar.n), trained.size, str(append.pace), sound, str(times.broken) if times.broken else None)


def animate(
    host: Host, source: Tensor, poses: Iterable[Tensor], motion: Motion, batch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Generate the frames of a video one after the other; no more than `batch` of them are held.

    Args:
        host: in eval mode.
        source: (3, H, W) in [0, 1].
        poses: driving frames, (3, H, W) in [0, 1] each; relative motion counts from the first.
        motion: how it is transferred.
        batch: frames generated at once.

    Yields:
        driving frame and result, (3, H, W) in [0, 1] each, on the CPU.

    Raises:
        UserError: the host has no such motion, refuses such pictures (one that needs their depth), or generates values
            that are not finite; its keypoints span no area to adapt the scale by.
    """
    motion.check(host)
    further = {} if motion.mode in Host.motion_modes else {"mode": motion.mode}
    device = next(host.parameters()).device
    try:
        with torch.inference_mode():
            kp_source = host.keypoints(source[None].to(device))
    except ValueError as error:
        raise UserError(f"the host {host.name!r}: {error}") from None
    initial = None
    for group in batched(poses, batch):
        with torch.inference_mode():  # not around the yield: the caller's code should not run inside
            kp_driving = host.keypoints(torch.stack(group).to(device))
            initial = initial or _first(kp_driving)
            try:
                relative = motion.mode == "relative"
                moved = host.transfer_motion(
                    kp_source, kp_driving, initial, relative=relative, adapt_scale=motion.adapt_scale, **further
                )
            except ValueError as error:
                where = "the driving video's first frame" if relative else f"motion {motion.mode}"
                raise UserError(f"{where}: {error}") from None
            images = source.to(device).expand(len(group), -1, -1, -1)
            results = host.generate(images, _repeat(kp_source, len(group)), moved).prediction.float().cpu()
        if not bool(results.isfinite().all()):
            raise UserError("the host generates values that are not finite for this source and driving video")
        yield from zip(group, results, strict=True)


def _first(keypoints: Keypoints) -> Keypoints:
    return keypoints.each(lambda x: x[:1])


def _repeat(keypoints: Keypoints, count: int) -> Keypoints:
    return keypoints.each(lambda x: x.expand(count, *x.shape[1:]))
