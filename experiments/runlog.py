"""What a run leaves besides its weights: log.csv, losses.png, grids of samples."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import imageio.v3 as iio
import torch
import torch.nn.functional as F
from torch import Tensor

from memcomp.adapters.base import HostOutput
from memcomp.experiments.files import atomic_write

COLUMNS = (
    "step",
    "loss",
    "held_out",
    "lr",
    "gradient_norm",
    "skipped_steps",
    "damaged_clips",
    "images_per_second",
    "waiting",
)


class RunLog:
    """log.csv: a row for each logged step; empty cells where nothing was measured.

    Columns: those of `COLUMNS`, then one for each loss term, weighted. `held_out` is the loss on fixed pairs of
    people outside the training data; `waiting` is the share of the time spent waiting for data. Rows of steps
    behind `start` (written by a run that was killed after its last checkpoint) are dropped.
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
        row = {name: f"{value:.6g}" if isinstance(value, float) else str(value) for name, value in values.items()}
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

    def _rewrite(self) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        with atomic_write(self.path) as temporary:
            temporary.write_text(text.getvalue(), encoding="utf-8")


def sample_grid(source: Tensor, driving: Tensor, output: HostOutput, smallest: int = 64) -> Tensor:
    """Rows of source | driving | warped source | prediction: (B, 3, H, W) each → uint8 (B·H, 4·W, 3)."""
    columns: Sequence[Tensor] = (source, driving, output.deformed, output.prediction)
    images = torch.cat([column.detach().float().cpu() for column in columns], dim=3)  # (B, 3, H, 4W)
    if images.shape[2] < smallest * 2:
        images = F.interpolate(images, scale_factor=2, mode="nearest")
    grid = torch.cat(list(images), dim=1)  # (3, B·H, 4W)
    return grid.clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0).contiguous()


def save_picture(path: Path, picture: Tensor) -> None:
    """Write uint8 (H, W, 3) as PNG, all or nothing."""
    with atomic_write(path) as temporary:
        iio.imwrite(temporary, picture.numpy(), extension=".png")
