"""memcomp: a learned facial memory for talking-head generators (MCNet, ICCV 2023).

Importing the package imports nothing else: its names and its modules come when they are first used (PEP 562). The
letters of the docstrings (B, K, C_i, C_m, H_m, W_m) are those of the paper; `memcomp/reference.py` lists them.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = [
    "IICM",
    "MCM",
    "CompensationConfig",
    "CompensationOutput",
    "Handle",
    "KeypointTap",
    "MemoryCompensation",
    "MetaMemory",
    "Tap",
    "VisibilityTap",
    "inject",
    "load",
    "save",
]

if TYPE_CHECKING:
    from memcomp import adapters as adapters
    from memcomp import attention as attention
    from memcomp import calls as calls
    from memcomp import checkpoint as checkpoint
    from memcomp import compensation as compensation
    from memcomp import config as config
    from memcomp import formats as formats
    from memcomp import handle as handle
    from memcomp import iicm as iicm
    from memcomp import injection as injection
    from memcomp import layers as layers
    from memcomp import mcm as mcm
    from memcomp import memory as memory
    from memcomp import placed as placed
    from memcomp import places as places
    from memcomp import record as record
    from memcomp import reference as reference
    from memcomp import release as release
    from memcomp import scale as scale
    from memcomp import taps as taps
    from memcomp.checkpoint import load, save
    from memcomp.compensation import CompensationOutput, MemoryCompensation
    from memcomp.config import CompensationConfig
    from memcomp.handle import Handle
    from memcomp.iicm import IICM
    from memcomp.injection import inject
    from memcomp.mcm import MCM
    from memcomp.memory import MetaMemory
    from memcomp.taps import KeypointTap, Tap, VisibilityTap
else:  # hidden from type checkers, to whom a module with `__getattr__` has every name
    _HOMES = {
        "IICM": "iicm",
        "MCM": "mcm",
        "CompensationConfig": "config",
        "CompensationOutput": "compensation",
        "Handle": "handle",
        "KeypointTap": "taps",
        "MemoryCompensation": "compensation",
        "MetaMemory": "memory",
        "Tap": "taps",
        "VisibilityTap": "taps",
        "inject": "injection",
        "load": "checkpoint",
        "save": "checkpoint",
    }
    _MODULES = {
        *_HOMES.values(),
        "attention",
        "calls",
        "formats",
        "layers",
        "placed",
        "places",
        "record",
        "reference",
        "release",
        "scale",
    }
    _MODULES |= {"adapters", "experiments", "recipes"}

    def __getattr__(name: str) -> Any:
        if name in _HOMES:
            value = getattr(import_module(f"memcomp.{_HOMES[name]}"), name)
            globals()[name] = value  # found at once from now on
            return value
        if name in _MODULES:
            return import_module(f"memcomp.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name, obj=sys.modules[__name__])

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__, *_MODULES})
