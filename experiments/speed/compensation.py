"""`memcomp speed compensation`: the core against the plain equations, and a read by place against the paper's.

Time: all variants run in one process, interleaved, on the same input; the best of the repeats counts, because on a
shared machine everything else only adds. Operations: of convolutions and matrix products. Memory: each variant in a
process of its own, the highest resident memory during the call less what was resident before it (Linux only).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from memcomp import CompensationConfig, MemoryCompensation
from memcomp.experiments.cost import Counted
from memcomp.experiments.files import atomic_write
from memcomp.experiments.speed.options import CHANNELS, CompensationOptions
from memcomp.reference import compensate as by_the_equations

VARIANTS = {"plain": "paper", "ours": "paper", "placed": "placed"}  # and the preset of each


def time_compensation(options: CompensationOptions) -> None:
    """Print one line for each size and mode; write the rows as JSON if asked to."""
    if options.threads:
        torch.set_num_threads(options.threads)
    channels = options.memory_channels
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads of {os.cpu_count()}, C_m {channels}")
    print(f"load average {_load()}; best of {options.repeats}, interleaved; peak memory above what was resident before")
    print(
        f"{'px':>4} {'mode':<13} {'plain s':>8} {'ours s':>8} {'faster':>7} {'placed s':>9} {'/ ours':>7} "
        f"{'operations':>11} {'plain MB':>9} {'ours MB':>8} {'ratio':>6} {'placed MB':>10}"
    )
    rows = []
    for size in options.sizes:
        for mode in options.modes:
            plain, ours, placed = _times(size, mode, channels, options.repeats)
            flop = [operations(variant, size, mode, channels) for variant in ("ours", "placed")]
            row: dict[str, Any] = {"px": size, "mode": mode, "plain_s": plain, "ours_s": ours, "placed_s": placed}
            row |= {"ours_flop": flop[0], "placed_flop": flop[1], "load": _load()}
            line = f"{size:>4} {mode:<13} {plain:8.3f} {ours:8.3f} {plain / ours:6.2f}x {placed:9.3f} "
            line += f"{placed / ours:6.2f}x {flop[1] / flop[0]:10.2f}x"
            if options.peak and Path("/proc/self/status").exists():
                peaks = [_in_own_process(variant, size, mode, channels) for variant in VARIANTS]
                row |= {f"{variant}_mb": peak for variant, peak in zip(VARIANTS, peaks, strict=True)}
                line += f" {peaks[0]:9.0f} {peaks[1]:8.0f} {peaks[1] / peaks[0]:6.2f} {peaks[2]:10.0f}"
            rows.append(row)
            print(line, flush=True)
    print(f"load average {_load()}")
    if options.output:
        with atomic_write(options.output) as temporary:
            temporary.write_text(json.dumps(rows, indent=1) + "\n")


def _call(variant: str, mode: str, size: int, memory_channels: int) -> Callable[[int], None]:
    """A function that runs one variant once on a feature of `pixels` squared: `size`, or a tiny one."""
    torch.manual_seed(0)
    config = getattr(CompensationConfig, VARIANTS[variant])(memory_channels=memory_channels)
    unit = MemoryCompensation([CHANNELS[size]], 10, config)
    keypoints = torch.rand(1, 10, 2) * 2 - 1
    further = {"driving": torch.rand(1, 10, 2) * 2 - 1} if config.driving else {}
    features = {pixels: torch.randn(1, CHANNELS[size], pixels, pixels) for pixels in (8, size)}
    seen = {pixels: torch.rand(1, 1, pixels, pixels) for pixels in features}

    def once(pixels: int) -> None:
        feature = features[pixels].requires_grad_(mode != "inference")
        if config.visibility:
            further["visibility"] = seen[pixels]
        with torch.set_grad_enabled(mode != "inference"):
            if variant != "plain" and mode != "training_eq4":
                loss = unit(feature, keypoints, scale=0, **further)
            else:
                compensate = _bind_plain(by_the_equations, unit) if variant == "plain" else unit.compensate
                output = compensate(feature, keypoints, 0, **further)
                loss = output.feature
                if mode == "training_eq4":
                    loss = loss.mean() + (output.value - output.target).abs().mean()
        if mode != "inference":
            unit.zero_grad()
            feature.grad = None
            loss.mean().backward()

    return once


def _bind_plain(function: Callable, unit: Any) -> Callable:
    return lambda feature, keypoints, scale: function(unit, feature, keypoints, scale)


def operations(variant: str, size: int, mode: str, memory_channels: int = 512) -> int:
    """Operations of one call, counted without computing it; a multiplication and its addition are two."""
    with FakeTensorMode():
        call = _call(variant, mode, size, memory_channels)
        with Counted() as counted:
            call(size)
    return counted.flop


def _times(size: int, mode: str, memory_channels: int, repeats: int) -> list[float]:
    """Best seconds of each variant."""
    calls = [_call(variant, mode, size, memory_channels) for variant in VARIANTS]
    best = [float("inf")] * len(calls)
    for repeat in range(repeats + 1):
        for i, call in enumerate(calls):
            start = time.perf_counter()
            call(size)
            if repeat:  # the first call warms up
                best[i] = min(best[i], time.perf_counter() - start)
    return best


def _in_own_process(*arguments: Any) -> float:
    code = f"from {__spec__.name} import _peak_megabytes; print(_peak_megabytes(*{arguments!r}))"
    return float(subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True).stdout)


def _peak_megabytes(variant: str, size: int, mode: str, memory_channels: int) -> float:
    """Run once at a tiny size, then once at full size: highest resident memory above that before the second call."""
    call = _call(variant, mode, size, memory_channels)
    call(8)
    before = _status("VmRSS")
    call(size)
    return (_status("VmHWM") - before) / 1024


def _status(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return float(line.split()[1])  # kB
    raise RuntimeError(f"no {field} in /proc/self/status")


def _load() -> str:
    return " ".join(f"{value:.2f}" for value in os.getloadavg()) if hasattr(os, "getloadavg") else "unknown"
