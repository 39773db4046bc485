"""The checkpoints of a run's folder: the newest, those before it that are kept, and the best by held-out loss.

The newest is `last.safetensors`; one before it bears its step, `0000250.safetensors`; `best.safetensors` holds weights
alone. Each is a run file (`run_file.py`), and each is there whole or not at all.
"""

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from memcomp.adapters import Host
from memcomp.adapters.folder import CONFIG, WEIGHTS
from memcomp.experiments.checkpoints.find import CHECKPOINT, metadata
from memcomp.experiments.checkpoints.run_file import DamagedRun, RunState, load_run, save_run
from memcomp.experiments.errors import UserError, warn
from memcomp.experiments.files import atomic_write
from memcomp.experiments.recipe.sections import Recipe

BEST = "checkpoints/best.safetensors"
_NUMBERED = re.compile(r"\d{7,}\.safetensors")
_OURS = r"last|best|recipe|log|losses|\d{7,}"  # what a run's folder holds, by the stem of its name
_LEFT = re.compile(rf"\.({_OURS})-[a-z0-9_]{{8}}\.\w+|\.({WEIGHTS}|{CONFIG})\.\d+\.\d+")


def earlier(folder: Path) -> list[Path]:
    """Checkpoints before the newest that a run's folder keeps, the latest first."""
    place = (folder / CHECKPOINT).parent
    found = [file for file in place.glob("*.safetensors") if _NUMBERED.fullmatch(file.name)]
    return sorted(found, key=lambda file: int(file.stem), reverse=True)


def has_run(folder: Path) -> bool:
    """Whether there is a checkpoint to go on from."""
    return (folder / CHECKPOINT).is_file() or bool(earlier(folder))


def load_newest(folder: Path) -> tuple[Path, RunState]:
    """Read the newest checkpoint of a run that is whole; one that is damaged is named in a warning.

    Raises:
        UserError: there is none, none is whole, or what is there is of something else.
    """
    files = [file for file in (folder / CHECKPOINT, *earlier(folder)) if file.is_file()]
    if not files:
        raise UserError(f"{folder / CHECKPOINT}: expected the checkpoint of an earlier run, found nothing")
    damage: list[str] = []
    for file in files:
        try:
            state = load_run(file)
        except DamagedRun as error:
            damage.append(str(error))
            continue
        if damage:
            warn(f"{damage[0]}; the one before it is read: {file}, of step {state.step}")
        return file, state
    raise DamagedRun("; ".join(damage))


def save_checkpoint(
    folder: Path,
    recipe: Recipe,
    host: Host,
    step: int,
    *,
    optimizer: Mapping[str, Tensor],
    average: Mapping[str, Tensor] | None = None,
    info: Mapping[str, Any],
    keep: int,
) -> None:
    """Write the newest checkpoint of a run, and keep `keep` in all: it and those before it.

    Raises:
        UserError: the folder cannot be written.
    """
    last = folder / CHECKPOINT
    if keep > 1 and last.is_file():
        _keep(last)
    save_run(last, recipe, host, step, optimizer=optimizer, average=average, info=info)
    before = [file for file in earlier(folder) if int(file.stem) < step]
    for file in earlier(folder):
        if file not in before[: keep - 1]:
            file.unlink(missing_ok=True)


def make_newest(folder: Path, file: Path) -> None:
    """Put a checkpoint that was kept in the place of the newest, which is damaged."""
    with atomic_write(folder / CHECKPOINT) as temporary:
        shutil.copyfile(file, temporary)


def sweep(folder: Path) -> None:
    """Remove what writers that were killed have left in a run's folder: their temporary files."""
    for place in (folder, (folder / CHECKPOINT).parent, folder / "samples"):
        for file in place.glob(".*"):
            if _LEFT.fullmatch(file.name) and file.is_file():
                file.unlink(missing_ok=True)


def _keep(last: Path) -> None:
    """Give the newest checkpoint a second name, by its step, which stays when a newer one takes its place."""
    about = metadata(last)
    if not about.get("step", "").isdecimal():  # damaged meanwhile
        return
    kept = last.with_name(f"{int(about['step']):07d}.safetensors")
    if kept.exists():
        return
    try:
        os.link(last, kept)
    except OSError:  # a file system without hard links
        with atomic_write(kept) as temporary:
            shutil.copyfile(last, temporary)
