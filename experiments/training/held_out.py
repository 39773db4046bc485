"""The held-out pairs of a run: their loss, and the grids of samples that show what the host makes of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import torch
import torch.nn.functional as F
from torch import Tensor

from memcomp.adapters import Host, HostOutput
from memcomp.experiments.data.batching import batched, collate, on_device
from memcomp.experiments.data.pairs import PairSet, seeded
from memcomp.experiments.errors import UserError
from memcomp.experiments.files import atomic_write
from memcomp.experiments.inspection.observe import watching
from memcomp.experiments.inspection.usage import usage
from memcomp.experiments.recipe.sections import Recipe
from memcomp.experiments.training.compiled import eager
from memcomp.experiments.training.loss import Objective
from memcomp.experiments.video import Frame, to_frame

WATCHED = 2  # pairs on which the use of the memory is measured


class HeldOut:
    """Fixed pairs that training does not see: their loss in eval mode, and pictures of them.

    Attributes:
        converted: what is told of clips that reading converted.

    Raises:
        UserError: one of their clips is damaged.
    """

    def __init__(self, recipe: Recipe, objective: Objective, pairs: PairSet, device: torch.device) -> None:
        self.objective = objective
        self.batches: list[tuple[Tensor, Tensor]] = []
        self.converted: set[str] = set()
        for part in batched(range(recipe.log.held_out_pairs), recipe.optim.batch_size):
            batch = collate([pairs[i] for i in part])
            if batch["skipped"]:
                raise UserError(batch["skipped"][0])
            self.converted.update(batch["converted"])
            self.batches.append(on_device(batch, device))

    def loss(self, host: Host) -> float:
        """Measure the mean loss over the pairs."""
        total = 0.0
        with _evaluating(host):
            for number, (source, driving) in enumerate(self.batches):
                loss, _, _ = self.objective(host, source, driving, seeded(0, "held out", number))
                total += loss.item() * len(source)
        return total / sum(len(source) for source, _ in self.batches)

    def _first(self, count: int) -> tuple[Tensor, Tensor]:
        source, driving = (images[:count] for images in self.batches[0])
        return self.objective.pictures(source, driving)

    def usage(self, host: Host) -> dict[str, float]:
        """Measure how the host uses its memory on the first pairs, see `inspection.usage`; empty without a memory."""
        if host.memory is None:
            return {}
        source, driving = self._first(WATCHED)
        with _evaluating(host), watching(host) as views:
            host.reconstruct(source, driving)
            return usage(views.values())

    def draw(self, path: Path, host: Host, rows: int = 6) -> Frame:
        """Write the `sample_grid` of the first pairs as PNG, and return it.

        In a further training stage it is drawn with the motion that the stage teaches.
        """
        source, driving = self._first(rows)
        stage = self.objective.stage
        with _evaluating(host):
            if stage not in host.motion_modes:
                output = host.reconstruct(source, driving)
            else:
                of_source, of_driving = host.keypoints(source), host.keypoints(driving)
                motion: dict[str, Any] = {"mode": stage}  # only hosts with such a stage take it
                moved = host.transfer_motion(of_source, of_driving, of_driving, **motion)
                output = host.generate(source, of_source, moved)
        grid = sample_grid(source, driving, output)
        with atomic_write(path) as temporary:
            iio.imwrite(temporary, grid, extension=".png")
        return grid


@contextmanager
def _evaluating(host: Host) -> Iterator[None]:
    host.eval()
    try:
        with torch.no_grad(), eager():
            yield
    finally:
        host.train()


def sample_grid(source: Tensor, driving: Tensor, output: HostOutput) -> Frame:
    """Rows of source | driving | warped source | prediction, (B, C, H, W) each → uint8 (B·H, 4·W, 3).

    A host that warps no image has no third column. A fourth channel, the disparity, is not drawn. Pictures below 128 px
    are doubled.
    """
    columns = [column for column in (source, driving, output.deformed, output.prediction) if column is not None]
    images = torch.cat([column[:, :3].detach().float().cpu() for column in columns], dim=3)  # (B, 3, H, 4W)
    if images.shape[2] < 128:
        images = F.interpolate(images, scale_factor=2, mode="nearest")
    return to_frame(torch.cat(list(images), dim=1))  # of (3, B·H, 4W)
