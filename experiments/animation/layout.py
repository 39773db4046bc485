"""What is shown: the result alone, beside its source and driving frame, several in a grid, or in its whole picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from memcomp.experiments.animation.paste import Paste
from memcomp.experiments.output.figures import caption, strips
from memcomp.experiments.video import Frame, to_frame

KEPT = 16  # frames that a contact sheet keeps at most while it does not know how many there will be
SHOWN = 8


class Layout:
    """Makes the frame that is written of a driving frame and the results.

    Args:
        pictures: the sources as the host has them, (3, H, W) in [0, 1] each.
        kind: "result", "side by side", "grid" or "paste".
        titles: of the columns, or none.
        paste: for "paste".
    """

    def __init__(
        self, pictures: Sequence[Tensor], kind: str, titles: Sequence[str] = (), paste: Paste | None = None
    ) -> None:
        self.pictures, self.kind, self.paste = list(pictures), kind, paste
        size = self.pictures[0].shape[-1]
        self._head = caption(titles, size) if titles and kind in ("side by side", "grid") else None

    def __call__(self, pose: Tensor, results: Sequence[Tensor]) -> Frame:
        """A frame (H, W, 3) uint8."""
        if self.kind == "paste" and self.paste is not None:
            return self.paste(results[0])
        if self.kind == "side by side":
            frame = to_frame(torch.cat([self.pictures[0], pose, results[0]], dim=-1))
        elif self.kind == "grid":
            above = torch.cat([pose, *self.pictures], dim=-1)
            below = torch.cat([torch.ones_like(pose), *results], dim=-1)
            frame = to_frame(torch.cat([above, below], dim=-2))
        else:
            frame = to_frame(results[0])
        return frame if self._head is None else np.concatenate([self._head, frame])


class ContactSheet:
    """Keeps some frames of a video of any length, evenly spaced."""

    def __init__(self) -> None:
        self._kept: list[tuple[float, Frame, list[Frame]]] = []
        self._step, self._count = 1, 0

    def add(self, time: float, pose: Tensor, results: Sequence[Tensor]) -> None:
        """Take note of a frame."""
        if self._count % self._step == 0:
            self._kept.append((time, to_frame(pose), [to_frame(result) for result in results]))
        self._count += 1
        if len(self._kept) > KEPT:
            self._kept, self._step = self._kept[::2], 2 * self._step

    def draw(self, path: Path) -> None:
        """Write the picture: driving frames above, results below, times as titles."""
        places = np.linspace(0, len(self._kept) - 1, min(SHOWN, len(self._kept))).round().astype(int)
        chosen = [self._kept[place] for place in places]
        many = len(chosen[0][2])
        rows = {"driving": [pose for _, pose, _ in chosen]}
        for number in range(many):
            rows[f"result {number + 1}" if many > 1 else "result"] = [results[number] for _, _, results in chosen]
        strips(path, rows, [f"{time:.2f} s" for time, _, _ in chosen])
