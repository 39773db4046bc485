"""A source picture turned to another view, without a driving video."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import torch

from memcomp.experiments.animation.animator import Animator
from memcomp.experiments.animation.files import SYNTHETIC, Animated, Say, animator_of, square_of
from memcomp.experiments.animation.files import Source as Picture
from memcomp.experiments.animation.options import AnimationOptions
from memcomp.experiments.checkpoints.trained import read_trained
from memcomp.experiments.files import writable_folder
from memcomp.experiments.interruption import interruption
from memcomp.experiments.processes import resolve_device
from memcomp.experiments.video import SOUNDING, Frame, even, form_of, read_picture, to_frame, write_frames

RATE = 25  # frames per second, and frames of a turn


def turn_files(options: AnimationOptions, warn: Say = lambda text: None) -> Iterator[Animated]:
    """Write a second of the source's head that turns from how it is held by the degrees of `Motion.turn`.

    Its first frame is the source as the host makes it, its last one the view that was asked for.

    Args:
        options: what is asked for; those of a driving video do not count.
        warn: told what the picture's own words made necessary.

    Yields:
        what was written.

    Raises:
        UserError: a file that cannot be read or written; a host without a free view.
    """
    (path,) = options.sources
    frame = read_picture(path, warn)
    trained = read_trained(options.checkpoint)
    host = trained.host(resolve_device(options.device))
    options.motion.check(host)
    form = form_of(options.output)
    writable_folder(options.output.parent)
    source = Picture(path, frame, square_of(path, frame, options))
    animator = animator_of(host, source, options.size or trained.size, options)
    shape, count = (0, 0), 0
    with interruption() as stop, write_frames(options.output, Fraction(RATE), SYNTHETIC) as append:
        for picture in views(animator, options):
            picture = even(picture) if form in SOUNDING else picture
            append(picture)
            shape, count = (picture.shape[0], picture.shape[1]), count + 1
            if stop:
                break
    yield Animated(
        path=options.output,
        frames=count,
        size=shape,
        pace=str(append.pace),
        sound=False if form in SOUNDING else None,
        references=(),
        broken=None,
        expected=RATE,
        interrupted=bool(stop),
    )


def views(animator: Animator, options: AnimationOptions) -> Iterator[Frame]:
    """The frames of a turn, in equal steps, (H, W, 3) uint8."""
    steps = torch.linspace(0, 1, RATE)[:, None] * torch.tensor(options.motion.turn)  # (T, 3)
    for part in steps.split(options.batch):
        for picture in animator.view(part):
            yield to_frame(picture)
