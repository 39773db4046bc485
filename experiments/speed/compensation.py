"""`memcomp speed compensation`: the core against the plain equations, time and peak memory.

Time: both variants run in one process, interleaved, on the same weights and input; the best of the repeats counts,
because on a shared machine everything else only adds. Memory: each variant in a process of its own, the highest
resident memory during the call less what was resident before it (Linux only).
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from memcomp.experiments.errors import UserError

CHANNELS = {64: 256, 128: 128, 256: 64}  # size in pixels: channels there in a generator of the vox-256 width
MODES = {"inference": "forward", "training": "forward + backward", "training_eq4": "the same with Eq. 4's loss"}
VARIANTS = ("plain", "ours")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the subcommand's arguments."""
    parser.add_argument("what", nargs="?", choices=["compensation"], default="compensation", help="what to time")
    parser.add_argument("--sizes", type=int, nargs="+", choices=CHANNELS, default=list(CHANNELS), metavar="PX")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES), metavar="MODE", help=", ".join(MODES))
    parser.add_argument("--repeats", type=int, default=7, help="timed calls of each variant (default 7)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: torch's)")
    parser.add_argument("--memory-channels", type=int, default=512, help="C_m (default 512)")
    parser.add_argument("--no-peak", action="store_true", help="time only, no peak memory")
    parser.add_argument("--output", type=Path, help="also write the rows to this JSON file")


def run(args: argparse.Namespace) -> None:
    """Measure and print one line for each size and mode."""
    import torch

    if args.repeats < 1 or args.threads < 0 or args.memory_channels < 1:
        raise UserError("--repeats and --memory-channels must be at least 1, --threads not negative")
    if args.threads:
        torch.set_num_threads(args.threads)
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads of {os.cpu_count()}, C_m {args.memory_channels}"
    )
    print(f"load average {_load()}; best of {args.repeats}, interleaved; peak memory above what was resident before")
    print(
        f"{'px':>4} {'mode':<13} {'plain s':>8} {'ours s':>8} {'faster':>7} {'plain MB':>9} {'ours MB':>8} {'ratio':>6}"
    )
    rows = []
    for size in args.sizes:
        for mode in args.modes:
            plain, ours = _times(size, mode, args.memory_channels, args.repeats)
            row: dict[str, Any] = {"px": size, "mode": mode, "plain_s": plain, "ours_s": ours, "load": _load()}
            line = f"{size:>4} {mode:<13} {plain:8.3f} {ours:8.3f} {plain / ours:6.2f}x"
            if not args.no_peak and Path("/proc/self/status").exists():
                peaks = [_in_own_process(variant, size, mode, args.memory_channels) for variant in VARIANTS]
                row |= {"plain_mb": peaks[0], "ours_mb": peaks[1]}
                line += f" {peaks[0]:9.0f} {peaks[1]:8.0f} {peaks[1] / peaks[0]:6.2f}"
            rows.append(row)
            print(line, flush=True)
    print(f"load average {_load()}")
    if args.output:
        from memcomp.experiments.files import atomic_write

        with atomic_write(args.output) as temporary:
            Path(temporary).write_text(json.dumps(rows, indent=1) + "\n")


def _call(variant: str, mode: str, size: int, memory_channels: int) -> Callable[[int], None]:
    """A function that runs one variant once on a feature of `pixels` squared (by default `size`)."""
    import torch

    from memcomp import CompensationConfig, MemoryCompensation
    from memcomp.reference import compensate as by_the_equations

    torch.manual_seed(0)
    unit = MemoryCompensation([CHANNELS[size]], 10, CompensationConfig.paper(memory_channels=memory_channels))
    keypoints = torch.rand(1, 10, 2) * 2 - 1
    features = {pixels: torch.randn(1, CHANNELS[size], pixels, pixels) for pixels in (8, size)}

    def once(pixels: int) -> None:
        feature = features[pixels].requires_grad_(mode != "inference")
        with torch.set_grad_enabled(mode != "inference"):
            if variant == "ours" and mode != "training_eq4":
                loss = unit(feature, keypoints, scale=0)
            else:
                compensate = unit.compensate if variant == "ours" else _bind_plain(by_the_equations, unit)
                output = compensate(feature, keypoints, 0)
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


def _times(size: int, mode: str, memory_channels: int, repeats: int) -> tuple[float, float]:
    """Best seconds of (plain, ours)."""
    calls = [_call(variant, mode, size, memory_channels) for variant in VARIANTS]
    best = [float("inf")] * len(calls)
    for repeat in range(repeats + 1):
        for i, call in enumerate(calls):
            start = time.perf_counter()
            call(size)
            if repeat:  # the first call warms up
                best[i] = min(best[i], time.perf_counter() - start)
    return best[0], best[1]


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
