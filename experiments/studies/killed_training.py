"""A training that tells which points it passes, so that it can be ended at any; then it goes on and is compared.

Watched is the training's own code, in a process of its own, in which names of its modules are replaced by
ones that tell first.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import torch
from safetensors.torch import load_file

from memcomp.experiments.checkpoints import kept, run_file
from memcomp.experiments.checkpoints.find import CHECKPOINT, metadata
from memcomp.experiments.data.pairs import PairSet
from memcomp.experiments.training import held_out, log, loop, optimizers, setup

SMALL = (
    "device=cpu",
    "threads=1",
    "size=32",
    "host.model.common_params.num_kp=4",
    "host.model.kp_detector_params.block_expansion=4",
    "host.model.kp_detector_params.num_blocks=2",
    "host.model.generator_params.block_expansion=4",
    "host.model.generator_params.max_features=8",
    "host.model.generator_params.num_bottleneck_blocks=1",
    "host.model.generator_params.dense_motion_params.block_expansion=4",
    "host.model.generator_params.dense_motion_params.num_blocks=2",
    "data.frames=4",
    "data.rate=3",
    "data.identities=4",
    "memory.memory_channels=8",
    "optim.steps=6",
    "optim.batch_size=4",
    "log.every=1",
    "log.held_out_every=2",
    "log.held_out_pairs=4",
    "log.sample_every=3",
    "log.checkpoint_every=2",
    "loss.consistency=1",
)
PATIENCE = 20.0  # seconds for processes that read data to notice that their parent is gone
LONGEST = 300.0  # seconds that one command may take
Mark = tuple[str, int]  # a point and a step, or "worker" and a process


@dataclass(frozen=True)
class Case:
    """One training that something happens to."""

    processes: int
    workers: int
    point: str
    step: int
    late: float | None = None  # seconds behind the point; None = the training waits there for its end
    sent: str = "SIGKILL"

    @property
    def name(self) -> str:
        """A folder's name."""
        late = "" if self.late is None else f"_{1000 * self.late:.0f}ms"
        point = self.point.replace(": ", "_").replace(" ", "_")
        return f"{self.sent}_{self.processes}x{self.workers}_{point}_{self.step}{late}"


@dataclass(frozen=True)
class Seen:
    """What was seen of a case.

    Attributes:
        status: exit statuses of the training's processes; -9 = killed.
        last: the last point that the first process passed, which is the one that waits; others go on for a moment.
        checkpoint: step of the newest checkpoint afterwards; None = there was none yet.
        left: temporary files that lay there, and are left after going on.
        animated: exit status of `animate`; if there was no checkpoint, after going on.
        workers: processes that read data and outlived the others.
        resumed: exit status of going on.
        different: weights and states that are not, bit by bit, those of the training that nothing happened to.
    """

    status: tuple[int | None, ...]
    last: Mark
    checkpoint: int | None
    left: tuple[int, int]
    animated: int
    workers: int
    resumed: tuple[int | None, ...]
    different: int

    @property
    def lost(self) -> bool:
        """Whether anything was lost or left behind."""
        return bool(self.left[1] or self.animated or self.workers or any(self.resumed) or self.different)


