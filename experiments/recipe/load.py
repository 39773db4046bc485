"""Recipes: typed, strict YAML. Every key is a field of a section; a wrong one is an error that names the nearest.

A recipe may name another, `base: fomm`, and then lists only what differs.
"""

import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from memcomp.experiments.errors import UserError
from memcomp.experiments.recipe.checks import SCHEMA, check
from memcomp.experiments.recipe.reader import nearest
from memcomp.experiments.recipe.sections import (
    AugmentSection,
    LogSection,
    LossSection,
    MemorySection,
    OptimSection,
    PerceptualSection,
    Recipe,
)

__all__ = [
    "AugmentSection",
    "LogSection",
    "LossSection",
    "MemorySection",
    "OptimSection",
    "PerceptualSection",
    "Recipe",
    "load_recipe",
    "recipe_from_dict",
    "recipe_names",
    "recipe_text",
    "with_overrides",
]


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe: one of the package's by name ("fomm", "demo/fomm") or a YAML file by path.

    Args:
        name_or_path: name or path.
        overrides: "optim.lr=1e-3" and the like; the value is YAML.

    Raises:
        UserError: no such recipe; not YAML; an unknown key (with the nearest right one) or a value of a wrong type;
            bases that name each other.
    """
    raw, origin = _read(str(name_or_path), ())
    recipe_from_dict(raw, origin)  # first without overrides, so that each error names its own origin
    return _with_overrides(raw, overrides, origin)


def with_overrides(recipe: Recipe, overrides: Sequence[str], origin: str) -> Recipe:
    """The recipe with some keys changed, as in `load_recipe`; `origin` is named in errors.

    Raises:
        UserError: as `load_recipe`.
    """
    return _with_overrides(recipe.to_dict(), overrides, origin)


def recipe_from_dict(raw: Mapping[str, Any], origin: str) -> Recipe:
    """Check a plain dict and make the recipe of it; `origin` (a file) is named in errors.

    Raises:
        UserError: as `load_recipe`.
    """
    recipe = SCHEMA.read(raw, origin)
    check(recipe, origin)
    return recipe


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
    bare = name_or_path.removesuffix(".yaml")
    if bare in recipe_names():
        resource = resources.files("memcomp.recipes").joinpath(f"{bare}.yaml")
        return resource.read_text(encoding="utf-8"), f"recipe {bare}"
    known = recipe_names()
    raise UserError(f"{name_or_path}: expected a recipe file or one of {', '.join(known)}" + nearest(bare, known))


class _Loader(yaml.SafeLoader):
    """YAML that reads 1e-3 as a number (YAML 1.1 wants 1.0e-3) and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As the base class, without silently keeping the last of two equal keys."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(problem=f"key {key!r} twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _read(name: str, above: tuple[str, ...]) -> tuple[Any, str]:
    """What the YAML holds, its base (and the base's base) filled in; and where it is from.

    Args:
        name: name or path.
        above: the recipes that have named this one as their base.
    """
    text, origin = recipe_text(name)
    if origin in above:
        raise UserError(f"{origin}: base: expected recipes that do not name each other, got {' → '.join(above)}")
    raw = _yaml(text, origin)
    if not isinstance(raw, dict) or "base" not in raw:
        return raw, origin
    base = raw.pop("base")
    if not isinstance(base, str):
        raise UserError(f"{origin}: base: expected a recipe's name or path, got {base!r}")
    below, base_origin = _read(base, (*above, origin))
    recipe_from_dict(below, base_origin)  # so that an error names the file it is in
    return _merge(below, raw), origin


def _merge(below: Any, above: Any) -> Any:
    """`above` on top of `below`: mappings key by key, anything else as a whole."""
    if isinstance(below, dict) and isinstance(above, dict):
        return below | {key: _merge(below.get(key), value) for key, value in above.items()}
    return above


def _yaml(text: str, origin: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{origin}{place}: expected YAML, {getattr(error, 'problem', None) or 'unreadable'}") from None


def _with_overrides(raw: dict[str, Any], overrides: Sequence[str], origin: str) -> Recipe:
    for override in overrides:
        _override(raw, override)
    return recipe_from_dict(raw, f"{origin} with {' '.join(overrides)}" if overrides else origin)


def _override(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise UserError(f"{override!r}: expected key=value, such as optim.lr=1e-3")
    *path, last = key.strip().split(".")
    for part in path:
        if raw.get(part) is None:
            raw[part] = {}
        raw = raw[part]
        if not isinstance(raw, dict):
            raise UserError(f"{override!r}: {part!r} holds a single value, not keys")
    raw[last] = _yaml(text, f"override {override!r}")
