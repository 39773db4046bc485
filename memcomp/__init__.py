"""memcomp: a learned facial memory for talking-head generators (MCNet, ICCV 2023)."""

from memcomp.checkpoint import load, save
from memcomp.compensation import CompensationConfig, CompensationOutput, MemoryCompensation
from memcomp.handle import Handle
from memcomp.iicm import IICM
from memcomp.mcm import MCM
from memcomp.memory import MetaMemory
from memcomp.taps import KeypointTap, Tap, inject

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
    "inject",
    "load",
    "save",
]
