"""The recipes that come with the package, as text: their names, titles and rows. Needs nothing but Python."""

import re
from importlib import resources
from pathlib import Path

from memcomp.experiments.errors import UserError
from memcomp.experiments.recipe.reader import nearest


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    root = resources.files("memcomp.recipes")
    files = [(f"{folder}{item.name}") for folder in ("", "demo/") for item in (root / folder).iterdir()]
    return sorted(name.removesuffix(".yaml") for name in files if name.endswith(".yaml"))


def recipe_text(name_or_path: str) -> tuple[str, str]:
    """The YAML of a recipe as it is written, comments included, and where it is from, for errors.

    Raises:
        UserError: no such recipe; the nearest name is named.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path.read_text(encoding="utf-8", errors="replace"), str(path)
    bare, known = name_or_path.removesuffix(".yaml"), recipe_names()
    if bare in known:
        resource = resources.files("memcomp.recipes").joinpath(f"{bare}.yaml")
        return resource.read_text(encoding="utf-8"), f"recipe {bare}"
    raise UserError(f"{name_or_path}: expected a recipe file or one of {', '.join(known)}" + nearest(bare, known))


def title(name: str) -> str:
    """What a recipe is, in a line: its first comment."""
    return recipe_text(name)[0].splitlines()[0].lstrip("# ")


def row(name: str) -> str:
    """The row of the paper's Table 2 to compare a recipe's numbers with; "ours" or "none" if there is no such row."""
    found = re.search(r"^# Row: (.+)\.$", recipe_text(name)[0], re.MULTILINE)
    return found[1] if found else "ours"
