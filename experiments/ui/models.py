"""The trained hosts that a page offers, loaded once and shared by its jobs."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from memcomp.adapters import Host
from memcomp.experiments.animation import Animator, Motion
from memcomp.experiments.checkpoints.trained import read_trained
from memcomp.experiments.errors import UserError
from memcomp.experiments.files import untaken
from memcomp.handle import Handle


class Model:
    """A trained host that several jobs use at once.

    Args:
        name: what people call it.
        path: see `read_trained`.
        device: where it runs.

    Attributes:
        host: in eval mode.
        size: height and width of its pictures.

    Raises:
        UserError: it cannot be read, or takes no plain pictures.
    """

    def __init__(self, name: str, path: str, device: torch.device) -> None:
        trained = read_trained(path)
        self.name, self.size, self.host = name, trained.size, trained.host(device)
        try:
            Animator(self.host, torch.zeros(3, self.size, self.size), Motion())
        except UserError as error:
            raise UserError(f"{path}: expected a host that moves plain pictures; {error}") from None
        self._copy: Host | None = None
        self._alone = threading.Lock()

    @contextmanager
    def watched(self) -> Iterator[Host]:
        """A copy of the host that nobody else uses inside of the block: who watches the shared one sees other jobs."""
        with self._alone:
            if self._copy is None:
                self._copy = copy.deepcopy(self.host)
            yield self._copy


@dataclass(frozen=True)
class Choice:
    """A model, its memory acting or not.

    Attributes:
        name: what the page calls it.
        model: the host.
        memory: whether it has a memory that acts.
    """

    name: str
    model: Model
    memory: bool

    @contextmanager
    def acting(self) -> Iterator[Host]:
        """The host, which inside of the block and in its thread does as the choice says."""
        with ExitStack() as stack:
            if not self.memory:
                for module in self.model.host.modules():
                    if handle := Handle.of(module):
                        stack.enter_context(handle.disabled())
            yield self.model.host


def read_models(paths: Sequence[str], device: torch.device) -> list[Choice]:
    """Load trained hosts; one with a memory gives two choices, without and with it.

    Args:
        paths: see `read_trained`.
        device: where they run.

    Raises:
        UserError: one cannot be read.
    """
    choices, taken = list[Choice](), set[str]()
    for path in paths:
        name = untaken(Path(path).absolute().name, taken, "{} ({})")
        taken.add(name)
        model = Model(name, path, device)
        if model.host.memory is None:
            choices.append(Choice(name, model, False))
        else:
            choices += [Choice(f"{name}, memory off", model, False), Choice(f"{name}, with memory", model, True)]
    return choices


def usual(choices: Sequence[Choice]) -> tuple[Choice, Choice | None]:
    """What a page shows before anybody chooses: the first host without memory and the first with one, if there is."""
    without = next((choice for choice in choices if not choice.memory), choices[0])
    return without, next((choice for choice in choices if choice.memory), None)
