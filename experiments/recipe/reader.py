"""Plain data into typed dataclasses, strictly: an error names the key, where it stands, and what was expected."""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NoReturn, TypeVar, Union

from memcomp.experiments.errors import UserError

T = TypeVar("T")


class Schema:
    """The keys of a dataclass and of those inside it; a field marked "beside" lends its own fields to its section.

    Args:
        root: the dataclass.
        special: dataclass → how to read it instead, given the value, its dotted key and this reading's `Reader`.
    """

    def __init__(self, root: type[T], special: "Mapping[type, Callable[[Any, str, Reader], Any]]") -> None:
        self.root, self.special = root, special
        self.keys = list(_dotted(root, ""))

    def read(self, raw: Any, origin: str) -> Any:
        """An instance of the root.

        Raises:
            UserError: naming `origin` (a file), the key, and the nearest right one or the expected type.
        """
        return Reader(self, origin).read(self.root, raw, "")


class Reader:
    """One reading of plain data; `origin`, the file it came from, is named in errors."""

    def __init__(self, schema: Schema, origin: str) -> None:
        self.schema, self.origin = schema, origin

    def read(self, kind: Any, value: Any, key: str) -> Any:
        """Read `value` as `kind`: a dataclass, union, literal, tuple, dict or scalar type."""
        form, arguments = typing.get_origin(kind), typing.get_args(kind)
        if kind in self.schema.special:
            return self.schema.special[kind](value, key, self)
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            hints = typing.get_type_hints(kind)
            self.check_keys(value, key, list(hints))
            return kind(**{name: self.read(hints[name], item, join(key, name)) for name, item in value.items()})
        if form in (Union, types.UnionType):
            return self._read_union(kind, value, key)
        if form is Literal and value in arguments:
            return value
        if form is tuple and isinstance(value, (list, tuple)):
            return tuple(self.read(arguments[0], item, key) for item in value)
        if form is dict and isinstance(value, Mapping):
            return dict(value)
        if kind is float and type(value) in (int, float) and math.isfinite(value):
            return float(value)
        if form is None and type(value) is kind is not float:  # `type`, since True is an int as well
            return value
        self.fail(kind, value, key)

    def check_keys(self, value: Any, key: str, known: Sequence[str]) -> None:
        """Fail unless `value` is a mapping whose keys are all `known`."""
        if not isinstance(value, Mapping):
            self.fail(dict, value, key)
        for name in value:
            if name not in known:
                raise UserError(
                    f"{self.origin}: unknown key {join(key, name)!r}; {self._advice(str(name), key, known)}"
                )

    def fail(self, kind: Any, value: Any, key: str) -> NoReturn:
        """Raise UserError: `key` was expected to be of `kind`."""
        hint = nearest(str(value), [str(choice) for choice in typing.get_args(kind)])
        raise UserError(f"{self.origin}: {key or 'recipe'}: expected {_expected(kind)}, got {_describe(value)}{hint}")

    def _read_union(self, kind: Any, value: Any, key: str) -> Any:
        options = [option for option in typing.get_args(kind) if option is not type(None)]
        if value is None and len(options) < len(typing.get_args(kind)):
            return None
        if len(options) == 1 and isinstance(value, Mapping):  # the error may be about a key below this one
            return self.read(options[0], value, key)
        for option in options:
            try:
                return self.read(option, value, key)
            except UserError:
                continue
        self.fail(kind, value, key)

    def _advice(self, name: str, section: str, known: Sequence[str]) -> str:
        """The nearest key: among its neighbours first, then anywhere (a right key in the wrong section)."""
        near = [join(section, match) for match in difflib.get_close_matches(name, known, 1)]
        if not near:
            last = {key.rsplit(".", 1)[-1]: key for key in reversed(self.schema.keys)}
            near = [last[match] for match in difflib.get_close_matches(name, list(last), 1)]
        return f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(known)}"


def nearest(word: str, known: Sequence[str]) -> str:
    """Advice for a mistyped word: "; did you mean …?", or nothing if no known word is near."""
    near = difflib.get_close_matches(word, known, 1)
    return f"; did you mean {near[0]!r}?" if near else ""


def join(section: str, name: Any) -> str:
    """The dotted key of `name` in `section` ("" is the top)."""
    return f"{section}.{name}" if section else str(name)


def _dotted(kind: Any, prefix: str) -> list[str]:
    keys, hints = [], typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        hint, key = hints[field.name], join(prefix, field.name)
        if field.metadata.get("beside"):  # its fields are keys of this section
            keys += _dotted(hint, prefix)
            continue
        keys.append(key)
        for option in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(option):
                keys += _dotted(option, key)
    return keys


_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}


def _expected(kind: Any) -> str:
    form, arguments = typing.get_origin(kind), typing.get_args(kind)
    if form is Literal:
        return " or ".join(repr(choice) for choice in arguments)
    if form is tuple:
        return f"a list, each {_expected(arguments[0])}"
    if form in (Union, types.UnionType):
        return " or ".join(_expected(option) for option in arguments)
    return _NAMES.get(kind, "keys below it")


def _describe(value: Any) -> str:
    if isinstance(value, Mapping):
        return "keys"
    return "null" if value is None else f"{value!r} ({type(value).__name__})"
