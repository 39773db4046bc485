"""State of a call in progress: each thread has its own, copies and pickles carry none.

A server may call one attached generator from many threads. What such a call has shown so far, whether it is recorded
and whether the memory is disabled belong to the thread that makes it; other threads see nothing of it. That holds for
threads of torch too: `backward` on a GPU recomputes checkpointed activations in a thread of the autograd engine. What
is to hold there stands inside the checkpointed function, not around it::

    def call(*args):
        with handle.compensation.recording() as record:
            return generator(*args), record.consistency_loss()

    output, consistency = checkpoint(call, *args, use_reentrant=False)

The classes that hold the state have empty `__slots__`: torch.compile of torch 2.4 looks up the attributes of a subclass
of `threading.local` only then; without, it traces nonsense.
"""

import threading
from typing import Any, ClassVar


class KeepsCallState:
    """Owner of a state of calls, `self._call`, that copies and pickles leave out and have anew."""

    _call_state: ClassVar[type[threading.local]]  # not a ContextVar, which torch.compile cannot follow
    _call: Any
    _earlier: ClassVar[tuple[str, ...]]
    """Attributes that held it in version 0.1.0, whose pickles load."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_call"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        restore = getattr(super(), "__setstate__", self.__dict__.update)  # a module has its own
        restore({name: value for name, value in state.items() if name not in self._earlier})
        self._call = self._call_state()
