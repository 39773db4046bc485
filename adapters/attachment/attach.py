"""Attach a memory to a host of ours, or to a generator imported from an unmodified upstream checkout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from torch import nn

from memcomp.adapters.attachment.skip import SkipCompensation, SkipControl, encoder_channels, encoder_taps
from memcomp.adapters.base import Host
from memcomp.adapters.layout import NUM_KP, Layout, in_order, layout_of
from memcomp.adapters.registry import host_classes
from memcomp.compensation import CompensationConfig, MemoryCompensation
from memcomp.handle import Handle
from memcomp.injection import check_attachable, inject
from memcomp.taps import KeypointTap, Tap, VisibilityTap, tap_channels

MODES = ("inplace", "skip", "skip_control")


@dataclass(frozen=True)
class _Site:
    """Where a memory goes."""

    root: nn.Module
    layout: Layout | None
    taps: list[Tap]
    keypoints: KeypointTap
    modules: dict[str, nn.Module]
    """The modules that were given, by section: the motion network may be beside the root."""

    def motion(self) -> nn.Module:
        """The module that is called with the keypoints."""
        name = self.keypoints.module
        if name in self.modules:
            return self.modules[name]
        if name and name.partition(".")[0] not in dict(self.root.named_children()):
            given = ", ".join(self.modules) or "the generator alone"
            raise ValueError(
                f"{type(self.root).__name__} does not call its '{name}' itself: give both, as "
                f'attach({{"{self.layout.section if self.layout else "generator"}": …, "{name}": …}}), not {given}'
            )
        return self.root.get_submodule(name)

    def dims(self) -> int:
        """D, coordinates of a keypoint: as the layout says; without one read off the motion network, 2 by default."""
        return self.layout.keypoint_dims if self.layout else getattr(self.motion(), "keypoint_dims", 2)

    def count(self) -> int:
        """K, read off the motion network."""
        attribute, each = self.layout.count if self.layout else NUM_KP
        motion = self.motion()
        count = getattr(motion, attribute, None)
        if not isinstance(count, int):
            raise ValueError(f"{type(motion).__name__} has no {attribute} to read: say attach(..., keypoints=K)")
        return count * each


def attach(
    target: Host | nn.Module | Mapping[str, nn.Module],
    config: CompensationConfig | None = None,
    *,
    mode: str = "inplace",
    scales: Sequence[int] | None = None,
    keypoints: int | None = None,
    keypoint_dims: int | None = None,
) -> Handle:
    """Give a generator a memory, its code untouched: convert SyncBN → attach → optimiser → DDP → compile.

    The memory belongs to the root, as `root.memory_compensation`: that is `host.generator` of most hosts of ours, or
    the upstream module that generates. Load the host's weights first.

    Args:
        target: a host of ours; an upstream generator; or a dict of upstream modules under the names that their
            sections have in upstream's checkpoints, such as ``{"generator": g, "kp_detector": k}``. TPSM's generator
            never sees keypoints: ``{"inpainting_network": g, "dense_motion_network": d}``.
        config: `CompensationConfig.paper()` by default. With ``start="identity"`` the generator gives exactly its
            own output until the memory is trained.
        mode: "inplace": the tapped tensors themselves are compensated. "skip", for FOMM and DaGAN, which warp only
            the coarsest feature: that is compensated in place; of each finer size the encoder's feature is warped
            too, compensated and added to the decoder's (see `memcomp.adapters.attachment.skip`). "skip_control": the
            same without a memory (`config` has no effect then).
        scales: which of the host's taps to use, by index, coarse to fine; None = all.
        keypoints: K; None = read off the motion network, as the host's `Layout.count` says (its `num_kp` by default).
        keypoint_dims: D, coordinates of a keypoint; None = as the host's `Layout` says, and of a host without one the
            motion network's `keypoint_dims`, or 2.

    Raises:
        ValueError: the target is compiled, wrapped or attached already (the message names the order), is not
            recognised, is a host that takes no memory, or does not fit the other arguments.
    """
    if mode not in MODES:
        raise ValueError(f"unknown mode {mode!r}; known: {', '.join(MODES)}")
    site = _site(target)
    chosen = _select(len(site.taps), scales)
    taps = [site.taps[scale] for scale in chosen]
    motion = site.motion()
    channels, count = tap_channels(site.root, taps), keypoints if keypoints is not None else site.count()
    dims = keypoint_dims if keypoint_dims is not None else site.dims()
    encoder = _encoder(site, mode, chosen)
    compensation: nn.Module
    if mode == "inplace":
        compensation = MemoryCompensation(channels, count, config, dims)
    elif mode == "skip":
        compensation = SkipCompensation(channels, encoder_channels(site.root, encoder), count, config, dims)
    else:
        compensation = SkipControl(channels, encoder_channels(site.root, encoder))
    # the control is no memory, yet does all that a handle asks of one
    memory = cast(MemoryCompensation, compensation)
    visibility = VisibilityTap(site.keypoints.module)  # a host's motion network tells what it dims
    blind = getattr(motion, "occlusion", True) is None or not site.keypoints.module
    if config is not None and config.visibility and mode != "skip_control" and blind:
        raise ValueError("the config says visibility=True, but this generator estimates no occlusion map")
    handle = inject(site.root, memory, taps, site.keypoints, beside=site.modules, visibility=visibility)
    if isinstance(compensation, SkipCompensation | SkipControl):
        sources = {scale: site.root.get_submodule(tap.module) for scale, tap in enumerate(encoder) if tap is not None}
        places = {tap.module: sources[scale] for scale, tap in enumerate(encoder) if tap is not None}
        handle.own(compensation.skips.watch(site.root, motion, sources), places)
    handle.mode, handle.scales = mode, tuple(chosen)
    return handle


def _encoder(site: _Site, mode: str, chosen: list[int]) -> list[Tap | None]:
    """The encoder's features that the mode adds, for each chosen scale; None = the scale is compensated in place."""
    if mode == "inplace":
        return [None] * len(chosen)
    if site.layout is None or not site.layout.warps_one:
        name = site.layout.name if site.layout else type(site.root).__name__
        able = ", ".join(layout.name for layout in _all_layouts() if layout.warps_one)
        raise ValueError(f"mode {mode!r} is for generators that warp the feature of one size: {able}; not for {name}")
    found = encoder_taps(site.root, site.taps)
    return [found[scale] for scale in chosen]


