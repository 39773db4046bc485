"""Which hosts there are: ours, and those that installed packages bring. A host is imported when it is asked for."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from memcomp.adapters.base import Host
from memcomp.adapters.shared.params import nearest

ENTRY_POINTS = "memcomp.hosts"  # other packages register their hosts in this entry-point group
BUILT_IN = {  # as an entry point would
    "fomm": "memcomp.adapters.fomm:FOMM",
    "tpsm": "memcomp.adapters.tpsm:TPSM",
    "dagan": "memcomp.adapters.dagan:DaGAN",
    "mcnet": "memcomp.adapters.mcnet:MCNet",
    "mraa": "memcomp.adapters.mraa:MRAA",
    "facevid2vid": "memcomp.adapters.facevid2vid:FaceVid2Vid",
    "true_motion": "memcomp.adapters.true_motion:TrueMotion",  # a laboratory's, published nowhere
}
_HOSTS: dict[str, type[Host]] = {}  # registered, or loaded so far
H = TypeVar("H", bound=type[Host])


def register_host(host: H) -> H:
    """Make a `Host` subclass known to `create_host` under its `name`; usable as a class decorator."""
    _HOSTS[host.name] = host
    return host


def list_hosts() -> list[str]:
    """Names of all hosts: ours and those that installed packages register in the group ``memcomp.hosts``."""
    return sorted({*_HOSTS, *_entry_points()})


def host_class(name: str) -> type[Host]:
    """The class of a host, one of `list_hosts()`.

    Raises:
        ValueError: unknown host; the known ones are named. Or its entry point leads to none.
    """
    if name not in _HOSTS:
        points = _entry_points()
        if name not in points:
            known = list_hosts()
            raise ValueError(f"unknown host {name!r}{nearest(name, known)}; known hosts: {', '.join(known)}")
        _HOSTS[name] = _load(points[name])
    return _HOSTS[name]


def host_classes() -> list[type[Host]]:
    """The classes of all hosts, ours first; one that cannot be loaded is left out with a warning."""
    found = []
    for name in dict.fromkeys([*BUILT_IN, *list_hosts()]):
        try:
            found.append(host_class(name))
        except ValueError as error:
            warnings.warn(f"left out: {error}", stacklevel=2)
    return found


def create_host(name: str, model: Mapping[str, Any]) -> Host:
    """Make a host with fresh weights.

    Args:
        name: one of `list_hosts()`.
        model: the `model_params` of an upstream YAML file.

    Raises:
        ValueError: unknown host, or an unknown or missing key in `model`.
    """
    host = host_class(name)
    if not isinstance(model, Mapping):
        raise ValueError(f"model: expected a mapping of parameters, got {model!r}")
    return host(model)


def _entry_points() -> dict[str, EntryPoint]:
    theirs = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    return theirs | {name: EntryPoint(name, value, ENTRY_POINTS) for name, value in BUILT_IN.items()}


def _load(point: EntryPoint) -> type[Host]:
    try:
        host = point.load()
    except Exception as error:  # whatever a module of other people's raises when it is imported
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"entry point {point.name!r} of {ENTRY_POINTS} cannot be loaded: {reason}") from error
    if not (isinstance(host, type) and issubclass(host, Host)):
        raise ValueError(f"entry point {point.name!r} of {ENTRY_POINTS} must name a subclass of Host, not {host!r}")
    return host
