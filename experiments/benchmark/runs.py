"""The runs of a benchmark: read from their checkpoints, and put into rows of those that differ only in their seed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memcomp.experiments.checkpoints.trained import read_trained
from memcomp.experiments.errors import UserError
from memcomp.experiments.files import sha256
from memcomp.experiments.recipe.sections import Recipe

# keys of a recipe that do not decide what is trained
LOCAL = (
    *("seed", "device", "threads", "log"),
    *("data.workers", "data.cache", "data.cache_gb", "data.root", "data.shared_people"),
)


@dataclass(frozen=True)
class Run:
    """A checkpoint whose weights were readable."""

    path: str
    """Path as it was given."""
    name: str | None
    """The row that it was given to by name=path."""
    recipe: Recipe
    step: int
    sha256: str
    """Digest of the file of weights."""


@dataclass(frozen=True)
class Row:
    """Runs that differ only in their seed."""

    name: str
    runs: list[Run]

    @property
    def seeds(self) -> list[int]:
        """Seeds of the runs, smallest first."""
        return [run.recipe.seed for run in self.runs]

    def labels(self) -> list[str]:
        """A name for each run that no other run of the row has."""
        return run_labels(self.name, self.seeds)


def run_labels(row: str, seeds: Sequence[int]) -> list[str]:
    """A name for each run of a row, by its seed; the second of the same seed is #2."""
    found: list[str] = []
    for seed in seeds:
        again = sum(label.startswith(f"{row} (seed {seed})") for label in found)
        found.append(f"{row} (seed {seed})" + (f" #{again + 1}" if again else ""))
    return found


def read_runs(words: Sequence[str]) -> tuple[list[Run], dict[str, str]]:
    """Read the runs given as PATH or NAME=PATH.

    Returns:
        those that can be measured, in order; and for each other word why not.
    """
    runs: list[Run] = []
    failed: dict[str, str] = {}
    for word in words:
        name, equals, path = word.partition("=")
        if not equals or Path(word).exists():
            name, path = "", word
        try:
            state = read_trained(path)
            step = 0 if state.recipe is None else state.step  # what is not known to be alike is a row of its own
            found = Run(path, name or None, state.recipe_or_heads(), step, sha256(state.path))
        except UserError as error:
            failed[word] = str(error)
            continue
        twin = next((run for run in runs if run.sha256 == found.sha256 and run.name == found.name), None)
        if twin is not None:
            failed[word] = f"the same checkpoint as {twin.path}"
        else:
            runs.append(found)
    return runs, failed


def reasons(left_out: Mapping[str, str]) -> list[str]:
    """Each run that is left out, and why; the run is not named twice."""
    return [why if why.startswith(word) else f"{word}: {why}" for word, why in left_out.items()]


def rows_of(runs: Sequence[Run]) -> list[Row]:
    """Rows in the order of their first runs.

    Raises:
        UserError: runs of different picture sizes, or runs given the same name that differ in more than their seed.
    """
    sizes = {run.path: run.recipe.size for run in runs}
    if len(set(sizes.values())) > 1:
        said = ", ".join(f"{path}: {size}×{size}" for path, size in sizes.items())
        raise UserError(f"benchmark: expected runs of one picture size, got {said}")
    groups: dict[str, list[Run]] = {}
    for run in runs:
        known = run.step > 0  # a pretrained folder does not tell how it was trained: each is a row of its own
        key = json.dumps([_flat(run), run.step, None if known else run.sha256], sort_keys=True)
        groups.setdefault(run.name or key, []).append(run)
    rows = []
    for members in groups.values():
        for run in members[1:]:
            if difference := _first_difference(members[0], run):
                where = f"{members[0].path} and {run.path}"
                raise UserError(
                    f"benchmark: {where}, both called {run.name}: expected to differ only in their seed, {difference}"
                )
        rows.append(
            (
                members[0].name or label(members[0].recipe, trained=members[0].step > 0),
                sorted(members, key=lambda run: run.recipe.seed),
            )
        )
    names = [name for name, _ in rows]
    return [Row(n if names.count(n) == 1 else f"{n} [{m[0].path}]", m) for n, m in rows]


def label(recipe: Recipe, *, trained: bool = True) -> str:
    """What a recipe's row is called in a table: the recipe's own label and, as in Table 2, what its memory lacks.

    Args:
        recipe: of the run.
        trained: by this recipe; if not, as a pretrained folder, its losses say nothing.
    """
    memory, text = recipe.memory, recipe.label
    if memory is not None and memory.mode != "skip_control":
        config = memory.config
        lacks = {
            "IICM": not config.identity_conditioning,
            "Eq. 3": config.split == "none",
            "Eq. 4": trained and not recipe.loss.consistency,
        }
        missing = [name for name, is_missing in lacks.items() if is_missing]
        text += f" without {', '.join(missing)}" if missing else ""
    return text + (", host frozen" if recipe.freeze_host else ", motion frozen" if recipe.freeze_motion else "")


def _flat(run: Run) -> dict[str, Any]:
    """Dotted key → value of what decides the training."""
    found: dict[str, Any] = {}

    def walk(values: Mapping[str, Any], prefix: str) -> None:
        for key, value in values.items():
            dotted = f"{prefix}{key}"
            if dotted in LOCAL:
                continue
            if isinstance(value, dict) and value:
                walk(value, f"{dotted}.")
            else:
                found[dotted] = value

    walk(run.recipe.to_dict(), "")
    return found


def _first_difference(one: Run, other: Run) -> str:
    first, second = _flat(one) | {"step": one.step}, _flat(other) | {"step": other.step}
    for key in (*first, *second):
        if first.get(key) != second.get(key):
            return f"{key} is {first.get(key)} and {second.get(key)}"
    return ""