def _site(target: Host | nn.Module | Mapping[str, nn.Module]) -> _Site:
    for module in target.values() if isinstance(target, Mapping) else [target]:
        if not isinstance(module, nn.Module):
            raise ValueError(f"expected a host, a module or a dict of modules, not {type(module).__name__}")
        check_attachable(module)
    if isinstance(target, Host):
        sections = target.sections()
        generator, (taps, keypoints) = sections[target.generator_section], target.taps()
        if not taps:
            raise ValueError(f"the host {target.name!r} takes no memory: it names no taps")
        return _Site(generator, layout_of(generator, target.layouts), taps, keypoints, sections)
    modules, layouts = dict(target) if isinstance(target, Mapping) else {}, _all_layouts()
    for layout in layouts:
        root = modules.get(layout.section) if isinstance(target, Mapping) else target
        if root is not None and layout.matches(root):
            layout.check_own_memory(root)
            return _Site(root, layout, layout.taps(root), layout.keypoints, modules)
    if isinstance(target, Mapping):
        found = ", ".join(f"{name}: {type(module).__name__}" for name, module in target.items())
    else:
        found = f"{type(target).__name__} with {', '.join(name for name, _ in target.named_children())}"
    known = "; ".join(f"{layout.name} (section {layout.section!r})" for layout in layouts)
    raise ValueError(f"not a generator known here: {found}. Known: {known}. For your own, see memcomp.inject")


def _all_layouts() -> list[Layout]:
    return in_order(layout for host in host_classes() for layout in host.layouts)


def _select(taps: int, scales: Sequence[int] | None) -> list[int]:
    if scales is None:
        return list(range(taps))
    if not scales or len(set(scales)) != len(scales) or not all(0 <= scale < taps for scale in scales):
        raise ValueError(f"scales must be some of {list(range(taps))}, each once, not {list(scales)}")
    return sorted(scales)
