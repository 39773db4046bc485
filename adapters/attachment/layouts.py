"""Unmodified upstream generators: how they are recognised, and where the memory taps them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from memcomp.adapters.dagan import taps as dagan
from memcomp.adapters.fomm import taps as fomm
from memcomp.adapters.mcnet import taps as mcnet
from memcomp.adapters.tpsm import taps as tpsm
from memcomp.taps import KeypointTap, Tap

_ENCODER = frozenset({"first", "down_blocks"})
_UNET = _ENCODER | {"up_blocks", "resblock", "final"}
_DEPTH = _ENCODER | {"dense_motion_network", "src_first", "src_down_blocks", "AttnModule"}


@dataclass(frozen=True)
class Layout:
    """The generators of one upstream, and ours, whose modules have the same names."""

    name: str
    section: str
    """Upstream's checkpoint section of the module that generates: the root, which will own the memory."""
    parts: frozenset[str]
    """Children which the root has, by which it is recognised."""
    taps: Callable[[nn.Module], list[Tap]]
    """The root → its taps for mode "inplace"."""
    keypoints: KeypointTap
    """Below the root, or beside it in the dict of modules."""
    warps_one: bool = False
    """It warps the encoder's feature of one size only: mode "skip" can add the others."""
    own_memory: str | None = None
    """Child that is a memory already if it has weights."""

    def matches(self, root: nn.Module) -> bool:
        """Whether `root` has all the parts."""
        return self.parts <= {name for name, _ in root.named_children()}

    def check_own_memory(self, root: nn.Module) -> None:
        """Raise ValueError if upstream's own memory is in its place: one more would compensate its output again."""
        unit = None if self.own_memory is None else root._modules.get(self.own_memory)
        if unit is not None and next(unit.parameters(), None) is not None:
            raise ValueError(
                f"this {type(root).__name__} has a memory already, its '{self.own_memory}': put a module in its place "
                "that takes the same arguments and returns the first one, then attach"
            )


# The first that matches counts: what has more parts comes before what has some of them.
LAYOUTS = (
    Layout(
        name="MCNet",
        section="generator",
        parts=_UNET | {"dense_motion_network"},
        taps=mcnet.inplace_taps,
        keypoints=mcnet.KEYPOINTS,
        own_memory="mbUnit",
    ),
    Layout(
        name="TPSM",
        section="inpainting_network",
        parts=_UNET,
        taps=tpsm.inplace_taps,
        keypoints=tpsm.UPSTREAM_KEYPOINTS,
    ),
    Layout(
        name="DaGAN",
        section="generator",
        parts=_DEPTH | {"bottleneck", "up_blocks", "final"},
        taps=dagan.inplace_taps,
        keypoints=dagan.KEYPOINTS,
        warps_one=True,
    ),
    Layout(
        name="DaGAN (SPADE)",
        section="generator",
        parts=_DEPTH | {"decoder"},
        taps=dagan.inplace_taps,
        keypoints=dagan.KEYPOINTS,
        warps_one=True,
    ),
    Layout(
        name="FOMM",
        section="generator",
        parts=_ENCODER | {"dense_motion_network", "bottleneck", "up_blocks", "final"},
        taps=fomm.inplace_taps,
        keypoints=fomm.KEYPOINTS,
        warps_one=True,
    ),
)


def layout_of(root: nn.Module) -> Layout | None:
    """The first layout that matches; None = unknown."""
    return next((layout for layout in LAYOUTS if layout.matches(root)), None)
