"""One room per host generator: its networks, where the memory taps it, what it trains with."""

if __name__ != "memcomp.adapters":  # a top-level `adapters` would collide with other people's packages
    raise ImportError(f"import memcomp.adapters, not {__name__}: install the project with `pip install -e .` first")

from memcomp.adapters.attachment.attach import attach
from memcomp.adapters.base import Host
from memcomp.adapters.dagan import DaGAN
from memcomp.adapters.fomm import FOMM
from memcomp.adapters.mcnet import MCNet
from memcomp.adapters.outputs import HostOutput, Keypoints
from memcomp.adapters.pretrained import from_pretrained
from memcomp.adapters.registry import create_host, list_hosts, register_host
from memcomp.adapters.tpsm import TPSM

__all__ = [
    "FOMM",
    "TPSM",
    "DaGAN",
    "Host",
    "HostOutput",
    "Keypoints",
    "MCNet",
    "attach",
    "create_host",
    "from_pretrained",
    "list_hosts",
    "register_host",
]
