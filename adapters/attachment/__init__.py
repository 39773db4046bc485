"""How a memory gets into a generator: `attach` and mode "skip"."""
