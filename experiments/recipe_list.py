"""`memcomp recipes`: list the packaged recipes, or print one."""

import argparse
import re
from collections.abc import Iterator

from memcomp.experiments.recipe import load_recipe, recipe_names, recipe_text

SMALL = "demo/"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `memcomp recipes`."""
    parser.add_argument("name", nargs="?", help="print this recipe, with its comments")
    parser.add_argument("--resolved", action="store_true", help="print every key that it resolves to")


def run(args: argparse.Namespace) -> None:
    """`memcomp recipes`."""
    if args.name:
        print(load_recipe(args.name).to_yaml() if args.resolved else recipe_text(args.name)[0], end="")
        return
    for heading, names in grouped():
        print(f"{heading}")
        for name in names:
            print(f"  {name:26} {row(name):38} {title(name)}")


def grouped() -> Iterator[tuple[str, list[str]]]:
    """Heading → the recipes below it: those of one host, the small ones last."""
    groups: dict[str, list[str]] = {}
    for name in recipe_names():
        heading = "small, for a CPU" if name.startswith(SMALL) else load_recipe(name).host.name
        groups.setdefault(heading, []).append(name)
    yield from sorted(groups.items(), key=lambda group: group[1][0].startswith(SMALL))


def title(name: str) -> str:
    """What a recipe is: its first comment."""
    return recipe_text(name)[0].splitlines()[0].lstrip("# ")


def row(name: str) -> str:
    """The row of the paper's Table 2 whose published numbers a recipe's are to be compared with, or "ours"."""
    found = re.search(r"^# Row: (.+)\.$", recipe_text(name)[0], re.MULTILINE)
    return found[1] if found else "ours"
