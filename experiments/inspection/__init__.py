"""Looking into a memory: what it does while its host runs, and the figures of it (paper, Fig. 1(e), 6, 7 and 8)."""
