"""The work that `memcomp speed data` times, in a process of its own: pairs as training loads them.

`python loading.py '{"root": …}'` prints one line of JSON. Started by its path with another installation first on
PYTHONPATH it times that one's code, so it takes nothing from the package but what training takes of any version.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch
from torch.utils.data import DataLoader

from memcomp.experiments.data import batching, sources
from memcomp.experiments.recipe.load import load_recipe


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Load pairs in this process, then by worker processes.

    Args:
        job: root, overrides (of the recipe), pairs, batch, workers (numbers of processes) and step (seconds).

    Returns:
        cpu_ms: of a pair in this process; by_workers: pairs per second and waiting share for each number of workers.
    """
    torch.set_num_threads(1)
    recipe = load_recipe("fomm", ["data.kind=clips", f"data.root={job['root']}", *job["overrides"]])
    pairs, batch, steps = sources.training_pairs(recipe), job["batch"], -(-job["pairs"] // job["batch"])

    def load(workers: int, first: int, count: int = steps) -> DataLoader[Any]:
        sampler = batching.StepBatches(first, first + count, batch)
        return DataLoader(pairs, batch_sampler=sampler, num_workers=workers, collate_fn=batching.collate)

    for given in load(0, 0):  # fills the cache, and finds how long each clip is
        _pictures(given)
    start = time.process_time()
    for given in load(0, steps):
        _pictures(given)
    taken = time.process_time() - start
    found = {}
    for workers in job["workers"]:
        ahead = 2 * workers + 1  # batches that are under way when the first one comes
        # each worker has several of those that count: in a burst of one each they come faster than they are made
        count = max(steps, 4 * workers)
        found[str(workers)] = _with_workers(load(workers, 2 * steps, ahead + count), ahead, job["step"], batch)
    return {"cpu_ms": 1e3 * taken / (steps * batch), "by_workers": found, "batch_mb": _megabytes(given)}


def _with_workers(batches: DataLoader[Any], ahead: int, step: float, size: int) -> dict[str, float]:
    """Pairs per second as fast as they come, and the waiting share of a device that takes `step` seconds a batch.

    The first `ahead` batches count for neither: they are waited for until the processes have started.
    """
    speeds = {}
    for name, seconds in (("free", 0.0), ("busy", step)):
        iterator, waited, count = iter(batches), 0.0, 0
        for _ in range(ahead):
            _pictures(next(iterator))
            time.sleep(seconds)
        start = last = time.perf_counter()
        for given in iterator:
            waited += time.perf_counter() - last
            _pictures(given)
            time.sleep(seconds)
            last, count = time.perf_counter(), count + 1
        speeds[name] = (count, last - start, waited)
    count, taken, _ = speeds["free"]
    _, busy, waited = speeds["busy"]
    return {"pairs_per_second": count * size / taken, "waiting": waited / busy}


def _pictures(batch: dict[str, Any]) -> None:
    """What the device is given: in [0, 1], colours changed; versions up to 0.1.0 did that where a pair was read."""
    if hasattr(batching, "on_device"):
        batching.on_device(batch, torch.device("cpu"))


def _megabytes(batch: dict[str, Any]) -> float:
    return sum(batch[name].numel() * batch[name].element_size() for name in ("source", "driving")) / 1e6


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
