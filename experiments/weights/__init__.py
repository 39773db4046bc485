"""Weights that come with the package: the demo's host."""
