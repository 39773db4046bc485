"""How a memory gets into a generator: `attach`, the layouts of upstream's generators, and mode "skip"."""
