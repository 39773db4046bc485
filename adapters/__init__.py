"""One room per host generator: its networks, where the memory taps it, what it trains with.

Importing the package imports no host: its names and its modules come when they are first used (PEP 562).
"""

import sys
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

if __name__ != "memcomp.adapters":  # a top-level `adapters` would collide with other people's packages
    raise ImportError(f"import memcomp.adapters, not {__name__}: install the project with `pip install -e .` first")

__all__ = [
    "FOMM",
    "MRAA",
    "TPSM",
    "DaGAN",
    "FaceVid2Vid",
    "Host",
    "HostOutput",
    "Keypoints",
    "Layout",
    "MCNet",
    "attach",
    "create_host",
    "from_pretrained",
    "list_hosts",
    "register_host",
]

if TYPE_CHECKING:
    from memcomp.adapters.attachment.attach import attach
    from memcomp.adapters.base import Host
    from memcomp.adapters.dagan import DaGAN
    from memcomp.adapters.facevid2vid import FaceVid2Vid
    from memcomp.adapters.fomm import FOMM
    from memcomp.adapters.layout import Layout
    from memcomp.adapters.mcnet import MCNet
    from memcomp.adapters.mraa import MRAA
    from memcomp.adapters.outputs import HostOutput, Keypoints
    from memcomp.adapters.pretrained import from_pretrained
    from memcomp.adapters.registry import create_host, list_hosts, register_host
    from memcomp.adapters.tpsm import TPSM
else:  # hidden from type checkers, to whom a module with `__getattr__` has every name
    _HOMES = {
        "FOMM": "fomm",
        "MRAA": "mraa",
        "TPSM": "tpsm",
        "DaGAN": "dagan",
        "FaceVid2Vid": "facevid2vid",
        "Host": "base",
        "HostOutput": "outputs",
        "Keypoints": "outputs",
        "Layout": "layout",
        "MCNet": "mcnet",
        "attach": "attachment.attach",
        "create_host": "registry",
        "from_pretrained": "pretrained",
        "list_hosts": "registry",
        "register_host": "registry",
    }
    _MODULES = {module.name for module in iter_modules(__path__)}

    def __getattr__(name: str) -> Any:
        if name in _HOMES:
            value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
            globals()[name] = value  # found at once from now on
            return value
        if name in _MODULES:
            return import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name, obj=sys.modules[__name__])

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__, *_MODULES})
