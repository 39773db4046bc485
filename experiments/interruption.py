"""How training takes signals: the step is finished and a checkpoint kept, whoever in its process group got them."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
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


def belong_to_training(worker: int) -> None:
    """Make this process, which reads data, leave Ctrl-C and SIGTERM to the training process, and end when that has.

    torch ends it, too, but learns only when reading begins whose child it is: where the training is killed before, its
    readers would wait for it forever.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()


def end_with_parent() -> None:
    """Make this process end when the one that started it has, even if that is killed."""
    if (parent := multiprocessing.parent_process()) is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: BaseProcess) -> None:
    parent.join()  # a pipe tells; processes started after this one hold its other end, too, and end first
    os._exit(1)


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
