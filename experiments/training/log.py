"""The log of a run, log.csv with its picture losses.png, and the clock that says how fast a step was."""

import csv
import io
import time
from collections.abc import Mapping
from pathlib import Path

from memcomp.experiments.files import atomic_write, system_errors
from memcomp.experiments.inspection.usage import USAGE
from memcomp.experiments.training.board import Board
from memcomp.experiments.video import Frame

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
    """The table log.csv: `COLUMNS`, `USAGE` of a memory, the weighted loss terms; what was not measured is empty.

    On CUDA there is a column more, peak_gib: what the tensors of the first process took at most so far.

    Args:
        path: of the table.
        start: rows behind this step (of a run killed after its last checkpoint) are dropped.
        board: gets the same numbers.
    """

    def __init__(self, path: Path, start: int, board: Board | None = None) -> None:
        self.path, self.board = path, board
        self.rows: list[dict[str, str]] = []
        if start and path.is_file():
            with path.open(newline="", encoding="utf-8") as file:
                rows = [row for row in csv.DictReader(file) if None not in row.values()]  # a killed writer's last one
            self.rows = [row for row in rows if row["step"].isdecimal() and int(row["step"]) <= start]
        self.columns = list(self.rows[0]) if self.rows else list(COLUMNS)
        self._rewrite()

    def add(self, values: Mapping[str, float | int]) -> None:
        """Append a row, and flush it; a new column makes the file anew."""
        row = _texts(values)
        self.rows.append(row)
        self._show(int(values["step"]), values)
        new = [name for name in row if name not in self.columns]
        if new:
            self.columns += new
            self._rewrite()
            return
        with system_errors(self.path), self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns, restval="", lineterminator="\n").writerow(row)

    def complete(self, step: int, values: Mapping[str, float | int]) -> None:
        """Add values to the last row if it is that of `step`; else append a row."""
        if not self.rows or self.rows[-1]["step"] != str(step):
            self.add({"step": step} | dict(values))
            return
        self._show(step, values)
        self.rows[-1] |= _texts(values)
        self.columns += [name for name in values if name not in self.columns]
        self._rewrite()

    def has(self, name: str, step: int) -> bool:
        """Whether the row of `step` has a value in a column."""
        return any(row["step"] == str(step) and row.get(name) for row in self.rows)

    def column(self, name: str, above: int = -1) -> list[float]:
        """Return the values of a column, of the rows behind step `above` that have one."""
        return [float(row[name]) for row in self.rows if row.get(name) and int(row["step"]) > above]

    def draw(self, folder: Path, step: int, samples: Frame) -> None:
        """Draw loss and held-out loss over the steps, and the use of the memory; the board gets a grid of samples."""
        from memcomp.experiments.output.figures import loss_curves

        logs = {self.path.parent.name: self.path}
        loss_curves(folder / "losses.png", logs, ["loss", "held_out"])
        if any(map(self.column, USAGE)):
            loss_curves(folder / "usage.png", logs, USAGE)
        if self.board is not None:
            self.board.picture(step, "samples", samples)

    def _show(self, step: int, values: Mapping[str, float | int]) -> None:
        if self.board is not None:
            self.board.scalars(step, {name: value for name, value in values.items() if name != "step"})

    def _rewrite(self) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        with atomic_write(self.path) as temporary:
            temporary.write_text(text.getvalue(), encoding="utf-8")


def _texts(values: Mapping[str, float | int]) -> dict[str, str]:
    return {name: f"{value:.9g}" if isinstance(value, float) else str(value) for name, value in values.items()}


class Clock:
    """Images per second and the share of time spent waiting for data, as running means over about 20 steps.

    The first step, in which workers start and a GPU chooses its kernels, is told and then forgotten: with half a minute
    of it in the mean, a hundred steps would look slow.
    """

    def __init__(self) -> None:
        self._begin = self._here = time.perf_counter()
        self._waited = self._spent = 0.0
        self._steps = 0

    def data_is_here(self) -> None:
        """Note that the step's batch has arrived."""
        self._here = time.perf_counter()

    def step_is_done(self, images: int) -> tuple[float, float]:
        """Note that the step is done; returns images per second and the share of waiting (0 to 1)."""
        now = time.perf_counter()
        keep = 0.95 if self._steps > 1 else 0.0
        self._steps += 1
        self._waited = keep * self._waited + (1 - keep) * (self._here - self._begin)
        self._spent = keep * self._spent + (1 - keep) * (now - self._begin)
        return images / self._spent, self._waited / self._spent

    def restart(self) -> None:
        """Forget the time since the step: pictures, checkpoints and the held-out loss do not count."""
        self._begin = time.perf_counter()
