"""What things cost in time and memory, measured by `memcomp speed`: the core, hosts, heads, the start."""
