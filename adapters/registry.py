"""Which hosts there are: ours, and those that installed packages bring."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any, TypeVar

from memcomp.adapters.base import Host
from memcomp.adapters.shared.params import nearest

ENTRY_POINTS = "memcomp.hosts"  # other packages register their hosts in this entry-point group
_HOSTS: dict[str, type[Host]] = {}
H = TypeVar("H", bound=type[Host])


def register_host(host: H) -> H:
    """Make a `Host` subclass known to `create_host` under its `name`; usable as a class decorator."""
    _HOSTS[host.name] = host
    return host


def list_hosts() -> list[str]:
    """Names of all hosts: ours and those that installed packages register in the group ``memcomp.hosts``."""
    return sorted({*_HOSTS, *(point.name for point in entry_points(group=ENTRY_POINTS))})


def host_class(name: str) -> type[Host]:
    """The class of a host, one of `list_hosts()`.

    Raises:
        ValueError: unknown host; the known ones are named.
    """
    if name not in _HOSTS:
        for point in entry_points(group=ENTRY_POINTS, name=name):
            host = point.load()
            if not (isinstance(host, type) and issubclass(host, Host)):
                raise ValueError(f"entry point {name!r} of {ENTRY_POINTS} must name a subclass of Host, not {host!r}")
            _HOSTS[name] = host
    if name not in _HOSTS:
        known = list_hosts()
        raise ValueError(f"unknown host {name!r}{nearest(name, known)}; known hosts: {', '.join(known)}")
    return _HOSTS[name]


def create_host(name: str, model: Mapping[str, Any]) -> Host:
    """A host with fresh weights.

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
