"""Ctrl-C while training: finish the step, keep a checkpoint."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interruption() -> Iterator[list[int]]:
    """A list that SIGINT or SIGTERM makes non-empty; a second signal interrupts at once."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    previous = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, note)
    except ValueError:  # not the main thread: whoever runs it handles signals
        pass
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def ignore_interrupts(worker: int) -> None:
    """For the processes that read data: the training process decides what Ctrl-C means."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
