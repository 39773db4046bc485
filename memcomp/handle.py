"""What happens while an attached generator runs: its keypoints are read, its features compensated, and both let go."""

from __future__ import annotations

import inspect
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from memcomp.calls import KeepsCallState
from memcomp.places import check_places
from memcomp.taps import KeypointTap, Tap, VisibilityTap

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from memcomp.compensation import MemoryCompensation

CHILD = "memory_compensation"  # the name under which the root owns the memory: the prefix of its state-dict keys


Shown = dict[str, "Tensor | weakref.ref[Tensor]"]  # "keypoints", "driving", "visibility" or "visibility 1" … → tensor


class _Call(threading.local):
    __slots__ = ()  # see memcomp/calls.py

    def __init__(self) -> None:
        # What the call in progress has shown and, for each such call, the call around it. The latter weakly, for it
        # lives in its caller's frame: of calls cut off by KeyboardInterrupt only the innermost is kept, until the next.
        self.shown: Shown = {}
        self.outer: list[Shown] = []
        self.disabled = False


class Handle(KeepsCallState):
    """A memory in its place. All its hooks are bound methods of this one object, so that copies work.

    `copy.deepcopy` of the root (or of the handle) gives an independent root with its own memory and its own handle,
    found by `Handle.of(copy)`; modules `beside` the root must be copied together with it. Pickling likewise.

    Several threads may call the root at once (see `memcomp/calls.py`). A layer at a tap must not be replaced while the
    memory is attached: the next call raises and names the tap.

    Activation checkpointing works around a call of the whole root, not of a part with taps in it. What is recomputed
    must be recorded too: put the recording inside the checkpointed function.
    """

    _call_state, _earlier = _Call, ("_current", "_outer")

    root: nn.Module
    """The module that owns the memory as `memory_compensation`, and that is to be called."""
    compensation: MemoryCompensation
    taps: tuple[Tap, ...]
    keypoints: KeypointTap
    mode: str = "inplace"
    """What becomes of the tapped tensors; `memcomp.adapters.attach` knows further modes."""
    scales: tuple[int, ...]
    """Which of the host's places these taps are, by index."""
    visibility: VisibilityTap | None = None
    """Where it is read what the source shows, if the compensation asks."""
    _source: nn.Module | None = None  # the module called with the keypoints, if it is below the root
    _driving: int | None = None  # position of the driving keypoints among its arguments
    _seen: nn.Module | None = None  # the module that tells the visibility, if it is below the root
    _further: tuple[tuple[str, nn.Module], ...] = ()  # places that a mode watches besides

    def __init__(
        self,
        root: nn.Module,
        compensation: MemoryCompensation,
        taps: tuple[Tap, ...],
        tapped: list[nn.Module],
        keypoints: KeypointTap,
        source: nn.Module,
        visibility: VisibilityTap | None = None,
        seen: nn.Module | None = None,
    ) -> None:
        """Use `inject`, which checks its arguments."""
        self.root, self.compensation, self.taps, self.keypoints = root, compensation, taps, keypoints
        self.scales = tuple(range(len(taps)))
        self._tapped = tapped
        self._called = keypoints.module or type(root).__name__
        self._position = _argument_position(source, keypoints.argument)
        if self._asks("driving") and keypoints.driving is not None:
            self._driving = _argument_position(source, keypoints.driving)
        below = keypoints.module in dict(root.named_modules()) and root.get_submodule(keypoints.module) is source
        self._source = source if below else None
        self._call = _Call()
        self._frozen: set[str] | None = None  # names of the parameters that `freeze_host` froze
        weight = next((value for value in root.parameters() if value.is_floating_point()), None)
        if weight is not None:
            compensation.to(device=weight.device, dtype=weight.dtype)
        root.add_module(CHILD, compensation.train(root.training))
        self._hooks: list[RemovableHandle] = [
            root.register_forward_pre_hook(self._enter, prepend=True),
            source.register_forward_pre_hook(self._read_keypoints, with_kwargs=True),
        ]
        if seen is not None:
            self.visibility, self._seen = visibility, seen if seen in set(root.modules()) else None
            self._hooks.append(seen.register_forward_hook(self._read_visibility))
        for module, tap in zip(tapped, taps, strict=True):
            if tap.where == "input":
                self._hooks.append(module.register_forward_pre_hook(self._on_input, with_kwargs=True))
            else:
                self._hooks.append(module.register_forward_hook(self._on_output))
        self._hooks.append(root.register_forward_hook(self._leave, always_call=True))  # last: the output may be tapped

    @staticmethod
    def of(root: nn.Module) -> Handle | None:
        """The handle of an attached module, e.g. of a deep copy or of an unpickled one; None if it has none."""
        for hook in (*root._forward_pre_hooks.values(), *root._forward_hooks.values()):
            if isinstance(owner := getattr(hook, "__self__", None), Handle):
                return owner
        return None

    def own(self, hooks: Iterable[RemovableHandle], places: Mapping[str, nn.Module] | None = None) -> None:
        """Take over hooks that a mode needs besides, no closures either: `remove()` takes them off too.

        `places` names the modules below the root that have them: they must stay where they are, as taps must.
        """
        self._hooks.extend(hooks)
        self._further = (*self._further, *(places or {}).items())

    def remove(self) -> None:
        """Take the memory off: hooks, child and freeze are gone, the root is what it was. May be called again."""
        if not self._hooks:
            return
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        delattr(self.root, CHILD)
        if self._frozen is not None:
            self.root.__dict__.pop("train", None)
            for name in self._frozen:
                self.root.get_parameter(name).requires_grad_(True)
            self._frozen = None

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Let the root give exactly its own output inside of the block: hooks and weights stay, without effect.

        It holds for the calls of its own thread, may be nested, and works under torch.compile. Nothing is recorded
        inside; with activation checkpointing it belongs inside the checkpointed function, see `memcomp/calls.py`.
        """
        call, before = self._call, self._call.disabled
        call.disabled = True
        try:
            yield
        finally:
            call.disabled = before

    def freeze_host(self) -> None:
        """Train the memory alone: the rest of the root gets no gradients and stays in eval mode even after `.train()`.

        Call it before DDP. `remove()` gives the gradients back.
        """
        if self._frozen is not None:
            return
        host = [(name, value) for name, value in self.root.named_parameters() if not name.startswith(CHILD + ".")]
        self._frozen = {name for name, value in host if value.requires_grad}
        for _, value in host:
            value.requires_grad_(False)
        self.root.__dict__["train"] = self._train  # a bound method too: copied and pickled with the root
        self.root.train(self.compensation.training)

    def _train(self, mode: bool = True) -> nn.Module:
        type(self.root).train(self.root, False)
        self.compensation.train(mode)
        return self.root

    def _enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        call = self._call
        around = call.shown if call.outer else {}
        call.outer.append({name: weakref.ref(t) if isinstance(t, Tensor) else t for name, t in around.items()})
        if getattr(module, "_is_replica", False):
            raise RuntimeError("nn.DataParallel on several devices cannot train or run an attached memory: use DDP")
        if not (call.disabled or torch.compiler.is_compiling() or torch.jit.is_tracing()):
            self._check_places()

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        before = self._call.outer.pop() if self._call.outer else {}
        self._call.shown.clear()  # in place: torch.compile of torch 2.4 cannot follow a new value of the attribute
        self._call.shown.update(before)

    def _check_places(self) -> None:
        """Raise RuntimeError if the name of a tap leads to another module than the one with the hooks."""
        places = [(tap.module, module) for tap, module in zip(self.taps, self._tapped, strict=True)]
        if self._source is not None:
            places.append((self.keypoints.module, self._source))
        if self.visibility is not None and self._seen is not None:
            places.append((self.visibility.module, self._seen))
        check_places(self.root, [*places, *self._further])

    def _asks(self, what: str) -> bool:
        """Whether the compensation's config asks for a thing; a control has no config and asks for none."""
        config = getattr(self.compensation, "config", None)
        return bool(getattr(config, what, False))

    def _read_keypoints(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._call.disabled:
            return
        self._call.shown["keypoints"] = self._argument(self.keypoints.argument, self._position, args, kwargs, "source")
        if self._asks("driving") and (argument := self.keypoints.driving) is not None:
            self._call.shown["driving"] = self._argument(argument, self._driving, args, kwargs, "driving")

    def _argument(
        self, argument: str, position: int | None, args: tuple[Any, ...], kwargs: dict[str, Any], whose: str
    ) -> Tensor:
        """The tensor of keypoints in one of the arguments of a call."""
        key = self.keypoints.key
        if argument in kwargs:
            value = kwargs[argument]
        elif position is not None and position < len(args):
            value = args[position]
        else:
            raise TypeError(f"'{self._called}' was called without '{argument}', the {whose} keypoints")
        if key is not None:
            value = value.get(key) if isinstance(value, Mapping) else getattr(value, key, None)
        if not isinstance(value, Tensor):
            wanted = "a tensor" if key is None else f"a dict or object with the tensor '{key}'"
            raise ValueError(f"'{argument}' of '{self._called}' must be {wanted}, as KeypointTap(key={key!r}) says")
        return value

    def _read_visibility(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._call.disabled or self.visibility is None:
            return
        key, value = self.visibility.key, output
        if key is not None:
            value = output.get(key) if isinstance(output, Mapping) else getattr(output, key, None)
        maps = value if isinstance(value, list | tuple) else [value]
        if not all(isinstance(found, Tensor) and found.ndim == 4 and found.shape[1] == 1 for found in maps):
            raise ValueError(
                f"the output of '{self.visibility.module}' must show the visibility (B, 1, h, w), one or several, as "
                f"VisibilityTap(key={key!r}) says"
            )
        self._call.shown.update({f"visibility {index}": found for index, found in enumerate(maps)})

    def _given(self, name: str) -> Tensor | None:
        found = self._call.shown.get(name)
        return found() if isinstance(found, weakref.ref) else found

    def _visibility(self, size: torch.Size) -> Tensor | None:
        """What the source shows, by the map whose height is nearest to a feature's."""
        names = [name for name in self._call.shown if name.startswith("visibility")]
        maps = [found for name in names if (found := self._given(name)) is not None]
        return min(maps, key=lambda found: abs(found.shape[2] - size[0])) if maps else None

    def _on_input(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if self._call.disabled:
            return None
        if args:
            return (self._compensated(module, "input", args[0]), *args[1:]), kwargs
        name = next(iter(inspect.signature(module.forward).parameters))
        return args, {**kwargs, name: self._compensated(module, "input", kwargs[name])}

    def _on_output(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Tensor | None:
        return None if self._call.disabled else self._compensated(module, "output", output)

    def _compensated(self, module: nn.Module, where: str, tensor: Any) -> Tensor:
        scale = next(
            index
            for index, (tapped, tap) in enumerate(zip(self._tapped, self.taps, strict=True))
            if tapped is module and tap.where == where
        )
        tap, channels = self.taps[scale], self.compensation.channels[scale]
        call, keypoints = self._call, self._given("keypoints")
        if keypoints is None or not call.outer:
            call.shown = {}
            raise RuntimeError(
                f"the {where} of '{tap.module}' was reached without source keypoints. Call the module, "
                f"{type(self.root).__name__}(...), not its .forward nor a submodule alone; it must call "
                f"'{self._called}' with the keypoints first. Checkpoint activations of the whole module only."
            )
        if not isinstance(tensor, Tensor) or tensor.ndim != 4:
            found = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ValueError(f"the {where} of '{tap.module}' must be a tensor (B, C, H, W), not {found}")
        first = tensor.shape[1] // 2 if tap.part == "second_half" else 0
        if tensor.shape[1] - first != channels:
            raise ValueError(
                f"the warped feature at the {where} of '{tap.module}' has {tensor.shape[1] - first} channels, scale "
                f"{scale} of the memory was made for {channels}: say Tap(..., channels={tensor.shape[1]})"
            )
        further = {"driving": self._given("driving")} if self._asks("driving") else {}
        if self.visibility is not None:
            further["visibility"] = self._visibility(tensor.shape[2:])
        feature = self.compensation(tensor[:, first:], keypoints, scale=scale, **further)
        if not first:
            return feature
        last = tensor.is_contiguous(memory_format=torch.channels_last)  # a half of such a tensor is not
        return torch.cat([tensor[:, :first], feature], dim=1).contiguous(
            memory_format=torch.channels_last if last else torch.contiguous_format
        )


def _argument_position(module: nn.Module, argument: str) -> int | None:
    """Where `module.forward` takes `argument` by position; None if by keyword only."""
    parameters = inspect.signature(module.forward).parameters
    if argument not in parameters:
        if any(value.kind is inspect.Parameter.VAR_KEYWORD for value in parameters.values()):
            return None
        raise ValueError(f"{type(module).__name__}.forward has no argument '{argument}', only: {', '.join(parameters)}")
    keyword_only = parameters[argument].kind is inspect.Parameter.KEYWORD_ONLY
    return None if keyword_only else list(parameters).index(argument)
