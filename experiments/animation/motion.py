"""How the driving head's motion becomes the source's."""

from __future__ import annotations

from dataclasses import dataclass

from memcomp.adapters import Host
from memcomp.experiments.errors import UserError


@dataclass(frozen=True)
class Motion:
    """How the driving head's motion becomes the source's."""

    mode: str = "relative"
    """One of the host's `motion_modes`. "relative": the motion since a reference frame, the first unless another is
    chosen, is added to the source's keypoints. "absolute": the driving keypoints replace them. "avd": a network of TPSM
    or MRAA keeps the source's shape."""
    adapt_scale: bool = True
    """Scale the relative motion by the ratio of the heads' sizes."""
    turn: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Yaw, pitch and roll in degrees by which the head is turned further, by a host with a free view."""

    def check(self, host: Host) -> None:
        """Raise UserError unless the host has such a motion."""
        if self.mode not in host.motion_modes:
            known = ", ".join(host.motion_modes)
            raise UserError(f"motion: expected one of {known} of the host {host.name!r}, got {self.mode!r}")
        if any(self.turn) and not host.free_view:
            raise UserError(f"yaw, pitch, roll: expected 0, the host {host.name!r} has no free view; facevid2vid has")
