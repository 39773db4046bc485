"""What the demo draws: heads turning from side to side, moved by each model; curves, the memory, the differences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from memcomp.adapters import Host
from memcomp.experiments.data.heads import Identity, Poses, render
from memcomp.experiments.data.heads_set import HeadsSet
from memcomp.experiments.evaluation.figures import difference_picture
from memcomp.experiments.evaluation.pairs import PEOPLE
from memcomp.experiments.evaluation.scores import host_predictor
from memcomp.experiments.inspection.memory_figures import memory_picture
from memcomp.experiments.metrics.aggregate import Difference
from memcomp.experiments.output.figures import caption, loss_curves, strips
from memcomp.experiments.recipe.sections import Recipe
from memcomp.experiments.training.side_by_side import Job
from memcomp.experiments.video import Frame, to_frame, write_video

TURN = 45.0  # degrees of yaw to either side
FRAMES = 75
RATE = 25
ROWS = 3  # people in a video
COLUMN = 192  # pixels, at least, of a picture in a video


def write_pictures(
    folder: Path,
    recipe: Recipe,
    models: Mapping[str, Host],
    jobs: Sequence[Job],
    deltas: Mapping[str, Mapping[str, Difference]],
) -> None:
    """Draw everything that the demo shows besides its tables.

    Args:
        folder: to write into.
        recipe: of the host: size and data.
        models: what to call them → hosts in eval mode; the last one has the memory.
        jobs: the two trainings, in the same order.
        deltas: the differences to draw.
    """
    people = [HeadsSet("test", PEOPLE, 1, recipe.size, recipe.data.seed).identity(i) for i in range(2 * ROWS)]
    rows: dict[str, list[Frame]] = {}
    for name, shift in (("same identity", 0), ("cross identity", ROWS)):
        shown = [turning(people[i], people[i + shift], i, recipe.size, models) for i in range(ROWS)]
        write_rows(folder / f"{name.replace(' ', '_')}.mp4", shown, ["source", "driving", *models])
        for yaw, frame in ((-40, closest(-40)), (20, closest(20)), (40, closest(40))):
            rows[f"{name},\nyaw {yaw:+d}°"] = [to_frame(column[frame]) for column in shown[0 if yaw < 0 else 1]]
    strips(folder / "strips.png", rows, ["source", "driving", *models])
    logs = {name: job.log for name, job in zip(models, jobs, strict=True)}
    loss_curves(folder / "losses.png", logs, ["pyramid_l1", "ssim", "consistency"])
    memory = list(models.values())[-1].memory
    assert memory is not None
    memory_picture(folder / "memory.png", memory.memory.value, "The memory $M_o$ after training")
    difference_picture(folder / "differences.png", deltas, "host + memory compared with host alone, 95 % intervals")


def turn() -> Tensor:
    """(FRAMES,) yaw in degrees: from the front to one side, to the other, and back."""
    return TURN * torch.sin(torch.linspace(0, 2 * math.pi, FRAMES))


def closest(yaw: float) -> int:
    """The frame of `turn` with this yaw."""
    return int((turn() - yaw).abs().argmin())


def turning(who: Identity, driver: Identity, seed: int, size: int, models: Mapping[str, Host]) -> list[Tensor]:
    """One row of a video: source, driving and each model's prediction, (FRAMES, 3, H, W) each.

    The source looks to the front. The driving head turns by ±45°, the rest of its pose and expression being drawn
    from the seed.
    """
    poses = replace(Poses.trajectory(seed, FRAMES), yaw=turn())
    source = render(who, Poses.make(), size).image.expand(FRAMES, -1, -1, -1)
    driving = render(driver, poses, size).image
    columns = [source, driving]
    for host in models.values():
        predict = host_predictor(host, same=who is driver)
        parts = [predict(*batch) for batch in zip(source.split(16), driving.split(16), strict=True)]
        columns.append(torch.cat(parts))
    return columns


def write_rows(path: Path, rows: Sequence[Sequence[Tensor]], titles: Sequence[str]) -> None:
    """A video with a row for each person and a titled column for each of source, driving and models."""
    size = rows[0][0].shape[-1]
    scale = max(1, math.ceil(COLUMN / size))
    title = caption(titles, size * scale)
    with write_video(path, RATE) as append:
        for t in range(FRAMES):
            picture = torch.cat([torch.cat([column[t] for column in row], dim=2) for row in rows], dim=1)
            enlarged = to_frame(picture).repeat(scale, axis=0).repeat(scale, axis=1)
            append(np.concatenate([title, enlarged]))
