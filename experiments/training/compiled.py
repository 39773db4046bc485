"""A host compiled in its place, its memory's taps included: a recipe's `compile`."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from memcomp.adapters import Host
from memcomp.experiments.errors import UserError

BACKEND = "inductor"  # torch's own; it needs a C++ compiler on a CPU, Triton on a GPU


def compile_host(host: Host, device: torch.device) -> None:
    """Compile each section of the host in its place; the hooks of an attached memory are compiled with it.

    Modules stay what they are, and so do their state-dict keys. It is the last thing that is done to a host: hooks that
    come later may be ignored. A program is built for each size of batch when it is first seen.

    Raises:
        UserError: nothing can be compiled on this machine.
    """
    try:  # before anything is trained or written
        torch.compile(_twice, backend=BACKEND)(torch.ones(2, device=device))
    except Exception as error:  # each backend says in its own way what it lacks
        cause = getattr(error, "inner_exception", error)
        said = next(iter(str(cause).strip().splitlines()), type(cause).__name__)
        needed = "Triton and a C compiler" if device.type == "cuda" else "a C++ compiler, such as g++"
        why = f"torch.compile does not work on this machine; it needs {needed}: {said}"
        raise UserError(f"compile: expected false, {why}") from None
    for module in host.sections().values():
        module.compile(backend=BACKEND, dynamic=False)


def eager() -> AbstractContextManager[None]:
    """Inside of the context nothing is compiled: what runs seldom would not earn the minutes back.

    Before torch 2.6, which cannot do so, it is compiled nevertheless.
    """
    stance = getattr(torch.compiler, "set_stance", None)
    return nullcontext() if stance is None else stance("force_eager")


def _twice(x: Tensor) -> Tensor:
    return x * 2
