"""Upstream's checkpoints: read without running their pickles, recognised, and what their shapes tell."""
