"""A network made of named sections, which are loaded, written, frozen and trained apart."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from memcomp import MemoryCompensation
from memcomp.adapters.layout import Sections, bare_key
from memcomp.handle import CHILD

Same = TypeVar("Same", bound="Sectioned")


class Sectioned(nn.Module, ABC):
    """Submodules by the names of upstream's checkpoint sections; one of them may own an attached memory."""

    name: ClassVar[str]
    generator_section: ClassVar[str] = "generator"  # the section that generates: `taps` are in it, it owns the memory
    optional_sections: ClassVar[frozenset[str]] = frozenset({"discriminator"})  # `load_upstream` does without them
    moving: ClassVar[tuple[str, ...]] = ("dense_motion_network",)  # children of the generator that find the motion
    _still: tuple[str, ...] = ()  # children of the sections that train which do not; here, for older pickles lack it
    stages: ClassVar[Mapping[str, tuple[str, ...]]] = {}  # further training stage → the sections it trains

    def __init__(self, model: Mapping[str, Any]) -> None:
        super().__init__()
        self.model: dict[str, Any] = dict(model)
        self._trained: frozenset[str] | None = None  # sections that train; None = all

    @abstractmethod
    def sections(self) -> dict[str, nn.Module]:
        """Upstream's checkpoint section names → our submodules with the same state-dict keys."""

    @property
    def memory(self) -> MemoryCompensation | None:
        """The memory attached to this host, if any."""
        for module in self.modules():
            memory = module._modules.get(CHILD)
            if isinstance(memory, MemoryCompensation):
                return memory
        return None

    def host_modules(self) -> list[nn.Module]:
        """All modules except those of an attached memory."""
        return [module for name, module in self.named_modules() if CHILD not in name.split(".")]

    def freeze(self) -> None:
        """No gradients for the host and eval mode that survives `.train()`; an attached memory still trains.

        Parameters and buffers of the host (batch-norm statistics too) then stay bit-identical. It may be called
        before or after a memory is attached. Switch modes by `host.train()`, not on a part of the host.
        """
        self._train_only(frozenset())

    def freeze_motion(self) -> None:
        """As `freeze`, but what makes the picture from the warped features still trains, and so does a discriminator.

        Frozen are the other sections, and of the generator what its host names in `moving`.
        """
        self._still = self.moving
        self._train_only(frozenset({self.generator_section, "discriminator"}) & self.sections().keys())

    def enter_stage(self, stage: str) -> None:
        """Freeze all but the sections that the training stage `stage` trains (see `stages`), a memory included.

        Raises:
            ValueError: the host has no such stage.
        """
        if stage not in self.stages:
            known = ", ".join(self.stages) or "none"
            raise ValueError(f"the host {self.name!r} has no training stage {stage!r}; it has {known}")
        self._train_only(frozenset(self.stages[stage]))
        if self.memory is not None:
            self.memory.requires_grad_(False)

    def _train_only(self, sections: frozenset[str]) -> None:
        self._trained = sections
        kept = {id(parameter) for module in self._kept() for parameter in module.parameters(recurse=False)}
        for name, parameter in self.named_parameters():
            if CHILD not in name.split(".") and id(parameter) not in kept:
                parameter.requires_grad_(False)
        self.train(self.training)

    def train(self: Same, mode: bool = True) -> Same:
        """Set the mode of the host and its memory; what is frozen stays in eval mode."""
        super().train(mode)
        if self._trained is not None:
            kept = {id(module) for module in self._kept()}
            for module in self.host_modules():
                if id(module) not in kept:
                    module.training = False
        return self

    def _kept(self) -> list[nn.Module]:
        """The modules that train though others are frozen."""
        sections = [self.sections()[name] for name in self._trained or ()]
        return [
            module
            for section in sections
            for name, module in section.named_modules()
            if name.split(".")[0] not in self._still
        ]

    def lay_out(self: Same, memory_format: torch.memory_format) -> Same:
        """Keep the weights of 2-D convolutions in a memory format; those of 3-D ones, for which `.to` fails, stay."""
        for tensor in (*self.parameters(), *self.buffers()):
            if tensor.ndim == 4:
                tensor.data = tensor.data.contiguous(memory_format=memory_format)
        return self

    def optimizer_groups(self) -> dict[str, list[nn.Parameter]]:
        """Section name → its parameters that need gradients (an attached memory's are the generator's).

        Sections without such parameters are left out, so that each value makes a valid optimiser, and so are those
        of the further training stages until `enter_stage`.
        """
        later = {name for names in self.stages.values() for name in names} if self._trained is None else set()
        groups = {
            name: [parameter for parameter in module.parameters() if parameter.requires_grad]
            for name, module in self.sections().items()
            if name not in later
        }
        return {name: parameters for name, parameters in groups.items() if parameters}

    def load_upstream(self, sections: Sections) -> None:
        """Load the sections of an upstream checkpoint. Nothing is changed unless everything fits.

        ``module.`` and ``_orig_mod.`` are stripped (DDP, `torch.compile`); sections that are not ours (optimisers,
        epoch) are ignored, and so are the keys of a memory while one is attached.

        Raises:
            ValueError: a section is missing, or keys are missing, unexpected, of another shape or hold values that
                are not finite; all are named.
        """
        ours = self.sections()
        absent = [name for name in ours if name not in sections and name not in self.optional_sections]
        if absent:
            raise ValueError(f"upstream checkpoint has no section {', '.join(absent)}; it has {', '.join(sections)}")
        problems: list[str] = []
        states: dict[str, dict[str, Tensor]] = {}
        for name, module in ours.items():
            if name in sections:
                states[name], found = _match_state(name, module, sections[name])
                problems += found
        if problems:
            raise ValueError(f"upstream checkpoint does not fit the host {self.name!r}:\n  " + "\n  ".join(problems))
        for name, state in states.items():
            ours[name].load_state_dict(state, strict=False)

    def upstream_sections(self) -> dict[str, dict[str, Tensor]]:
        """The sections of an upstream checkpoint with this host's weights: the inverse of `load_upstream`.

        The tensors are the host's own, not copies. A memory of which upstream's code has no form is left out.
        """
        return {
            name: {key: value for key, value in module.state_dict().items() if CHILD not in key.split(".")}
            for name, module in self.sections().items()
        }


def _match_state(section: str, module: nn.Module, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The entries of `state` to load into `module`, and one line for each that does not fit."""
    attached = any(CHILD in child._modules for child in module.modules())
    expected = {key: value for key, value in module.state_dict().items() if CHILD not in key.split(".")}
    given = {bare_key(key): value for key, value in state.items()}
    if attached:
        given = {key: value for key, value in given.items() if CHILD not in key.split(".")}
    problems = [f"missing key {section}.{key}" for key in expected if key not in given]
    problems += [f"unexpected key {section}.{key}" for key in given if key not in expected]
    problems += [
        f"{section}.{key} has shape {tuple(given[key].shape)}, expected {tuple(value.shape)}"
        for key, value in expected.items()
        if key in given and given[key].shape != value.shape
    ]
    problems += [
        f"{section}.{key} holds values that are not finite"
        for key, value in given.items()
        if not value.isfinite().all()
    ]
    return given, problems
