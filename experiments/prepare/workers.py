"""Inputs worked through by several processes, each of which remembers what it has done."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import active_children, get_context
from pathlib import Path

import torch
from tqdm import tqdm

from memcomp.experiments.backends.choose import create_backend, read_choices
from memcomp.experiments.errors import CannotWrite, Incomplete, UserError
from memcomp.experiments.interruption import end_with_parent
from memcomp.experiments.prepare.inputs import Input
from memcomp.experiments.prepare.options import PrepareOptions
from memcomp.experiments.prepare.records import Records
from memcomp.experiments.prepare.work import Tools, fetched, prepare_input


@dataclass(frozen=True)
class Task:
    """What every process is told."""

    output: Path
    options: PrepareOptions
    heads: bool
    """Whether heads have to be found."""
    people: bool
    """Whether people have to be told apart."""

    def tools(self) -> Tools:
        """Make the backends.

        Raises:
            UserError: one is unknown, or cannot be used here.
        """
        chosen = read_choices(self.options.backends)
        return Tools(
            create_backend("heads", chosen) if self.heads else None,
            create_backend("identity", chosen) if self.people else None,
        )


class Worker:
    """Does one input after the other, and remembers each."""

    def __init__(self, task: Task) -> None:
        self._records, self._options, self._tools = Records(task.output), task.options, task.tools()

    def __call__(self, one: Input) -> str:
        """Make an input's clips and write its record; returns why there is none, if so: it is tried again then."""
        folder = self._records.staging(one.name)
        try:
            path = fetched(one, folder)
        except CannotWrite:
            raise
        except UserError as error:  # perhaps it can be had another time
            return str(error)
        try:
            result = prepare_input(one, path, folder, self._options, self._tools)
        except CannotWrite:
            raise
        except Exception as error:  # the other inputs are not to suffer, and perhaps it goes well another time
            return f"{type(error).__name__}: {error}"
        coder = self._tools.identity.about if self._tools.identity else ""
        self._records.write(replace(one, path=path), result, coder)
        return ""


_worker: Worker | None = None  # of this process


def _start(task: Task) -> None:
    """Begin a process of the pool, which ends with the one that started it, even if that is killed."""
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # interrupted, it ends without a word
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    torch.set_num_threads(1)
    end_with_parent()
    _worker = Worker(task)


def _do(one: Input) -> str:
    assert _worker is not None
    return _worker(one)


def work_through(task: Task, todo: Sequence[Input], total: int) -> dict[str, str]:
    """Do all that is left to do, showing progress; returns the inputs that cannot be had, and why.

    Raises:
        CannotWrite: the disk is full, or refuses.
        Incomplete: a process ended on its own.
    """
    missing = {}
    with tqdm(total=total, initial=total - len(todo), unit="input", desc="preparing", smoothing=0.05) as bar:
        for one, why in _done(task, todo):
            if why:
                missing[one.name] = why
            bar.update()
    return missing


def _done(task: Task, todo: Sequence[Input]) -> Iterator[tuple[Input, str]]:
    workers = min(_cores() if task.options.workers is None else task.options.workers, len(todo))
    if workers <= 1:
        worker = Worker(task) if todo else None
        yield from ((one, worker(one)) for one in todo if worker is not None)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), _start, (task,)) as pool:
        # held back while processes start: Python would tell of an interruption in each of them with a traceback
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            waiting = {pool.submit(_do, one): one for one in todo}
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        try:
            for future in as_completed(waiting):
                yield waiting[future], future.result()
        except BrokenProcessPool:
            reason = "a process ended on its own, perhaps for want of memory"
            raise Incomplete(f"{task.output}: {reason}; the same command goes on") from None
        except KeyboardInterrupt:  # what they are at is begun anew the next time
            for child in active_children():
                child.terminate()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
