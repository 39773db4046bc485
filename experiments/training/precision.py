"""The one place that says in which precision a training computes: a recipe's `precision`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch

Precision = Literal["float32", "tf32", "bf16"]


@contextmanager
def products_of(precision: Precision) -> Iterator[None]:
    """Make convolutions and products of float32 numbers IEEE's on a GPU, or TF32 for both; afterwards as before.

    By themselves PyTorch's convolutions are TF32 and its products are not. The older of its two kinds of switches are
    set: the newer ones must not be mixed with them, and other libraries read the older ones.
    """
    switches: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = precision == "tf32"
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """The context of a forward pass: bfloat16 where PyTorch holds it to be safe if `precision` is bf16."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
