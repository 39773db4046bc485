"""`memcomp train`: train what a recipe describes."""

from __future__ import annotations

import argparse
import math
import shlex
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `memcomp train`."""
    parser.add_argument("recipe", help="name (`memcomp recipes`) or path of a recipe")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="keys of the recipe to change")
    parser.add_argument("--output", metavar="DIR", help="folder of the run (default: runs/<recipe>)")
    parser.add_argument("--resume", action="store_true", help="go on from the run's last checkpoint")
    parser.add_argument("--resume-auto", action="store_true", help="go on if there is something to go on from")
    parser.add_argument(
        "--allow",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY",
        help="keys of the recipe in which a resumed run may differ from what it was trained with so far",
    )


def run(args: argparse.Namespace) -> None:
    """Run `memcomp train`."""
    from memcomp.experiments.errors import counted
    from memcomp.experiments.recipe.load import load_recipe
    from memcomp.experiments.training.loop import LAST, train

    args.overrides += [word for word in args.allow if "=" in word]  # an option's list takes every word behind it
    allow = [word for word in args.allow if "=" not in word]
    recipe = load_recipe(args.recipe, args.overrides)
    folder = Path(args.output or Path("runs") / Path(args.recipe).with_suffix("").name)
    result = train(recipe, folder, resume=True if args.resume else "auto" if args.resume_auto else False, allow=allow)
    if not result.finished:
        again = shlex.join(["memcomp", "train", args.recipe, *args.overrides, "--output", str(folder), "--resume"])
        print(f"stopped after step {result.step}; go on with: {again}")
        raise KeyboardInterrupt
    if not math.isnan(result.held_out_start):
        print(
            f"{folder}: {counted(result.step, 'step')}; loss on held-out pairs {result.held_out_start:.4g} before the "
            f"first, {result.held_out_end:.4g} over the last {min(LAST, result.step)}"
        )
        print(f"measure it with: {shlex.join(['memcomp', 'evaluate', str(folder)])}")
