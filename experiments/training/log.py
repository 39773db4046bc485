"""What a run leaves besides its weights: log.csv, losses.png, the held-out loss, grids of samples; how fast it was."""

import csv
import io
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import torch
import torch.nn.functional as F
from torch import Tensor

from memcomp.adapters import Host, HostOutput
from memcomp.experiments.data.pairs import PairSet, collate, seeded
from memcomp.experiments.errors import UserError
from memcomp.experiments.files import atomic_write
from memcomp.experiments.recipe.sections import Recipe
from memcomp.experiments.training.loss import Objective

COLUMNS = (
    "step",
    "loss",
    "held_out",  # loss on fixed pairs of people outside the training data
    "lr",
    "gradient_norm",  # before clipping
    "skipped_steps",  # so far, for a gradient that was not finite
    "damaged_clips",  # met so far
    "images_per_second",
    "waiting",  # share of the time spent waiting for data
)


class RunLog:
    """log.csv: `COLUMNS`, then one for each loss term, weighted; a cell is empty where nothing was measured.

    Rows behind step `start` (of a run killed after its last checkpoint) are dropped.
    """

    def __init__(self, path: Path, start: int) -> None:
        self.path = path
        self.rows: list[dict[str, str]] = []
        if start and path.is_file():
            with path.open(newline="", encoding="utf-8") as file:
                self.rows = [row for row in csv.DictReader(file) if int(row["step"]) <= start]
        self.columns = list(self.rows[0]) if self.rows else list(COLUMNS)
        self._rewrite()

    def add(self, values: Mapping[str, float | int]) -> None:
        """Append a row, and flush it; a new column makes the file anew."""
        row = {name: f"{value:.9g}" if isinstance(value, float) else str(value) for name, value in values.items()}
        self.rows.append(row)
        new = [name for name in row if name not in self.columns]
        if new:
            self.columns += new
            self._rewrite()
            return
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns, restval="", lineterminator="\n").writerow(row)

    def column(self, name: str) -> list[float]:
        """The values of a column, where there are any."""
        return [float(row[name]) for row in self.rows if row.get(name)]

    def draw(self, path: Path) -> None:
        """Draw loss and held-out loss over the steps."""
        from memcomp.experiments.output.figures import loss_curves

        loss_curves(path, {self.path.parent.name: self.path}, ["loss", "held_out"])

    def _rewrite(self) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        with atomic_write(self.path) as temporary:
            temporary.write_text(text.getvalue(), encoding="utf-8")


class Clock:
    """Images per second and the share of time spent waiting for data, as running means over about 20 steps."""

    def __init__(self) -> None:
        self._begin = self._here = time.perf_counter()
        self._waited = self._spent = 0.0

    def data_is_here(self) -> None:
        """The step's batch has arrived."""
        self._here = time.perf_counter()

    def step_is_done(self, images: int) -> tuple[float, float]:
        """The step is done: images per second, share of waiting (0 to 1)."""
        now = time.perf_counter()
        keep = 0.95 if self._spent else 0.0
        self._waited = keep * self._waited + (1 - keep) * (self._here - self._begin)
        self._spent = keep * self._spent + (1 - keep) * (now - self._begin)
        return images / self._spent, self._waited / self._spent

    def restart(self) -> None:
        """What came since the step (pictures, checkpoints, the held-out loss) does not count."""
        self._begin = time.perf_counter()


class HeldOut:
    """Fixed pairs that training does not see: their loss in eval mode, and pictures of them.

    Raises:
        UserError: one of their clips is damaged.
    """

    def __init__(self, recipe: Recipe, objective: Objective, pairs: PairSet, device: torch.device) -> None:
        self.objective = objective
        self.batches: list[tuple[Tensor, Tensor]] = []
        for start in range(0, recipe.log.held_out_pairs, recipe.optim.batch_size):
            stop = min(start + recipe.optim.batch_size, recipe.log.held_out_pairs)
            batch = collate([pairs[i] for i in range(start, stop)])
            if batch["skipped"]:
                raise UserError(batch["skipped"][0])
            self.batches.append((batch["source"].to(device), batch["driving"].to(device)))

    def loss(self, host: Host) -> float:
        """Mean loss over the pairs."""
        total = 0.0
        with _evaluating(host):
            for number, (source, driving) in enumerate(self.batches):
                loss, _, _ = self.objective(host, source, driving, seeded(0, "held out", number))
                total += loss.item() * len(source)
        return total / sum(len(source) for source, _ in self.batches)

    def samples(self, host: Host, rows: int = 6) -> Tensor:
        """`sample_grid` of the first pairs; in a further training stage with the motion that it teaches."""
        source, driving = (images[:rows] for images in self.batches[0])
        stage = self.objective.stage
        with _evaluating(host):
            if stage not in host.motion_modes:
                return sample_grid(source, driving, host.reconstruct(source, driving))
            of_source, of_driving = host.keypoints(source), host.keypoints(driving)
            motion: dict[str, Any] = {"mode": stage}  # only hosts with such a stage take it
            moved = host.transfer_motion(of_source, of_driving, of_driving, **motion)
            return sample_grid(source, driving, host.generate(source, of_source, moved))


@contextmanager
def _evaluating(host: Host) -> Iterator[None]:
    host.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        host.train()


def sample_grid(source: Tensor, driving: Tensor, output: HostOutput) -> Tensor:
    """Rows of source | driving | warped source | prediction, (B, 3, H, W) each → uint8 (B·H, 4·W, 3).

    A fourth channel, the disparity, is not drawn.
    Pictures below 128 px are doubled.
    """
    columns: Sequence[Tensor] = (source, driving, output.deformed, output.prediction)
    images = torch.cat([column[:, :3].detach().float().cpu() for column in columns], dim=3)  # (B, 3, H, 4W)
    if images.shape[2] < 128:
        images = F.interpolate(images, scale_factor=2, mode="nearest")
    grid = torch.cat(list(images), dim=1)  # (3, B·H, 4W)
    return grid.clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0).contiguous()


def save_picture(path: Path, picture: Tensor) -> None:
    """Write uint8 (H, W, 3) as PNG, all or nothing."""
    with atomic_write(path) as temporary:
        iio.imwrite(temporary, picture.numpy(), extension=".png")
