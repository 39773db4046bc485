"""Train two recipes side by side on the same data and measure both on the same pairs.

`report.md` and `metrics.json` in the output folder hold numbers only, no pictures and no paths: they can be kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memcomp.experiments.checkpoints.trained import load_host, read_trained
from memcomp.experiments.errors import UserError
from memcomp.experiments.evaluation.options import COPY, CROSS, LIST, SAME, PairOptions
from memcomp.experiments.evaluation.pair_lists import ListReport, write_list
from memcomp.experiments.evaluation.pairs import at_root, evaluation_pairs, has_truth
from memcomp.experiments.evaluation.panel import Panel
from memcomp.experiments.evaluation.scores import Model, Results, measure
from memcomp.experiments.evaluation.tables import (
    difference_table,
    differences,
    differences_json,
    results_json,
    score_table,
    write_pairs,
)
from memcomp.experiments.files import atomic_write, writable_folder
from memcomp.experiments.output.figures import loss_curves, read_log
from memcomp.experiments.output.tables import markdown, versions, versions_line, write_json
from memcomp.experiments.recipe.load import load_recipe
from memcomp.experiments.recipe.sections import Recipe
from memcomp.experiments.training.loop import LAST
from memcomp.experiments.training.side_by_side import Job, train_side_by_side


@dataclass(frozen=True)
class CompareOptions:
    """What `memcomp compare` is asked for."""

    recipes: tuple[str, str]
    """Names or paths; the second is compared with the first."""
    output: Path
    overrides: tuple[str, ...] = ()
    """`key=value` words that change both."""
    pairs: PairOptions = field(default_factory=PairOptions)


def compare(options: CompareOptions) -> None:
    """Train, measure, print the report, and write it with its numbers and the losses.

    Raises:
        UserError: recipes of different sizes or steps, or what they and the pairs refuse.
    """
    recipes = read_recipes(options)
    first = next(iter(recipes.values()))
    on = at_root(first, options.pairs.root)
    kinds = [kind for kind in (SAME, CROSS) if has_truth(on, kind)]
    lists = ListReport()
    pairs = evaluation_pairs(on, kinds, options.pairs, lists)  # before anything is trained: mistakes show at once
    folder = writable_folder(options.output)
    jobs = {
        label: Job(label, name, options.overrides, folder / label.replace(" + ", "_").replace("/", "_"))
        for label, name in zip(recipes, options.recipes, strict=True)
    }
    train_side_by_side(list(jobs.values()), first.optim.steps or 0)

    hosts = {label: load_host(job.output)[0] for label, job in jobs.items()}
    models = {COPY: Model()} | {name: Model(host, recipes[name].data.channels) for name, host in hosts.items()}
    results = measure(models, pairs, Panel(), lambda kind: has_truth(on, kind))
    text, content = summary(jobs, first, results, options)
    if lists.rows:
        text, content = f"{text}\n\n{lists}", content | {"lists": vars(lists)}
    with atomic_write(folder / "report.md") as temporary:
        temporary.write_text(text + "\n", encoding="utf-8", errors="replace")
    write_json(folder / "metrics.json", content)
    write_pairs(folder / "pairs.csv", results)
    write_list(folder / LIST, pairs)
    logs = {label: job.log for label, job in jobs.items()}
    loss_curves(folder / "losses.png", logs, ["pyramid_l1", "ssim", "held_out"])
    print(f"\n{text}\n\nwritten to {folder}: report.md, metrics.json, pairs.csv, {LIST}, losses.png and the two runs")


def read_recipes(options: CompareOptions) -> dict[str, Recipe]:
    """Label → recipe.

    Raises:
        UserError: they differ in size or steps, count epochs, or are the same recipe.
    """
    loaded = [load_recipe(name, options.overrides) for name in options.recipes]
    labels: Sequence[str] = [recipe.label for recipe in loaded]
    if labels[0] == labels[1]:  # such as two memories in one host
        labels = options.recipes
    recipes = dict(zip(labels, loaded, strict=True))
    same = {(recipe.size, recipe.optim.steps) for recipe in loaded}
    if len(recipes) != 2 or len(same) != 1 or None in next(iter(same)):
        raise UserError("compare: expected two recipes of the same size and optim.steps")
    return recipes


def summary(
    jobs: Mapping[str, Job], recipe: Recipe, results: Results, options: CompareOptions
) -> tuple[str, dict[str, Any]]:
    """The report's text, and its numbers as JSON-ready data (metrics.json)."""
    first, second = jobs
    deltas = differences(results, second, first)
    held_out = {label: held_out_losses(job.log) for label, job in jobs.items()}
    rows = [[label, *(f"{value:.4f}" for value in losses)] for label, losses in held_out.items()]
    command = command_line(options)
    last = min(LAST, recipe.optim.steps or LAST)
    backbone = read_trained(jobs[first].output).info.get("backbone") or "none"
    text = [
        f"`{command}`",
        f"{recipe.size}×{recipe.size}, {recipe.optim.steps} steps of batch {recipe.optim.batch_size}, absolute motion, "
        f"perceptual loss: {backbone}",
        score_table(results, "standard"),
        score_table(results, "paper"),
        difference_table(deltas, f"{second} minus {first}"),
        markdown(["loss on held-out pairs", "before step 1", f"mean of the last {last} steps"], rows),
        "Each loss is its recipe's own sum of terms: to be compared within a row only.",
        versions_line(),
    ]
    content = {
        "format": "memcomp-comparison-1",
        "command": command,
        "steps": recipe.optim.steps,
        "perceptual_backbone": backbone,
        "held_out": {label: {"start": start, "end": end} for label, (start, end) in held_out.items()},
        "results": results_json(results),
        "differences": differences_json(deltas),
        "versions": versions(),
    }
    return "\n\n".join(text), content


def held_out_losses(log: Path) -> tuple[float, float]:
    """The held-out loss before the first step, and its mean over the last steps."""
    values = [value for value in read_log(log)["held_out"].tolist() if not math.isnan(value)]
    last = values[-LAST:]
    return values[0], sum(last) / len(last)


def command_line(options: CompareOptions) -> str:
    """The command as it was typed, this machine's folders replaced by names."""
    local = ("data.root=", "data.cache=", "init=")
    overrides = [word for word in options.overrides if not word.startswith(local)]
    if any(word.startswith("data.root=") for word in options.overrides):
        overrides = ["data.root=CLIPS", *overrides]
    pairs = options.pairs
    files = [f"--pairs-file CLIPS/{file.name}" for file in pairs.files]
    words = [*([f"--pairs {pairs.count}"] if pairs.count else []), f"--seed {pairs.seed}", *files]
    words += [*(["--root CLIPS"] if pairs.root else []), "--output DIR"]
    return " ".join(["memcomp compare", *options.recipes, *overrides, *words])
