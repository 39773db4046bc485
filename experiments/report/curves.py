"""Loss curves of runs, thinned for a page."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from memcomp.experiments.benchmark.runs import Row
from memcomp.experiments.checkpoints.find import checkpoint_path
from memcomp.experiments.output.figures import evenly_spaced, read_log, running_mean

POINTS = 160  # of a drawn curve
# columns of a log that are no loss
OTHER = ("step", "lr", "gradient_norm", "skipped_steps", "damaged_clips", "images_per_second", "waiting")
Curve = list[list[float]]


def curves(row: Row) -> list[dict[str, Curve]]:
    """Loss → [[step, running mean over a twentieth of the run], …] of each run of a row; {} for a run without log."""
    return [loss_curves(log) if (log := log_of(run.path)) else {} for run in row.runs]


def log_of(run: str) -> Path | None:
    """The log beside a run's checkpoint, or a folder higher; None if there is none."""
    file = checkpoint_path(run)
    return next((log for folder in file.parents[:2] if (log := folder / "log.csv").is_file()), None)


def loss_curves(log: Path) -> dict[str, Curve]:
    """Loss → [[step, value], …] of a run's log."""
    table = read_log(log)
    found: dict[str, Curve] = {}
    for name, column in table.items():
        kept = np.isfinite(column)
        if name in OTHER or not column[kept].any():
            continue
        steps, smooth = running_mean(*evenly_spaced(table["step"][kept], column[kept]))
        every = np.unique(np.linspace(0, len(smooth) - 1, min(POINTS, len(smooth))).round().astype(int))
        found[name] = [[float(steps[i]), float(f"{smooth[i]:.5g}")] for i in every]
    return found
