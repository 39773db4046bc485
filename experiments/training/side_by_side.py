"""Several trainings at once, each a `memcomp train` of its own, with one progress bar each."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from memcomp.experiments.errors import UserError
from memcomp.experiments.files import writable_folder

POLL_SECONDS = 0.5
PATIENCE_SECONDS = 10.0


@dataclass(frozen=True)
class Job:
    """One training of several: its recipe, its folder and the command that runs it."""

    label: str
    """What the progress bar says."""
    recipe: str
    """Name or path."""
    overrides: tuple[str, ...]
    """Changes to the recipe, `key=value` each."""
    output: Path
    """The run's folder; a training that stopped there before goes on."""

    @property
    def log(self) -> Path:
        """The run's table of losses."""
        return self.output / "log.csv"

    def command(self) -> list[str]:
        """Build the command line, which may as well be typed by hand."""
        resume = ["--resume"] if (self.output / "checkpoints" / "last.safetensors").is_file() else []
        start = [sys.executable, "-m", "memcomp.experiments.cli", "train", self.recipe, *self.overrides]
        return [*start, "--output", str(self.output), *resume]

    def step(self) -> int:
        """Read from the log how many steps are done."""
        if not self.log.is_file():
            return 0
        with self.log.open(encoding="utf-8") as file:
            last = deque(file, maxlen=1)
        number = last[0].split(",")[0] if last else ""
        return int(number) if number.isdecimal() else 0


def train_side_by_side(jobs: Sequence[Job], steps: int) -> None:
    """Run the trainings at once, the processor's cores shared out evenly; returns when all are done.

    What each prints goes to `train.txt` in its folder. Interrupted, all are ended; called again, they go on from
    their last checkpoints.

    Args:
        jobs: what to train.
        steps: of each, for the progress bars.

    Raises:
        UserError: a training failed; the others are ended, and its last line of output is shown.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, cores // len(jobs)))}
    with ExitStack() as stack:
        running = [stack.enter_context(_Training(job, environment)) for job in jobs]
        often = 0.5 if sys.stderr.isatty() else 10  # seconds between two lines
        bars = [
            stack.enter_context(tqdm(total=steps, desc=job.label, position=i, unit="step", mininterval=often))
            for i, job in enumerate(jobs)
        ]
        while True:
            alive = [training.process.poll() is None for training in running]
            for job, bar in zip(jobs, bars, strict=True):
                bar.update(min(job.step(), steps) - bar.n)
            for training in running:
                training.check()
            if not any(alive):
                return
            time.sleep(POLL_SECONDS)


class _Training:
    """A running process; leaving the context ends it."""

    def __init__(self, job: Job, environment: dict[str, str]) -> None:
        self.job = job
        self.text = writable_folder(job.output) / "train.txt"
        with self.text.open("a", encoding="utf-8") as output:
            self.process = subprocess.Popen(
                job.command(), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment
            )

    def check(self) -> None:
        if self.process.poll() not in (None, 0):
            lines = [line for line in self.text.read_text(encoding="utf-8", errors="replace").splitlines() if line]
            raise UserError(
                f"{self.job.label.strip()}: training failed, see {self.text}: {lines[-1] if lines else 'no output'}"
            )

    def __enter__(self) -> _Training:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self._wait()  # Ctrl-C reached it as well: it is writing its checkpoint, which a second signal would stop
        for stop in (self.process.terminate, self.process.kill):
            if self.process.poll() is None:
                stop()
                self._wait()

    def _wait(self) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(PATIENCE_SECONDS)
