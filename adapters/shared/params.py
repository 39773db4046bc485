"""Parameters of a host's networks, as they come from YAML, checked against the constructors that get them."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, get_origin, get_type_hints

# integers that count something → the least that makes a network
COUNTS = dict.fromkeys(("num_kp", "num_tps", "num_regions", "num_channels", "image_channel", "feature_channel"), 1)
COUNTS |= dict.fromkeys(("block_expansion", "max_features", "num_blocks", "num_bins", "compress"), 1)
COUNTS |= dict.fromkeys(("id_bottle_size", "pose_bottle_size", "reshape_channel", "reshape_depth"), 1)
COUNTS |= dict.fromkeys(("num_down_blocks", "num_bottleneck_blocks", "num_resblocks"), 0)


def checked_params(
    where: str, given: Any, constructor: Callable[..., Any], *, supplied: Iterable[str] = ()
) -> dict[str, Any]:
    """`given` as keyword arguments of `constructor`, checked against its signature.

    Args:
        where: name of this section in error messages.
        given: the mapping to check.
        constructor: whose parameters are the known keys; those without default are required.
        supplied: parameters that the caller adds, unknown here.

    Raises:
        ValueError: not a mapping; a key is unknown (the nearest right one is named) or missing; a number, truth value
            or list is expected and something else given; fewer of something than make a network.
    """
    if not isinstance(given, Mapping):
        raise ValueError(f"{where}: expected a mapping of parameters, got {given!r}")
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(constructor).parameters.items()
        if name not in set(supplied) and name != "self"
    }
    known = list(parameters)
    hints = get_type_hints(vars(constructor).get("__init__", constructor))
    for key in given:
        if key not in known:
            raise ValueError(f"{where}.{key}: unknown key{nearest(str(key), known)}; known: {', '.join(known)}")
        _check_kind(f"{where}.{key}", given[key], hints.get(key))
        if hints.get(key) is int and given[key] < (least := COUNTS.get(key, given[key])):
            raise ValueError(f"{where}.{key}: expected {least} or more, got {given[key]}")
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in given:
            raise ValueError(f"{where}.{name}: this key is missing; given: {', '.join(map(str, given)) or 'nothing'}")
    return dict(given)


def _check_kind(name: str, value: Any, kind: Any) -> None:
    """Numbers, truth values and lists are checked; bool is no number here."""
    kinds: dict[Any, tuple[str, tuple[type, ...]]] = {
        int: ("an integer", (int,)),
        float: ("a number", (int, float)),
        bool: ("true or false", (bool,)),
        Sequence: ("a list", (list, tuple)),
    }
    words, accepted = kinds.get(get_origin(kind) or kind, ("", (object, bool)))
    if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in accepted):
        raise ValueError(f"{name}: expected {words}, got {value!r}")


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message: the known name that was perhaps meant, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f", did you mean {close[0]}?" if close else ""