def _watched(send: Callable[[Mark], None], stop_at: Mark | None) -> None:
    """Make this process's training tell which points it passes, and wait at one of them for its end."""

    waits = [stop_at]

    def at(point: str, step: int) -> None:
        parent = os.getppid()  # before it is told, which may end the parent
        send((point, step))
        if (point, step) == waits[0]:
            waits[0] = None
            while os.getppid() == parent:  # killed here; one that reads data is left alone
                time.sleep(0.005)

    def before(owner: Any, name: str, point: str, step: Callable[..., int | None]) -> None:
        plain = getattr(owner, name)

        def told(*args: Any, **options: Any) -> Any:
            number = step(*args, **options)
            if number is not None:
                at(point, number)
            return plain(*args, **options)

        setattr(owner, name, told)

    now = [0]  # the step that is being done

    def begun(run: Any, batch: Any, number: int) -> int:
        now[0] = number + 1
        return now[0]

    def half(tensors: Any, file: Path, about: Any) -> None:
        plain_save(tensors, file, about)
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
        at("checkpoint: half written", now[0])
        file.write_bytes(whole)
        at("checkpoint: not yet renamed", now[0])

    plain_save = run_file.save_file
    run_file.save_file = half  # type: ignore[assignment]
    before(PairSet, "__getitem__", "loading", lambda pairs, index: None if pairs.augment is None else index // 4 + 1)
    before(loop, "step", "step", begun)
    before(optimizers.Optimisers, "step", "step: before Adam", lambda *_, **__: now[0])
    before(log.RunLog, "add", "log row", lambda _, values: int(values["step"]))
    before(kept, "save_run", "checkpoint: begun", lambda *_, **__: now[0])
    before(held_out.HeldOut, "draw", "drawing", lambda *_: now[0])
    before(setup, "belong_to_training", "worker", lambda _: os.getpid())


def _run(words: Sequence[str], out: Path, environment: dict[str, str], send: Connection, stop_at: Mark | None) -> None:
    """Run one command of ours in a process of its own, at the head of a group of its own."""
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # of those that read data, as in a process of Linux's own
    os.environ.update(environment)
    with out.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    _watched(send.send, stop_at)
    sys.argv = ["memcomp", *words]
    runpy.run_module("memcomp.experiments.cli", run_name="__main__")


class Laboratory:
    """A folder in which trainings are started, ended and compared.

    Args:
        scratch: the folder; heads are rendered into it once.
    """

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        os.environ["OMP_NUM_THREADS"] = "1"  # before the server of processes starts, which imports torch once
        self.context: ForkServerContext = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(
            ["memcomp.experiments.commands.animate", "memcomp.experiments.training.loop"]
        )
        scratch.mkdir(parents=True, exist_ok=True)
        pictures = np.random.default_rng(0).integers(0, 255, (3, 32, 32, 3), dtype=np.uint8)
        iio.imwrite(scratch / "face.png", pictures[0])
        iio.imwrite(scratch / "video.mp4", pictures, plugin="pyav", codec="libx264", fps=25)

    def start(
        self, words: Sequence[str], out: Path, world: int = 1, stop_at: Mark | None = None
    ) -> tuple[list[ForkServerProcess], list[Connection]]:
        """Start a command in `world` processes, as torchrun does; the first waits at a point."""
        environment = {}
        if world > 1:
            with socket.socket() as free:
                free.bind(("localhost", 0))
                port = str(free.getsockname()[1])
            environment = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": str(world)}
        processes, ears = [], []
        for rank in range(world):
            ear, mouth = self.context.Pipe(duplex=False)
            own = environment | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if world > 1 else {})
            arguments = (list(words), out, own, mouth, None if rank else stop_at)
            process = self.context.Process(target=_run, args=arguments)
            process.start()
            mouth.close()
            processes.append(process)
            ears.append(ear)
        return processes, ears

    def status(self, words: Sequence[str], out: Path, world: int = 1) -> tuple[int | None, ...]:
        """Run a command to its end; returns the exit status of each process, None = it did not end."""
        processes, ears = self.start(words, out, world)
        _hear(ears, None)
        return _statuses(processes)

    def training(self, folder: Path, workers: int = 0) -> list[str]:
        """The command that trains into a folder, or goes on."""
        changes = [*SMALL, f"data.cache={self.scratch / 'cache'}", f"data.workers={workers}"]
        return ["train", "demo/fomm_mcnet", "init=null", *changes, "--output", str(folder), "--resume-auto"]

    def straight(self, world: int) -> Path:
        """A training that nothing happens to; made once."""
        folder = self.scratch / f"straight_{world}"
        if not (folder / "config.json").is_file():
            found = self.status(self.training(folder), self.scratch / f"straight_{world}.txt", world)
            assert not any(found), f"see {self.scratch / f'straight_{world}.txt'}"
        return folder

    def try_out(self, case: Case) -> Seen:
        """Train, make happen what the case says, animate, go on, and compare."""
        straight, folder, text = self.straight(case.processes), self.scratch / case.name, self.scratch / "said.txt"
        wanted = (case.point, case.step)
        words = self.training(folder, case.workers)
        processes, ears = self.start(words, text, case.processes, wanted if case.late is None else None)
        heard = _hear(ears, wanted)
        assert (ears[0], wanted) in heard, f"{case.name}: the training never came there, see {text}"
        time.sleep(case.late or 0)
        for process in processes:
            assert process.pid is not None
            if case.sent == "SIGKILL":
                process.kill()
            else:
                os.killpg(process.pid, getattr(signal, case.sent))
        status = _statuses(processes)
        heard += _hear(ears, None)
        newest = metadata(folder / CHECKPOINT).get("step")
        left = _left_over(folder)
        animate = ["animate", "--checkpoint", str(folder), "--source", str(self.scratch / "face.png"), "--driving"]
        animate += [str(self.scratch / "video.mp4"), "--output", str(folder / "moved.mp4"), "--no-adapt-scale"]
        animated = self.status(animate, text) if newest else (0,)
        resumed = self.status(words, text, case.processes)
        animated = animated if newest else self.status(animate, text)
        different = sum(_differences(straight / name, folder / name) for name in (CHECKPOINT, "model.safetensors"))
        readers = [number for _, (point, number) in heard if point == "worker"]
        passed = [mark for ear, mark in heard if ear is ears[0] and mark[0] != "worker"]
        return Seen(
            status,
            passed[-1],
            int(newest) if newest else None,
            (left, _left_over(folder)),
            animated[0] or 0,
            _alive(readers),
            resumed,
            different,
        )


def _hear(ears: Sequence[Connection], wanted: Mark | None) -> list[tuple[Connection, Mark]]:
    """What the processes tell, and which, until the first passes the wanted point, or until all have ended."""
    heard: list[tuple[Connection, Mark]] = []
    left, end = list(ears), time.monotonic() + LONGEST
    while left and (ready := wait(left, end - time.monotonic())):
        for ear in ready:
            assert isinstance(ear, Connection)
            try:
                heard.append((ear, ear.recv()))
            except (EOFError, OSError):
                left.remove(ear)
                continue
            if ear is ears[0] and heard[-1][1] == wanted:
                return heard
    return heard


def _statuses(processes: Sequence[ForkServerProcess]) -> tuple[int | None, ...]:
    end = time.monotonic() + LONGEST
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
    return tuple(process.exitcode for process in processes)


def _alive(pids: Sequence[int]) -> int:
    """How many processes are still there after time enough to notice that their parent is gone."""
    end = time.monotonic() + PATIENCE
    while (there := [pid for pid in pids if is_running(pid)]) and time.monotonic() < end:
        time.sleep(0.2)
    return len(there)


def is_running(pid: int) -> bool:
    """Whether there is a process of that number that has not ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.is_file() or stat.read_text().rpartition(")")[2].split()[0] != "Z"  # ended, with nobody to ask


def _left_over(folder: Path) -> int:
    return sum(1 for _ in folder.rglob(".*"))


def _differences(ours: Path, theirs: Path) -> int:
    a, b = load_file(ours), load_file(theirs)
    return len(a.keys() ^ b.keys()) + sum(not torch.equal(a[key], b[key]) for key in a.keys() & b.keys())
