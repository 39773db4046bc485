"""memcomp: a learned facial memory for talking-head generators (MCNet, ICCV 2023)."""

from memcomp.compensation import CompensationConfig, CompensationOutput, MemoryCompensation
from memcomp.iicm import IICM
from memcomp.mcm import MCM
from memcomp.memory import MetaMemory

__all__ = ["IICM", "MCM", "CompensationConfig", "CompensationOutput", "MemoryCompensation", "MetaMemory"]
