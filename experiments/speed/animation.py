"""`memcomp speed animate`: what it saves to compute a source once, and that memory does not grow with the video."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image

from memcomp import CompensationConfig
from memcomp.adapters import Host, attach, create_host
from memcomp.adapters.registry import host_class, list_hosts
from memcomp.experiments.errors import UserError
from memcomp.experiments.output.tables import versions, write_json
from memcomp.experiments.processes import resolve_device
from memcomp.experiments.speed.options import AnimationSpeedOptions
from memcomp.experiments.video import write_video

SHORT = 10  # seconds of the video that a long one is compared with
RATE = 25
# runs the command and prints the largest resident size of its process, in kB on Linux
MEASURED = (
    "import resource, sys\nfrom memcomp.experiments.cli import main\nstatus = main(sys.argv[1:])\n"
    "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)\nsys.exit(status)"
)


def time_animation(options: AnimationSpeedOptions) -> None:
    """Time each host alone and with a memory, print the ratios and write them; then, if asked, compare peaks."""
    device, rows = resolve_device(options.device), list[dict[str, Any]]()
    print("| host | ms a frame, encoded each time | once | ratio | ratio of CPU time | largest difference |")
    print("|---|---:|---:|---:|---:|---:|")
    for name in options.hosts:
        if name not in list_hosts():
            raise UserError(f"hosts: expected some of {', '.join(list_hosts())}, got {name!r}")
        torch.manual_seed(0)
        host = create_host(name, host_class(name).published).to(device).eval()
        try:
            rows.append(_compared(name, host, options))
        except ValueError as error:
            raise UserError(f"size: the host {name!r} takes no pictures of {options.size} pixels: {error}") from None
        attach(host, CompensationConfig.paper(start="identity"))
        rows.append(_compared(f"{name} + memory", host.eval(), options))
    peaks = peak_memory(options) if options.minutes else {}
    if options.output is not None:
        about = {"size": options.size, "frames": options.frames, "batch": options.batch, "device": str(device)}
        write_json(options.output, {**about, "threads": torch.get_num_threads(), "rows": rows, **peaks, **versions()})


def peak_memory(options: AnimationSpeedOptions) -> dict[str, float]:
    """Animate the demo's host with a video of 10 seconds and a long one; the peaks of both processes in MB."""
    peaks = {}
    with tempfile.TemporaryDirectory() as folder:
        _face(Path(folder) / "face.png")
        for name, seconds in (("short", SHORT), ("long", round(60 * options.minutes))):
            driving, output = Path(folder) / f"{name}.mp4", Path(folder) / f"{name}_moved.mp4"
            _video(driving, seconds * RATE)
            words = ["--checkpoint", "demo", "--source", str(Path(folder) / "face.png"), "--driving", str(driving)]
            command = [sys.executable, "-c", MEASURED, "animate", *words, "--output", str(output)]
            done = subprocess.run([*command, "--device", options.device], capture_output=True, text=True)
            if done.returncode:
                raise UserError(f"{driving}: {done.stderr.splitlines()[-2]}")
            scale = 2**20 if sys.platform == "darwin" else 2**10
            peaks[f"peak_{name}_mb"] = round(int(done.stderr.splitlines()[-1]) / scale, 1)
            print(f"{seconds} s at 64 px: peak {peaks[f'peak_{name}_mb']} MB, {os.path.getsize(output)} bytes written")
    print(f"ratio {peaks['peak_long_mb'] / peaks['peak_short_mb']:.3f}")
    return peaks


def _compared(name: str, host: Host, options: AnimationSpeedOptions) -> dict[str, Any]:
    """Both ways in turn, a batch each, on the same frames; medians, so that what else the machine does counts less.

    CPU time, with one thread, does not count at all what else it does.
    """
    generator = torch.Generator().manual_seed(1)
    noise = torch.rand(1 + options.batch, 3, 8, 8, generator=generator)
    pictures = torch.nn.functional.interpolate(noise, (options.size, options.size), mode="bicubic").clamp(0, 1)
    source, *poses = pictures.to(next(host.parameters()).device)
    times: dict[str, list[float]] = {"each": [], "once": []}
    worked: dict[str, list[float]] = {"each": [], "once": []}
    difference = 0.0
    with torch.inference_mode():
        moved = host.keypoints(torch.stack(poses))
        encoded = host.encode_source(source[None])
        ways = {"each": replace(encoded, features=None), "once": encoded}
        for turn in range(1 + -(-options.frames // options.batch)):
            made = {}
            for way in sorted(ways, reverse=bool(turn % 2)):
                start, before = time.perf_counter(), time.process_time()
                host.keypoints(torch.stack(poses))  # of the driving frames, which both ways need
                made[way] = host.generate_from(ways[way], moved).prediction.cpu()
                if turn:  # the first warms up
                    times[way].append((time.perf_counter() - start) * 1000 / options.batch)
                    worked[way].append(time.process_time() - before)
            difference = max(difference, float((made["each"] - made["once"]).abs().max()))
    row = {way: round(median(found), 2) for way, found in times.items()}
    ratio, cpu = (median(a / b for a, b in zip(t["each"], t["once"], strict=True)) for t in (times, worked))
    print(f"| {name} | {row['each']} | {row['once']} | {ratio:.3f} | {cpu:.3f} | {difference:.1e} |", flush=True)
    ratios = {"ratio": round(ratio, 4), "ratio_cpu": round(cpu, 4)}
    return {"host": name, **row, **ratios, "difference": difference, "batches": len(times["once"])}


def _face(path: Path) -> None:
    rows, columns = np.mgrid[:64, :64]
    disc = (rows - 32) ** 2 + (columns - 32) ** 2 < 500
    Image.fromarray((np.stack([disc * 200, rows * 3, columns * 3], axis=-1)).astype(np.uint8)).save(path)


def _video(path: Path, frames: int) -> None:
    """A disc that goes around, 64×64."""
    rows, columns = np.mgrid[:64, :64]
    with write_video(path, RATE) as append:
        for number in range(frames):
            x, y = 32 + 8 * np.sin(number / 20), 32 + 8 * np.cos(number / 31)
            disc = (rows - y) ** 2 + (columns - x) ** 2 < 400
            append((np.stack([disc * 200, rows * 3, columns * 3], axis=-1)).astype(np.uint8))
