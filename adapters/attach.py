"""Attach a memory to a host of ours, or to a generator imported from an unmodified upstream checkout."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from memcomp.adapters.base import Host
from memcomp.adapters.fomm import taps as fomm
from memcomp.compensation import CompensationConfig, MemoryCompensation
from memcomp.taps import Handle, KeypointTap, Tap, check_attachable, inject, tap_channels


@dataclass(frozen=True)
class Layout:
    """How the generators of one upstream are recognised, and where they are tapped."""

    section: str
    """Upstream's checkpoint section of the module that generates: the root, which will own the memory."""
    parts: frozenset[str]
    """Children which the root has, by which it is recognised."""
    taps: Callable[[nn.Module], list[Tap]]
    """The root → its taps for mode "inplace"."""
    keypoints: KeypointTap
    """Below the root, or beside it in the dict of modules."""


LAYOUTS = {
    "FOMM": Layout(
        section="generator",
        parts=frozenset({"dense_motion_network", "first", "down_blocks", "bottleneck", "up_blocks", "final"}),
        taps=fomm.inplace_taps,
        keypoints=fomm.KEYPOINTS,
    ),
}
MODES = ("inplace",)


@dataclass(frozen=True)
class _Site:
    """Where a memory goes."""

    root: nn.Module
    taps: list[Tap]
    keypoints: KeypointTap
    modules: dict[str, nn.Module]
    """All that were given, by section: the motion network may be beside the root."""


def attach(
    target: Host | nn.Module | Mapping[str, nn.Module],
    config: CompensationConfig | None = None,
    *,
    mode: str = "inplace",
    scales: Sequence[int] | None = None,
    keypoints: int | None = None,
) -> Handle:
    """Give a generator a memory, its code untouched: convert SyncBN → attach → optimiser → DDP → compile.

    The memory belongs to the root, as `root.memory_compensation`: that is `host.generator` of our hosts, or the
    upstream module that generates. Load the host's weights first.

    Args:
        target: a host of ours; an upstream generator; or a dict of upstream modules under the names that their
            sections have in upstream's checkpoints, such as ``{"generator": g, "kp_detector": k}``.
        config: `CompensationConfig.paper()` by default. With ``start="identity"`` the generator gives exactly its
            own output until the memory is trained.
        mode: "inplace": the tapped tensors themselves are compensated.
        scales: which of the host's taps to use, by index; None = all.
        keypoints: K; None = read off the motion network (its `num_kp`).

    Raises:
        ValueError: the target is compiled, wrapped or attached already (the message names the order), is not
            recognised, or does not fit the other arguments.
    """
    if mode not in MODES:
        raise ValueError(f"unknown mode {mode!r}; known: {', '.join(MODES)}")
    site = _site(target)
    taps = _select(site.taps, scales)
    name = site.keypoints.module
    motion = site.modules[name] if name in site.modules else site.root.get_submodule(name)
    count = keypoints if keypoints is not None else getattr(motion, "num_kp", None)
    if not isinstance(count, int):
        raise ValueError(f"{type(motion).__name__} has no num_kp to read: say attach(..., keypoints=K)")
    compensation = MemoryCompensation(tap_channels(site.root, taps), count, config)
    return inject(site.root, compensation, taps, site.keypoints, beside=site.modules)


def _site(target: Host | nn.Module | Mapping[str, nn.Module]) -> _Site:
    for module in target.values() if isinstance(target, Mapping) else [target]:
        if not isinstance(module, nn.Module):
            raise ValueError(f"expected a host, a module or a dict of modules, not {type(module).__name__}")
        check_attachable(module)
    if isinstance(target, Host):
        sections = target.sections()
        taps, keypoints = target.taps()
        return _Site(sections[target.generator_section], taps, keypoints, sections)
    for layout in LAYOUTS.values():
        root = target.get(layout.section) if isinstance(target, Mapping) else target
        if root is not None and layout.parts <= {name for name, _ in root.named_children()}:
            modules = dict(target) if isinstance(target, Mapping) else {}
            return _Site(root, layout.taps(root), layout.keypoints, modules)
    if isinstance(target, Mapping):
        found = ", ".join(f"{name}: {type(module).__name__}" for name, module in target.items())
    else:
        found = f"{type(target).__name__} with {', '.join(name for name, _ in target.named_children())}"
    known = "; ".join(f"{name} (section {layout.section!r})" for name, layout in LAYOUTS.items())
    raise ValueError(f"not a generator known here: {found}. Known: {known}. For your own, see memcomp.inject")


def _select(taps: list[Tap], scales: Sequence[int] | None) -> list[Tap]:
    if scales is None:
        return taps
    if not scales or len(set(scales)) != len(scales) or not all(0 <= scale < len(taps) for scale in scales):
        raise ValueError(f"scales must be some of {list(range(len(taps)))}, each once, not {list(scales)}")
    return [taps[scale] for scale in sorted(scales)]
