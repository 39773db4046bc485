"""How training takes signals: the step is finished and a checkpoint kept, whoever in its process group got them."""

import multiprocessing
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interruption() -> Iterator[list[int]]:
    """Yield a list that SIGINT or SIGTERM makes non-empty.

    A second SIGINT interrupts at once; schedulers, which may send SIGTERM more than once, never do.
    """
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and number in received:
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
    """Make a process that reads data ignore Ctrl-C and SIGTERM: the training process decides what they mean."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def no_worker_left() -> Iterator[None]:
    """End, when the block is left, processes that were started in it and have not ended when they were asked to.

    Those that read data ignore SIGTERM, by which Python would end them, and would wait for them, as it ends itself.
    """
    before = {child.pid for child in multiprocessing.active_children()}
    try:
        yield
    finally:
        for child in multiprocessing.active_children():
            if child.pid not in before:
                child.kill()
                child.join()
