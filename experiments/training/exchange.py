"""Gradients averaged over the processes of a run, bucket by bucket, while the backward pass makes the others.

`DistributedDataParallel` does this for a module that is called once for each backward pass. A step here has several
(parts of the batch, then the discriminator), over losses that call parts of the host several times; DDP would have to
wrap each, to search each one's graph for parameters without a gradient, and to wait for the device where it finds some.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from memcomp.experiments.processes import Processes, together

BUCKET_BYTES = 25 * 2**20  # as DDP's


class Exchange:
    """Averages the gradients of a host's parts over the processes.

    Buckets are sent in one fixed order, the same in all processes, each as soon as it and those before it are full.
    What has no gradient in some process counts as 0 there; what has none in any process gets none.

    Args:
        processes: of the run.
        parts: section of the host → its parameters.
        leading: the section that backward reaches first, the one that generates.
    """

    def __init__(self, processes: Processes, parts: Mapping[str, Sequence[Tensor]], leading: str) -> None:
        self.processes, self.parts, self.leading = processes, parts, leading
        self.ahead = 0  # buckets of the last exchange that were sent before the backward pass was over
        self._kept: dict[tuple[str, ...], list[_Bucket]] = {}
        self._sent: list[_Bucket] = []
        self._waiting: list[_Bucket] = []  # to be sent, in this order
        self._bucket_of: dict[int, _Bucket] = {}
        for parameter in (p for parameters in parts.values() for p in parameters if processes.world > 1):
            parameter.register_post_accumulate_grad_hook(self._arrived)

    @contextmanager
    def of(self, parts: Sequence[str]) -> Iterator[None]:
        """Around a backward pass, the last one before these parts' gradients are used: afterwards they are averaged.

        Raises:
            Incomplete: another process has ended.
        """
        if self.processes.world == 1 or not parts:
            yield
            return
        buckets = self._buckets(tuple(parts))
        self._waiting, self._sent = list(buckets), []
        self._bucket_of = {id(parameter): bucket for bucket in buckets for parameter in bucket.parameters}
        for bucket in buckets:
            bucket.missing = len(bucket.parameters)
        try:
            yield
            self.ahead = len(self._sent)
            self._finish()
        finally:
            self._waiting, self._sent, self._bucket_of = [], [], {}

    def _arrived(self, parameter: Tensor) -> None:
        bucket = self._bucket_of.get(id(parameter))
        if bucket is None:  # an earlier part of the batch, or of a network whose turn comes later
            return
        bucket.missing -= 1
        while self._waiting and self._waiting[0].missing == 0:
            self._send()

    def _send(self) -> None:
        bucket = self._waiting.pop(0)
        bucket.send()
        self._sent.append(bucket)

    def _finish(self) -> None:
        """Send what is not full, and take what comes back."""
        while self._waiting:
            self._send()
        mine = [parameter.grad is not None for bucket in self._sent for parameter in bucket.parameters]
        used = iter(self.processes.any_of(mine))
        for bucket in self._sent:
            bucket.receive([next(used) for _ in bucket.parameters], self.processes.world)

    def _buckets(self, parts: tuple[str, ...]) -> list[_Bucket]:
        """Parameters in about the order in which backward reaches them, as many of a dtype as fill a bucket."""
        if parts not in self._kept:
            buckets: list[_Bucket] = []
            order = sorted(parts, key=lambda part: (part != self.leading, -parts.index(part)))
            for parameter in (p for part in order for p in reversed(self.parts[part])):
                size = parameter.numel() * parameter.element_size()
                if not buckets or not buckets[-1].takes(parameter, size):
                    buckets.append(_Bucket())
                buckets[-1].parameters.append(parameter)
                buckets[-1].bytes += size
            self._kept[parts] = buckets
        return self._kept[parts]


class _Bucket:
    """Parameters whose gradients travel together."""

    def __init__(self) -> None:
        self.parameters: list[Tensor] = []
        self.bytes = self.missing = 0
        self.flat = torch.empty(0)

    def takes(self, parameter: Tensor, size: int) -> bool:
        """Whether a parameter of so many bytes has room here."""
        return parameter.dtype == self.parameters[0].dtype and self.bytes + size <= BUCKET_BYTES

    def send(self) -> None:
        """Begin to add up over the processes."""
        gradients = (torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters)
        self.flat = torch.cat([gradient.detach().reshape(-1) for gradient in gradients])
        with together():
            self.work = dist.all_reduce(self.flat, async_op=True)

    def receive(self, used: Sequence[bool], world: int) -> None:
        """Wait for the sums, and put their means where the gradients were."""
        with together():
            self.work.wait()
        means = self.flat.div_(world).split([parameter.numel() for parameter in self.parameters])
        for parameter, mean, somewhere in zip(self.parameters, means, used, strict=True):
            if somewhere:
                parameter.grad = torch.empty_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad.copy_(mean.view_as(parameter))
        self.flat = torch.empty(0)
