"""What a run is resumed with: its own recipe, or one that differs only in what may change on the way."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from memcomp.experiments.errors import UserError
from memcomp.experiments.processes import Processes
from memcomp.experiments.recipe.checks import SCHEMA
from memcomp.experiments.recipe.sections import LogSection, Recipe

# Rules of the step. In the first, which a checkpoint that names none was trained under, each process drew from a
# generator of its own, and float32 meant TF32 for a GPU's convolutions.
RULES = 2
# what the weights, the optimisers' states and the pictures are shaped by: another value is another run
NEVER = (
    "host",
    "memory",
    "size",
    "capacity",
    "stage",
    "freeze_host",
    "freeze_motion",
    "data.kind",
    "data.depth",
    "data.motion",
)


def allowed_changes(
    given: Recipe, saved: Recipe, allow: Sequence[str], origin: Path, *, rules: int = RULES
) -> list[str]:
    """Compare the recipe that resumes with the one that trained.

    How a run is carried out may change (device, threads, compile, workers, caches, `data.root`, `data.shared_people`,
    logging).

    Args:
        given: what the caller wants.
        saved: what the checkpoint holds.
        allow: keys, or sections, in which they may differ.
        origin: the checkpoint, for errors.
        rules: of the step, under which it was trained so far: what `float32` meant in the older ones is now `tf32`.

    Returns:
        One line for each difference that is allowed, "optim.lr: 0.001 → 0.5".

    Raises:
        UserError: they differ in more, a key of `allow` is none of a recipe, or can never change.
    """
    _check_keys(allow)
    if rules < RULES and (given.precision, saved.precision) == ("tf32", "float32"):
        saved = replace(saved, precision="tf32")
    ours, theirs = (dict(_leaves(_essence(recipe))) for recipe in (given, saved))
    differing = [key for key in sorted(ours.keys() | theirs.keys()) if ours.get(key) != theirs.get(key)]
    refused = [key for key in differing if not _among(key, allow)]
    if refused:
        said = "; ".join(f"{key}={theirs.get(key)}, the recipe says {ours.get(key)}" for key in refused)
        may = [key for key in refused if not _among(key, NEVER)]
        way = f"--allow {' '.join(may)} goes on with the recipe's, " if may == refused else ""
        fixed = [key for key in refused if key not in may]
        never = f" ({', '.join(fixed)} can never change)" if fixed else ""
        raise UserError(
            f"{origin}: was trained with {said}{never}; {way}the run's own recipe.yaml with --resume goes on as it "
            "was, init=FOLDER starts another run from its weights"
        )
    return [f"{key}: {theirs.get(key)} → {ours.get(key)}" for key in differing]


def check_agreement(processes: Processes, recipe: Recipe, start: int) -> None:
    """Compare what the processes of a run are to train, where they go on from, and what they log.

    Raises:
        Incomplete: one of them has ended.
        UserError: one has another recipe than the first, or another checkpoint.
    """
    mine = dict(_leaves(_essence(recipe, log=recipe.log)))
    for rank, (theirs, step) in enumerate(found := processes.gather((mine, start))):
        first, first_step = found[0]
        for key in sorted(first.keys() | theirs.keys()):
            if first.get(key) != theirs.get(key):
                values = f"{key}={theirs.get(key)}, process 0 {first.get(key)}"
                raise UserError(f"process {rank} has {values}: expected the same recipe in every process")
        if step != first_step:
            where = f"process {rank} goes on from step {step}, process 0 from {first_step}"
            raise UserError(f"{where}: expected a folder that all processes see")


def _check_keys(allow: Sequence[str]) -> None:
    known = {*SCHEMA.keys, *(key.split(".")[0] for key in SCHEMA.keys)}
    for key in allow:
        if _among(key, NEVER) or any(fixed.startswith(f"{key}.") for fixed in NEVER):
            raise UserError(f"--allow {key}: can never change in a run; nor can {', '.join(NEVER)}")
        if key not in known:
            near = difflib.get_close_matches(key, sorted(known), 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"--allow {key}: expected a key of a recipe{hint}")


def _essence(recipe: Recipe, log: LogSection | None = None) -> dict[str, Any]:
    """What decides the numbers of a run, and what is logged of it if that counts too."""
    data = replace(recipe.data, workers=0, cache=None, cache_gb=0.0, root=None, shared_people=False)
    return replace(recipe, device="", threads=None, compile=False, data=data, log=log or LogSection()).to_dict()


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, item in value.items():
            yield from _leaves(item, f"{key}.{name}" if key else str(name))
    else:
        yield key, value


def _among(key: str, keys: Sequence[str]) -> bool:
    return any(key == other or key.startswith(f"{other}.") for other in keys)
