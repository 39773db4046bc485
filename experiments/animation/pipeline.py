"""Threads around the host: frames are made ahead of it and written behind it, a bounded number at a time."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")
_END = object()
POLL = 0.1  # seconds after which a waiting thread looks whether the other is gone


def read_ahead(items: Iterable[T], depth: int) -> Generator[T, None, None]:
    """Yield what `items` yields, taken in a thread of its own up to `depth` ahead.

    An exception of `items` comes after what was yielded before it. The thread ends with the generator.
    """
    ready: queue.Queue[Any] = queue.Queue(depth)
    gone, failed = threading.Event(), list[BaseException]()

    def put(item: Any) -> bool:
        while not gone.is_set():
            try:
                ready.put(item, timeout=POLL)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put(item):
                    return
        except BaseException as error:  # handed over, whatever it is
            failed.append(error)
        put(_END)

    thread = threading.Thread(target=work, name="read ahead", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not _END:
            yield item
        if failed:
            raise failed[0]
    finally:
        gone.set()
        thread.join()


@contextmanager
def write_behind(write: Callable[..., object], depth: int) -> Iterator[Callable[..., None]]:
    """Yield a function that hands its arguments to `write` in a thread of its own, in order, up to `depth` ahead.

    An exception of `write` is raised by the next call, or at the block's end, which waits for all calls.
    """
    waiting: queue.Queue[Any] = queue.Queue(depth)
    failed: list[BaseException] = []

    def work() -> None:
        while (arguments := waiting.get()) is not _END:
            if not failed:
                try:
                    write(*arguments)
                except BaseException as error:  # handed over, whatever it is
                    failed.append(error)

    thread = threading.Thread(target=work, name="write behind", daemon=True)
    thread.start()

    def later(*arguments: Any) -> None:
        if failed:
            raise failed[0]
        waiting.put(arguments)

    try:
        yield later
    finally:
        waiting.put(_END)
        thread.join()
    if failed:
        raise failed[0]
