"""Whether the names of taps still lead to the modules with the hooks: a layer replaced later loses what they do."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

# Torch's wrappers, and the name under which each holds the module that it calls, hooks and all.
WRAPPERS = {
    "OptimizedModule": "_orig_mod",
    "DistributedDataParallel": "module",
    "FullyShardedDataParallel": "_fsdp_wrapped_module",
}


def find(root: nn.Module, name: str) -> nn.Module | None:
    """The module of a dotted name, looked for inside of torch's wrappers at every part; None if it is gone."""
    module: nn.Module | None = root
    for part in name.split(".") if name else ():
        unwrapped = unwrap(module)
        module = None if unwrapped is None else unwrapped._modules.get(part)
    return module


def unwrap(module: nn.Module | None) -> nn.Module | None:
    """The module inside of torch's own wrappers, which call what they hold."""
    while module is not None and type(module).__name__ in WRAPPERS:
        module = module._modules.get(WRAPPERS[type(module).__name__])
    return module


def check_places(root: nn.Module, places: Iterable[tuple[str, nn.Module]]) -> None:
    """Raise RuntimeError, naming it, if a name leads to another module than the one with the hooks."""
    for name, module in places:
        found = find(root, name)
        if found is module or unwrap(found) is module:
            continue
        now = "is gone" if found is None else f"is now another module, a {type(found).__name__}"
        raise RuntimeError(
            f"'{name}' of this {type(root).__name__} {now}: what the memory does there would silently be "
            "lost. Call remove() of the handle, replace the module, then attach again."
        )
