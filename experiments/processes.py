"""The processes of one run: one, or those that torchrun started, and the device on which each works."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from memcomp.experiments.errors import Incomplete, UserError, counted

NUMBERS, MASTER = ("RANK", "WORLD_SIZE", "LOCAL_RANK"), ("MASTER_ADDR", "MASTER_PORT")  # as torchrun sets them
# What concerns the processes themselves goes from CPU to CPU, so that nothing of it waits for a GPU.
BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}


@dataclass(frozen=True)
class Processes:
    """The processes of one run: one, or those that torchrun started. Each works on its share of every batch."""

    rank: int
    world: int
    device: torch.device

    @classmethod
    def start(cls, device: str) -> "Processes":
        """Join the others, if torchrun started several.

        Raises:
            UserError: a device that this machine or this build of torch lacks, variables of torchrun's that are missing
                or wrong, or others that cannot be reached.
        """
        rank, world, local = _place()
        if dist.is_initialized():
            rank, world = dist.get_rank(), dist.get_world_size()
        chosen = resolve_device(device)
        if chosen.type == "mps" and world > 1:
            chosen = torch.device("cpu")  # gloo, which averages, knows no other here
        if chosen.type == "cuda" and world > 1:
            if "LOCAL_RANK" not in os.environ and torch.cuda.device_count() > 1:
                raise UserError("LOCAL_RANK: expected the process's number on this machine, as torchrun sets it")
            if local >= torch.cuda.device_count():
                found = counted(torch.cuda.device_count(), "GPU")
                raise UserError(f"LOCAL_RANK={local}: this machine has {found}; expected as many --nproc-per-node")
            chosen = torch.device("cuda", local)
            torch.cuda.set_device(chosen)
        if world > 1 and not dist.is_initialized():
            try:
                dist.init_process_group(BACKENDS[chosen.type])
            except (RuntimeError, ValueError) as error:
                master = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
                raise UserError(
                    f"process {rank} of {world} cannot join the others at {master}: {_short(error)}"
                ) from None
        return cls(rank, world, chosen)

    @property
    def first(self) -> bool:
        """Whether this process writes the files and talks."""
        return self.rank == 0

    @property
    def on_this_machine(self) -> int:
        """How many of the processes share this machine's memory."""
        return int(os.environ.get("LOCAL_WORLD_SIZE", self.world))

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its mean over all processes."""
        tensors = list(tensors)
        if self.world == 1 or not tensors:
            return
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            same = [tensor.detach() for tensor in tensors if tensor.dtype == dtype]
            flat = torch.cat([tensor.flatten() for tensor in same])
            with together():
                dist.all_reduce(flat)
            parts = flat.div_(self.world).split([tensor.numel() for tensor in same])
            for tensor, part in zip(same, parts, strict=True):
                tensor.copy_(part.view_as(tensor))

    def any_of(self, flags: Iterable[bool]) -> list[bool]:
        """Whether each of some flags holds in some process; no device is waited for."""
        tensor = torch.tensor(list(flags), dtype=torch.uint8)
        if self.world > 1:
            with together():
                dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return [bool(value) for value in tensor.tolist()]

    def gather(self, value: Any) -> list[Any]:
        """Collect what each process has, anything that pickle knows, in the order of their ranks."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        with together():
            dist.all_gather_object(found, value)
        return found

    def stop(self, *, failed: bool = False) -> None:
        """Leave the others; unless this process failed, when all have come so far.

        Raises:
            Incomplete: another process has ended before.
        """
        if self.world == 1 or not dist.is_initialized():
            return
        if not failed:
            self.any_of([True])  # nobody's connections are closed while another one still uses them
        dist.destroy_process_group()


@contextmanager
def together() -> Iterator[None]:
    """Around a call in which all processes take part, and that alone: one that is gone ends this one too, in one line.

    Raises:
        Incomplete: another process has ended, or cannot be reached any more.
    """
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError as error:  # gloo's and NCCL's
        gone = f"process {dist.get_rank()} of {dist.get_world_size()}: another one has ended or cannot be reached"
        raise Incomplete(f"{gone} ({_short(error)})") from None


def _place() -> tuple[int, int, int]:
    """Rank, number of processes and rank on this machine, as torchrun tells them; 0, 1, 0 without it.

    Raises:
        UserError: some of torchrun's variables are there and others are not, or they are no such numbers.
    """
    told = {name: os.environ[name] for name in (*NUMBERS, *MASTER) if name in os.environ}
    wrong = [f"{name}={value}" for name, value in told.items() if name in NUMBERS and not value.isdecimal()]
    numbers = {name: int(told.get(name, 0)) for name in NUMBERS} if not wrong else {}
    if "WORLD_SIZE" in told and not wrong and numbers["RANK"] >= numbers["WORLD_SIZE"]:
        wrong = [f"RANK={numbers['RANK']} of WORLD_SIZE={told['WORLD_SIZE']}"]
    if wrong:
        raise UserError(f"{wrong[0]}: expected whole numbers, ranks from 0 below WORLD_SIZE, as torchrun sets them")
    if numbers["WORLD_SIZE"] == 1 or not any(name in told for name in NUMBERS):
        return 0, 1, 0
    needed = ("RANK", "WORLD_SIZE", *MASTER)
    if missing := [name for name in needed if name not in told]:
        there = ", ".join(f"{name}={value}" for name, value in told.items() if name in NUMBERS)
        raise UserError(f"{there}, but no {' and no '.join(missing)}: expected all, as torchrun sets them, or none")
    return numbers["RANK"], numbers["WORLD_SIZE"], numbers["LOCAL_RANK"]


def _short(error: BaseException) -> str:
    """The first sentence of an error of torch's, without the place in its sources."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return (line.partition("] ")[2] or line).partition(". ")[0]


def resolve_device(device: str) -> torch.device:
    """Choose a device: "auto" (CUDA if there is one, else a Mac's GPU, else the CPU) or one that torch knows.

    MPS, the Mac's GPU, was tried on no Mac. It takes torch 2.5, before which torch knows no autocast there. It has no
    float64, in which numbers are told, so these are computed on the CPU; what else it lacks, torch computes there too,
    with a warning, if PYTORCH_ENABLE_MPS_FALLBACK=1 is set before torch is imported, as `memcomp` sets it.

    Raises:
        UserError: a device that this machine or this build of torch lacks.
    """
    mac = torch.backends.mps.is_available() and torch.amp.is_autocast_available("mps")
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if mac else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise UserError(f"device: expected auto, cpu or cuda, got {device!r}") from None
    if chosen.type == "meta":
        raise UserError(f"device: expected auto, cpu or cuda, got {device!r}, on which nothing is computed")
    cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (chosen.type == "cuda" and (chosen.index or 0) >= cuda) or (chosen.type == "mps" and not mac):
        raise UserError(f"device: {device} was asked for, but this machine or this build of torch has no such device")
    return chosen
