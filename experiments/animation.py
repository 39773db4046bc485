"""Motion transfer over a video: one source picture, driving frames in, generated frames out, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from memcomp.adapters import Host, Keypoints
from memcomp.experiments.data.batching import batched
from memcomp.experiments.errors import UserError


@dataclass(frozen=True)
class Motion:
    """How the driving head's motion becomes the source's."""

    mode: str = "relative"
    """One of the host's `motion_modes`. "relative": the motion since the first driving frame is added to the source's
    keypoints. "absolute": the driving keypoints replace them. "avd" (TPSM): a network keeps the source's shape."""
    adapt_scale: bool = True
    """Scale the relative motion by the ratio of the heads' sizes."""

    def check(self, host: Host) -> None:
        """Raise UserError unless the host has such a motion."""
        if self.mode not in host.motion_modes:
            known = ", ".join(host.motion_modes)
            raise UserError(f"motion: expected one of {known} of the host {host.name!r}, got {self.mode!r}")


def animate(
    host: Host, source: Tensor, poses: Iterable[Tensor], motion: Motion, batch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Generate a video frame by frame; no more than `batch` frames are held.

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
    return Keypoints(keypoints.value[:1], None if keypoints.jacobian is None else keypoints.jacobian[:1])


def _repeat(keypoints: Keypoints, count: int) -> Keypoints:
    jacobian = keypoints.jacobian
    return Keypoints(
        keypoints.value.expand(count, -1, -1), None if jacobian is None else jacobian.expand(count, -1, -1, -1)
    )
