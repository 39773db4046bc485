"""One room per host generator: its networks, where the memory taps it, what it trains with."""

if __name__ != "memcomp.adapters":  # a top-level `adapters` would collide with other people's packages
    raise ImportError(f"import memcomp.adapters, not {__name__}: install the project with `pip install -e .` first")
