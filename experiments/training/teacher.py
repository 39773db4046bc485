"""The memory's teacher: what the host gives of the driving frame itself, in which nothing is hidden and nothing moves.

What the compensation gives of another source is compared with it; see `memcomp.record.Record.teacher_loss`.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from memcomp.adapters import Host


def complete_features(host: Host, driving: Tensor) -> dict[int, Tensor]:
    """Call `host(driving, driving)`, its memory passed by: scale → what arrives at the memory, detached.

    A batch norm that trains goes by the statistics of the batch here too: what is compared is normalised alike, while
    running statistics are those of earlier weights. Everything else is in eval mode, so that nothing is changed by it,
    neither running statistics nor the estimate of a spectral norm, and nothing is drawn: a training has the same draws
    with a teacher and without.

    Args:
        host: with a memory, in train or eval mode.
        driving: (B, C, H, W), as the host takes it.
    """
    memory = host.memory
    assert memory is not None
    with torch.no_grad(), _unchanged(host), memory.passing() as complete:
        host(driving, driving)
    torch.clear_autocast_cache()  # where older torch keeps, for the call that is trained, weights without gradient
    return complete


@contextmanager
def _unchanged(host: Host) -> Iterator[None]:
    """Inside of the block all is in eval mode but batch norms that train, and these keep no running statistics."""
    modes = [(module, module.training) for module in host.modules()]
    norms = [m for m, trains in modes if trains and isinstance(m, _BatchNorm) and m.track_running_stats]
    try:
        for module, _ in modes:
            module.training = False
        for norm in norms:
            norm.training, norm.track_running_stats = True, False
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
        for module, trains in modes:
            module.training = trains
