"""Upstream's checkpoints: read without running their pickles, and recognised; helpers to read sizes off weights."""

from memcomp.adapters.upstream.checkpoint import Checkpoint, Recognised, build, read_checkpoint, recognise

__all__ = ["Checkpoint", "Recognised", "build", "read_checkpoint", "recognise"]
