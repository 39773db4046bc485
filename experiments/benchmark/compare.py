"""`memcomp compare`: train two recipes side by side on the same data and measure both on the same pairs.

`report.md` and `metrics.json` in the output folder hold numbers only, no pictures and no paths: they can be kept.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memcomp.experiments.evaluation.pairs import LIST, add_pair_arguments

if TYPE_CHECKING:
    from memcomp.experiments.evaluation.pair_lists import ListReport
    from memcomp.experiments.evaluation.scores import Pair, Results, Scores
    from memcomp.experiments.recipe.sections import Recipe
    from memcomp.experiments.training.side_by_side import Job


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `memcomp compare`."""
    parser.add_argument("recipes", nargs=2, metavar="RECIPE", help="the second is compared with the first")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="keys to change in both")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to write into")
    add_pair_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """`memcomp compare`."""
    from memcomp.experiments.errors import UserError
    from memcomp.experiments.evaluation.pair_lists import ListReport, write_list
    from memcomp.experiments.files import atomic_write, writable_folder
    from memcomp.experiments.output.figures import loss_curves
    from memcomp.experiments.output.tables import write_json, write_pairs
    from memcomp.experiments.recipe.load import load_recipe
    from memcomp.experiments.training.side_by_side import Job, train_side_by_side

    for name, least in (("pairs", 1), ("seed", 0)):
        value = getattr(args, name)
        if value is not None and not least <= value < 2**63:
            raise UserError(f"--{name}: expected {least} or more, got {value}")
    loaded = [load_recipe(name, args.overrides) for name in args.recipes]
    labels = [recipe.label for recipe in loaded]
    if labels[0] == labels[1]:  # such as two memories in one host
        labels = args.recipes
    recipes = dict(zip(labels, loaded, strict=True))
    same = {(recipe.size, recipe.optim.steps) for recipe in loaded}
    if len(recipes) != 2 or len(same) != 1 or None in next(iter(same)):
        raise UserError("compare: expected two recipes of the same size and optim.steps")
    lists = ListReport()
    # before anything is trained, so that a mistake in a list shows at once
    pairs = pairs_to_measure(next(iter(recipes.values())), args, lists)
    folder = writable_folder(args.output)
    jobs = {
        label: Job(label, name, tuple(args.overrides), folder / label.replace(" + ", "_").replace("/", "_"))
        for label, name in zip(recipes, args.recipes, strict=True)
    }
    train_side_by_side(list(jobs.values()), next(iter(recipes.values())).optim.steps or 0)
    results = measure_runs(jobs, pairs)
    text, content = summary(jobs, recipes, results, args)
    if lists.rows:
        text, content = f"{text}\n\n{lists}", content | {"lists": vars(lists)}
    print("\n" + text)
    with atomic_write(folder / "report.md") as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    write_json(folder / "metrics.json", content)
    write_pairs(folder / "pairs.csv", results)
    write_list(folder / LIST, pairs)
    loss_curves(
        folder / "losses.png", {label: job.log for label, job in jobs.items()}, ["pyramid_l1", "ssim", "held_out"]
    )
    print(f"\nwritten to {folder}: report.md, metrics.json, pairs.csv, {LIST}, losses.png and the two runs")


def pairs_to_measure(recipe: Recipe, args: argparse.Namespace, lists: ListReport) -> Mapping[str, Sequence[Pair]]:
    """Kind → pairs of the test split, of kinds with a true target."""
    from memcomp.experiments.evaluation.pairs import CROSS, SAME, at_root, evaluation_pairs, has_truth

    recipe = at_root(recipe, args.root)
    kinds = [kind for kind in (SAME, CROSS) if has_truth(recipe, kind)]
    return evaluation_pairs(recipe, kinds, args.pairs, args.seed, args.pairs_file, lists)


def measure_runs(jobs: dict[str, Job], pairs: Mapping[str, Sequence[Pair]]) -> Results:
    """Scores of both runs, and of copying the source."""
    from tqdm import tqdm

    from memcomp.experiments.checkpoints.trained import load_host
    from memcomp.experiments.evaluation.evaluate import COPY
    from memcomp.experiments.evaluation.pairs import SAME
    from memcomp.experiments.evaluation.scores import Predict, copy_source, host_predictor, score

    hosts = {label: load_host(job.output)[0] for label, job in jobs.items()}
    results: dict[str, Mapping[str, Scores]] = {}
    with tqdm(total=sum(map(len, pairs.values())), unit="pair", desc="evaluate") as bar:
        for kind, chosen in pairs.items():
            models: dict[str, Predict] = {COPY: copy_source}
            models |= {label: host_predictor(host, same=kind == SAME) for label, host in hosts.items()}
            results[kind] = score(models, chosen, tick=bar.update)
    return results


def summary(
    jobs: dict[str, Job], recipes: dict[str, Recipe], results: Results, args: argparse.Namespace
) -> tuple[str, dict[str, Any]]:
    """The report's text and the same numbers for JSON."""
    from memcomp.experiments.checkpoints.trained import read_trained
    from memcomp.experiments.output.tables import (
        difference_table,
        differences,
        differences_json,
        markdown,
        results_json,
        score_table,
        versions,
        versions_line,
    )
    from memcomp.experiments.training.loop import LAST

    first, second = jobs
    deltas = differences(results, second, first)
    held_out = {label: held_out_losses(job.log) for label, job in jobs.items()}
    rows = [[label, *(f"{value:.4f}" for value in losses)] for label, losses in held_out.items()]
    recipe, command = recipes[first], _command(args)
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
    from memcomp.experiments.output.figures import read_log
    from memcomp.experiments.training.loop import LAST

    values = [value for value in read_log(log)["held_out"].tolist() if not math.isnan(value)]
    last = values[-LAST:]
    return values[0], sum(last) / len(last)


def _command(args: argparse.Namespace) -> str:
    """The command line, this machine's folders replaced by names."""
    local = ("data.root=", "data.cache=", "init=")
    overrides: Sequence[str] = [word for word in args.overrides if not word.startswith(local)]
    if any(word.startswith("data.root=") for word in args.overrides):
        overrides = ["data.root=CLIPS", *overrides]
    files = [f"--pairs-file CLIPS/{file.name}" for file in args.pairs_file]
    options = [*([f"--pairs {args.pairs}"] if args.pairs else []), f"--seed {args.seed}", *files]
    options += [*(["--root CLIPS"] if args.root else []), "--output DIR"]
    return " ".join(["memcomp compare", *args.recipes, *overrides, *options])
