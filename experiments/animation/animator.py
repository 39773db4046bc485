"""Motion transfer: one source picture and driving frames in, generated frames out, a batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from memcomp.adapters import Host, HostOutput, Keypoints
from memcomp.experiments.animation.motion import Motion
from memcomp.experiments.animation.track import Track
from memcomp.experiments.data.batching import batched
from memcomp.experiments.errors import UserError

FIRST = "the driving video's first frame"
Smoother = Callable[[Keypoints], Keypoints]


class Animator:
    """A host with one source picture, all of which is computed that no driving frame changes.

    Args:
        host: in eval mode; weights, mode and hooks must stay as they are while it is used.
        source: (3, H, W) in [0, 1].
        motion: how it is transferred.
        dtype: in which pictures are generated (autocast); keypoints are always found in the host's own precision.
        compiled: generate by torch.compile; batches should then be of one size.

    Attributes:
        keypoints: of the source, (1, K, 2), on the host's device.

    Raises:
        UserError: the host has no such motion, or refuses such a picture (one that needs its depth, or of that size).
    """

    def __init__(
        self,
        host: Host,
        source: Tensor,
        motion: Motion,
        *,
        dtype: torch.dtype = torch.float32,
        compiled: bool = False,
    ) -> None:
        motion.check(host)
        self.host, self.motion, self.dtype, self.compiled = host, motion, dtype, compiled
        self.device = next(host.parameters()).device
        self._generate = _compiled(host.generate_from) if compiled else host.generate_from
        try:
            with torch.inference_mode():
                pictures = source[None].to(self.device)
                with self._precision():
                    encoded = host.encode_source(pictures)
                if dtype != torch.float32:  # keypoints are coordinates: half precision has too few steps for them
                    encoded = replace(encoded, keypoints=host.keypoints(pictures))
        except ValueError as error:
            raise UserError(f"the host {host.name!r}: {error}") from None
        self._encoded = encoded
        self.keypoints: Keypoints = encoded.keypoints

    def detect(self, poses: Sequence[Tensor]) -> Keypoints:
        """Keypoints of driving frames, (3, H, W) in [0, 1] each → (B, K, 2) on the host's device."""
        with torch.inference_mode():
            return self.host.keypoints(torch.stack(list(poses)).to(self.device))

    def render(self, kp_driving: Keypoints, reference: Keypoints, name: str = FIRST) -> Tensor:
        """Generate the source in driving poses.

        Args:
            kp_driving: (B, K, 2), on any device.
            reference: of the driving frame from which relative motion counts, (1, K, 2).
            name: what an error calls that frame.

        Returns:
            (B, 3, H, W) in [0, 1], float32, on the CPU.

        Raises:
            UserError: values that are not finite; keypoints that span no area to adapt the scale by.
        """
        motion = self.motion
        further = {} if motion.mode in Host.motion_modes else {"mode": motion.mode}
        relative = motion.mode == "relative"
        kp_driving, reference = kp_driving.to(self.device), reference.to(self.device)
        with torch.inference_mode():
            try:
                if any(motion.turn):
                    kp_driving = self.host.turned(kp_driving, torch.tensor(motion.turn))
                moved = self.host.transfer_motion(
                    self.keypoints, kp_driving, reference, relative=relative, adapt_scale=motion.adapt_scale, **further
                )
            except ValueError as error:
                raise UserError(f"{name if relative else f'motion {motion.mode}'}: {error}") from None
            return self._made(moved)

    def view(self, degrees: Tensor) -> Tensor:
        """The source turned by yaw, pitch and roll (B, 3) from how it is held, (B, 3, H, W) in [0, 1] on the CPU.

        Raises:
            UserError: the host has no free view, or makes values that are not finite.
        """
        with torch.inference_mode():
            try:
                turned = self.host.turned(self.keypoints.expand(len(degrees)), degrees)
            except ValueError as error:
                raise UserError(str(error)) from None
            return self._made(turned)

    def _made(self, moved: Keypoints) -> Tensor:
        """The source with these keypoints, (B, 3, H, W), float32, on the CPU."""
        with self._precision():
            results = self._generate(self._encoded, moved).prediction.float().cpu()
        if not bool(results.isfinite().all()):
            raise UserError("the host generates values that are not finite for this source and driving video")
        return results

    def frames(
        self,
        poses: Iterable[Tensor],
        batch: int = 1,
        *,
        track: Track | None = None,
        reference: int = 0,
        smoother: Smoother | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each driving frame and what is made of it, as `animate` does; see `move`."""
        moved = move([self], poses, batch, track=track, references=[reference], smoother=smoother)
        return ((pose, results[0]) for pose, results in moved)

    def itself(self) -> Tensor:
        """The source without motion, as the host makes it, (3, H, W) in [0, 1] on the CPU."""
        with torch.inference_mode(), self._precision():
            return self._generate(self._encoded, self.keypoints).prediction[0].float().cpu()

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)


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
    yield from Animator(host, source, motion).frames(poses, batch)


def move(
    animators: Sequence[Animator],
    poses: Iterable[Tensor],
    batch: int = 1,
    *,
    track: Track | None = None,
    references: Sequence[int] = (),
    smoother: Smoother | None = None,
) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Yield each driving frame and what is made of it of every source; a batch of 1 is for live use.

    Args:
        animators: of one host, a source each.
        poses: driving frames, (3, H, W) in [0, 1] each, read no further than a batch ahead.
        batch: frames generated at once.
        track: keypoints of these very frames, found before; without it they are found here.
        references: with a track, the frame that each source's relative motion counts from; otherwise it is the first.
        smoother: smooths keypoints as they come, such as a `CausalSmoother`.

    Raises:
        UserError: as `Animator.render`.
    """
    first, done = None, 0
    for group in batched(poses, batch):
        found = animators[0].detect(group) if track is None else track.keypoints(done, done + len(group))
        found = found if smoother is None else smoother(found)
        first = first or found.each(lambda x: x[:1])
        results = []
        for number, animator in enumerate(animators):
            reference, name = first, FIRST
            if track is not None and references and references[number]:
                reference = track.keypoints(references[number])
                name = f"the driving video's frame {references[number]}"
            results.append(animator.render(_padded(found, batch if animator.compiled else 0), reference, name))
        done += len(group)
        for number, pose in enumerate(group):
            yield pose, [result[number] for result in results]


def _compiled(generate: Callable[..., HostOutput]) -> Callable[..., HostOutput]:
    """What torch.compile makes of a function; it compiles, or finds that it cannot, at the first call."""
    from torch._dynamo.exc import BackendCompilerFailed  # takes seconds

    compiled = torch.compile(generate)

    def call(*inputs: object) -> HostOutput:
        try:
            return compiled(*inputs)
        except BackendCompilerFailed as error:
            why = str(getattr(error, "inner_exception", error)).strip().splitlines()[0]
            raise UserError(
                f"compile: expected what torch.compile needs, a C++ compiler (CXX, g++) and on a GPU Triton: {why}"
            ) from None

    return call


def _padded(keypoints: Keypoints, count: int) -> Keypoints:
    """At least `count` keypoints, the last repeated: another batch size would be compiled anew."""
    missing = count - len(keypoints.value)
    if missing <= 0:
        return keypoints
    return keypoints.each(lambda x: torch.cat([x, x[-1:].expand(missing, *x.shape[1:])]))
