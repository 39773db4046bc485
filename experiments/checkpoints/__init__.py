"""Checkpoints: the file of a run, the host that it describes, weights that come with the package, conversion."""
