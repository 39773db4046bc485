"""`memcomp recipes`: list the packaged recipes, or print one."""

import argparse
import re

from memcomp.experiments.errors import UserError
from memcomp.experiments.recipe.load import load_recipe, recipe_names, recipe_text

SMALL = "demo/"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `memcomp recipes`."""
    parser.add_argument("name", nargs="?", help="print this recipe, with its comments")
    parser.add_argument("--resolved", action="store_true", help="print every key that it resolves to")


def run(args: argparse.Namespace) -> None:
    """`memcomp recipes`."""
    if args.name and args.resolved:
        print(load_recipe(args.name).to_yaml(), end="")
        return
    if args.name:
        text = recipe_text(args.name)[0].rstrip("\n")
        print(text)
        if base := re.search(r"^base: *([^\s#]+)", text, re.MULTILINE):
            print(f"# The other keys are those of {base[1]}; all of them: memcomp recipes {args.name} --resolved")
        return
    if args.resolved:
        raise UserError("--resolved: expected a recipe's name with it, such as: memcomp recipes fomm --resolved")
    heading = ""
    for name in sorted(recipe_names(), key=lambda name: (name.startswith(SMALL), name)):
        group = "small, for a CPU" if name.startswith(SMALL) else name.partition("_")[0]
        if group != heading:
            print(group)
        heading = group
        print(f"  {name:22} {row(name):38} {title(name)}")
    print(
        "Table 2: the row of the paper with published numbers to compare with. ours, none: there are no such numbers."
    )


def title(name: str) -> str:
    """What a recipe is: its first comment."""
    return recipe_text(name)[0].splitlines()[0].lstrip("# ")


def row(name: str) -> str:
    """The row of the paper's Table 2 that a recipe's numbers are to be compared with; "ours", "none": there is none."""
    found = re.search(r"^# Row: (.+)\.$", recipe_text(name)[0], re.MULTILINE)
    return found[1] if found else "ours"
