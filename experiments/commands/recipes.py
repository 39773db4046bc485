"""`memcomp recipes`: list the packaged recipes, or print one."""

import argparse
import re

from memcomp.experiments.errors import UserError
from memcomp.experiments.recipe.packaged import recipe_names, recipe_text, row, title

SMALL = "demo/"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `memcomp recipes`."""
    parser.add_argument("name", nargs="?", help="print this recipe, with its comments")
    parser.add_argument("--resolved", action="store_true", help="print every key that it resolves to")


def run(args: argparse.Namespace) -> None:
    """Print the list, or one recipe. Only `--resolved` needs more than Python: it reads the YAML."""
    if args.resolved:
        if not args.name:
            raise UserError("--resolved: expected a recipe's name with it, such as: memcomp recipes fomm --resolved")
        from memcomp.experiments.recipe.load import load_recipe

        print(load_recipe(args.name).to_yaml(), end="")
        return
    if args.name:
        text = recipe_text(args.name)[0].rstrip("\n")
        print(text)
        if base := re.search(r"^base: *([^\s#]+)", text, re.MULTILINE):
            print(f"# The other keys are those of {base[1]}; all of them: memcomp recipes {args.name} --resolved")
        return
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
