"""Time until the command and the package are there: processes of their own, taking turns, the median of each."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

STARTS = {
    "python -c pass": ("-c", "pass"),
    "memcomp --version": ("-m", "memcomp.experiments.cli", "--version"),
    "import memcomp": ("-c", "import memcomp"),
    "import memcomp + MemoryCompensation": ("-c", "from memcomp import MemoryCompensation"),
}


def time_start(repeats: int) -> dict[str, float]:
    """Print a line for each of `STARTS`; returns their median seconds. A first round, untimed, fills the caches."""
    seconds: dict[str, list[float]] = {name: [] for name in STARTS}
    for number in range(repeats + 1):
        for name, words in STARTS.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
            if number:
                seconds[name].append(time.perf_counter() - start)
    found = {name: statistics.median(taken) for name, taken in seconds.items()}
    print(f"seconds, median of {repeats}")
    for name, taken in found.items():
        print(f"{name:<36} {taken:6.3f}")
    return found
