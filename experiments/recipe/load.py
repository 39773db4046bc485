"""Recipes: typed, strict YAML. Every key is a field of a section; a wrong one is an error that names the nearest.

A recipe may name another, `base: fomm`, and then lists only what differs.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from memcomp.experiments.errors import UserError
from memcomp.experiments.recipe.checks import SCHEMA, check
from memcomp.experiments.recipe.packaged import recipe_text
from memcomp.experiments.recipe.sections import Recipe


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
    """Change some keys of a recipe, as in `load_recipe`; `origin` is named in errors.

    Raises:
        UserError: as `load_recipe`.
    """
    return _with_overrides(recipe.to_dict(), overrides, origin, to_train=recipe.trains)


def recipe_from_dict(raw: Mapping[str, Any], origin: str, *, to_train: bool = True) -> Recipe:
    """Check a plain dict and make the recipe of it.

    Args:
        raw: keys and values, as the YAML holds them.
        origin: where they are from (a file), for errors.
        to_train: they must say what to train.

    Raises:
        UserError: as `load_recipe`.
    """
    recipe = SCHEMA.read(raw, origin)
    check(recipe, origin, to_train=to_train)
    return recipe


class _Loader(yaml.SafeLoader):
    """YAML that reads 1e-3 as a number (YAML 1.1 wants 1.0e-3) and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Make a dict of a mapping, refusing a key given twice, of which the base class keeps the last."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(problem=f"key {key!r} twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _read(name: str, above: tuple[str, ...]) -> tuple[Any, str]:
    """Read what the YAML holds, its base (and the base's base) filled in; and where it is from.

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


def _with_overrides(raw: dict[str, Any], overrides: Sequence[str], origin: str, *, to_train: bool = True) -> Recipe:
    for override in overrides:
        _override(raw, override)
    origin = f"{origin} with {' '.join(overrides)}" if overrides else origin
    return recipe_from_dict(raw, origin, to_train=to_train)


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
