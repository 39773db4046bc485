"""Ctrl-C while training, and the clock of the progress bar."""

import signal
import time
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


class Clock:
    """Images per second and the share of time spent waiting for data, as running means over about 20 steps."""

    def __init__(self) -> None:
        self._begin = self._here = time.perf_counter()
        self._waited = self._spent = 0.0

    def data_is_here(self) -> None:
        """The step's batch has arrived."""
        self._here = time.perf_counter()

    def step_is_done(self, images: int) -> tuple[float, float]:
        """The step is done: images per second, share of waiting (0 to 1)."""
        now = time.perf_counter()
        keep = 0.95 if self._spent else 0.0
        self._waited = keep * self._waited + (1 - keep) * (self._here - self._begin)
        self._spent = keep * self._spent + (1 - keep) * (now - self._begin)
        return images / self._spent, self._waited / self._spent

    def restart(self) -> None:
        """What came since the step (pictures, checkpoints, the held-out loss) does not count."""
        self._begin = time.perf_counter()
