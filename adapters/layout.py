"""How a generator of upstream's code is built: by what it is recognised, and where a memory taps it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from memcomp.taps import KeypointTap, Tap

Sections = Mapping[str, Mapping[str, Tensor]]
"""An upstream checkpoint: its section names → key → tensor, without the names of wrappers (see `bare_key`)."""
WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+|(?<=\.)_orig_mod\.")  # of DataParallel and DDP, of torch.compile
NUM_KP = ("num_kp", 1)


@dataclass(frozen=True)
class Layout:
    """The generators of one upstream, and ours, whose modules have the same names."""

    name: str
    section: str
    """Upstream's checkpoint section of the module that generates: the root, which will own the memory."""
    parts: frozenset[str]
    """Children of the root with weights, by which it is recognised; of layouts that match, the one with most counts."""
    taps: Callable[[nn.Module], list[Tap]]
    """The root → its taps for mode "inplace"."""
    keypoints: KeypointTap
    """The module that is called with the keypoints: below the root, or beside it in the dict of modules."""
    count: tuple[str, int] = NUM_KP
    """The motion network's attribute that K is read off, and by what it is multiplied."""
    warps_one: bool = False
    """It warps the encoder's feature of one size only: mode "skip" can add the others."""
    keypoint_dims: int = 2
    """Coordinates of its keypoints."""
    own_memory: str | None = None
    """Child that is a memory already if it has weights."""

    def matches(self, root: nn.Module) -> bool:
        """Whether `root` has all the parts, none of them empty (upstream's MCNet has FOMM's bottleneck, unused)."""
        return self.parts <= {name for name, child in root.named_children() if any(True for _ in child.parameters())}

    def matches_weights(self, sections: Sections) -> bool:
        """Whether the checkpoint has weights of all the parts."""
        return self.parts <= {key.partition(".")[0] for key in sections.get(self.section, ())}

    def check_own_memory(self, root: nn.Module) -> None:
        """Raise ValueError if upstream's own memory is in its place: one more would compensate its output again."""
        unit = None if self.own_memory is None else root._modules.get(self.own_memory)
        if unit is not None and next(unit.parameters(), None) is not None:
            raise ValueError(
                f"this {type(root).__name__} has a memory already, its '{self.own_memory}': put a module in its place "
                "that takes the same arguments and returns the first one, then attach"
            )


def bare_key(key: str) -> str:
    """A key of a state dict without the names of wrappers: ``module.`` of DDP, ``_orig_mod.`` of `torch.compile`."""
    return WRAPPERS.sub("", key)


def in_order(layouts: Iterable[Layout]) -> list[Layout]:
    """Layouts, each once, in the order to try them: what has all parts of another and more comes before it."""
    return sorted(dict.fromkeys(layouts), key=lambda layout: -len(layout.parts))


def layout_of(root: nn.Module, layouts: Iterable[Layout]) -> Layout | None:
    """The layout of a generator; None = unknown."""
    return next((layout for layout in in_order(layouts) if layout.matches(root)), None)
