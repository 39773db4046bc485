"""Time and memory benchmarks: `memcomp speed`."""
