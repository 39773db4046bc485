"""Eq. 4, and a teacher beside it, collected from the calls of a host: what `MemoryCompensation.recording` gives."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from memcomp.scale import CompensationOutput

__all__ = ["Record"]


class Record:
    """The terms of Eq. 4, and a teacher's, that the calls of a host gave while they were recorded.

    Attributes:
        complete: scale → F_*, the feature that the teacher's terms draw to; None = no teacher.
    """

    def __init__(self, enabled: bool, complete: Mapping[int, Tensor] | None = None) -> None:
        self._enabled, self.complete = enabled, complete
        self._terms: dict[int, list[Tensor]] = {}
        self._taught: dict[int, list[Tensor]] = {}

    def add(self, scale: int, output: CompensationOutput) -> None:
        """Keep mean |F_V - target| of one call of a scale."""
        if self._enabled:
            _keep(self._terms, scale, _distance(output.value, output.target))

    def add_taught(self, scale: int, *pairs: tuple[Tensor, Tensor]) -> None:
        """Keep the sum of mean |what the memory gave - what the teacher gives| of one call of a scale."""
        _keep(self._taught, scale, torch.stack([_distance(given, wanted) for given, wanted in pairs]).sum())

    def consistency_loss(self) -> Tensor:
        """Eq. 4 as released: mean over elements, averaged over the calls of a scale, summed over scales. A scalar.

        The target is detached. F_V itself depends on the feature through the identity code and the dynamic kernels,
        so gradients do reach the feature, the projection and the keypoints, as in the released code, although the
        paper says that the source's features are not affected. Zero if the config has `consistency=False`.

        Raises:
            RuntimeError: if no compensation ran while recording, or only in another thread or disabled.
        """
        if not self._enabled:
            return torch.zeros(())
        if not self._terms:
            raise RuntimeError(
                "nothing was recorded: call the host inside `with compensation.recording() as record:`, in the same "
                "thread and not inside `handle.disabled()`"
            )
        return _summed(self._terms)

    def teacher_loss(self) -> Tensor:
        """What a teacher adds to Eq. 4, averaged over the calls of a scale, summed over scales. A scalar.

        Of one call of a scale, with the complete feature F_* of `MemoryCompensation.passing`:
        mean |F_cpt^1 - F_*^1| + mean |F_V - de(F_proj(F_*^1))|, F^1 being the channels that are compensated (`split`).
        The channels F_w^0, which pass, are none of the memory's. What is compared with is detached, projection
        included, as Eq. 4's target is; gradients reach the memory and what led to the feature, as of Eq. 4.
        It does not depend on the config's `consistency`.

        Raises:
            RuntimeError: the recording was given no complete features, or no compensation ran while recording.
        """
        if not self._taught:
            raise RuntimeError(
                "no teacher recorded: call host(driving, driving) inside `with compensation.passing() as complete:` "
                "and then the host inside `with compensation.recording(complete) as record:`"
            )
        return _summed(self._taught)


def _distance(one: Tensor, other: Tensor) -> Tensor:
    dtype = torch.promote_types(one.dtype, torch.float32)
    return F.l1_loss(one.to(dtype), other.to(dtype))


def _keep(terms: dict[int, list[Tensor]], scale: int, term: Tensor) -> None:
    if scale not in terms:  # not setdefault, which torch.compile of torch 2.4 does not know
        terms[scale] = []
    terms[scale].append(term)


def _summed(terms: dict[int, list[Tensor]]) -> Tensor:
    return torch.stack([torch.stack(calls).mean() for calls in terms.values()]).sum()
