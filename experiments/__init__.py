"""The laboratory: clips in; training, evaluation, animation and reports out. Home of the `memcomp` command."""

if __name__ != "memcomp.experiments":  # a top-level `experiments` would collide with other people's packages
    raise ImportError(f"import memcomp.experiments, not {__name__}: install the project with `pip install -e .` first")
