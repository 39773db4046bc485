"""The processes of one run: one, or those that torchrun started, and the device on which each works."""

import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from memcomp.experiments.errors import UserError


@dataclass(frozen=True)
class Processes:
    """The processes of one training: one, or those that torchrun started. Each works on its share of every batch.

    Gradients are averaged explicitly after the backward pass: the loss calls parts of the host several times, which
    the bookkeeping of `DistributedDataParallel` does not expect.
    """

    rank: int
    world: int
    device: torch.device

    @classmethod
    def start(cls, device: str) -> "Processes":
        """Join the others, if torchrun started several.

        Raises:
            UserError: a device that this machine or this build of torch lacks.
        """
        world, local = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("LOCAL_RANK", 0))
        chosen = resolve_device(device)
        if chosen.type == "mps" and world > 1:
            chosen = torch.device("cpu")  # gloo, which averages, knows no other here
        if chosen.type == "cuda" and world > 1:
            chosen = torch.device("cuda", local)
            torch.cuda.set_device(chosen)
        if world > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
        return cls(dist.get_rank() if world > 1 else 0, world, chosen)

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
        flat = torch.cat([tensor.detach().float().flatten() for tensor in tensors])
        dist.all_reduce(flat)
        parts = flat.div_(self.world).split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.detach().copy_(part.view_as(tensor))

    def any(self, flag: bool) -> bool:
        """Whether `flag` holds in some process."""
        if self.world == 1:
            return flag
        tensor = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return bool(tensor.item())

    def stop(self) -> None:
        """Leave the others."""
        if self.world > 1 and dist.is_initialized():
            dist.destroy_process_group()


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
