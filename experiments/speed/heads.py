"""`memcomp speed heads`: how fast procedural heads are rendered.

Timed is `render` of one clip of a person whose mesh is known; making the mesh, once per person, is timed apart. Both
are the best of a few rounds, sizes taking turns, so that a busy moment of the machine does not fall on one of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from memcomp.experiments.data.heads import Identity, Poses, render
from memcomp.experiments.data.heads.mesh import build, mesh_detail

FRAMES = {64: 64, 128: 24, 256: 8}  # size in pixels → frames of the clip


def seconds(action: Callable[[], object]) -> float:
    """Wall-clock time of one call."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def measure(rounds: int = 5, first: int = 0) -> tuple[dict[int, float], float]:
    """Frames per second by size, and seconds to make one person's mesh (at full detail)."""
    best = dict.fromkeys(FRAMES, float("inf"))
    mesh = float("inf")
    for r in range(rounds):
        who = Identity.sample(first + r)
        mesh = min(mesh, seconds(lambda who=who: build(who, 1.0)))  # type: ignore[misc]
        for size, frames in FRAMES.items():
            build(who, mesh_detail(size))
            poses = Poses.trajectory(r, frames)
            taken = seconds(lambda who=who, poses=poses, size=size: render(who, poses, size))  # type: ignore[misc]
            best[size] = min(best[size], taken / frames)
    return {size: 1 / taken for size, taken in best.items()}, mesh


def time_heads(rounds: int, threads: int | None = None) -> None:
    """Print the table.

    Args:
        rounds: people timed, the fastest counts.
        threads: of the CPU; None = all cores.
    """
    torch.set_num_threads(threads or torch.get_num_threads())
    rates, mesh = measure(rounds)
    print(f"procedural heads, {torch.get_num_threads()} threads, best of {rounds}")
    for size, rate in rates.items():
        print(f"{size:5d} px {rate:8.1f} frames/s")
    print(f"one person's mesh {1e3 * mesh:.0f} ms")
