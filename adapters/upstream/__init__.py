"""Upstream's checkpoints: read without running their pickles, and recognised; helpers to read sizes off weights."""
