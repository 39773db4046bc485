"""`memcomp speed data`: what a training pair costs, from the clip to the numbers on the device.

Each case is timed by processes of their own that take turns; of several rounds the fastest counts, so that a busy
moment of the machine falls on none of them alone. CPU time is that of one thread.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from memcomp.experiments.data import made_clips
from memcomp.experiments.data.augment import JITTER
from memcomp.experiments.errors import UserError
from memcomp.experiments.files import atomic_write
from memcomp.experiments.speed import loading
from memcomp.experiments.speed.options import DataOptions


def time_data(options: DataOptions) -> list[dict[str, Any]]:
    """Print a line for each case and each code that is compared; returns the rows.

    Raises:
        UserError: `root` has no clips in train/; `against` holds no installed memcomp; a process that fails.
    """
    if options.against is not None and not (options.against / "memcomp" / "experiments").is_dir():
        raise UserError(f"{options.against}: expected a folder that `pip install --target` installed memcomp into")
    with tempfile.TemporaryDirectory(prefix="memcomp-speed-") as scratch:
        jobs = _jobs(options, Path(scratch))
        codes = {"this": None} | ({} if options.against is None else {"other": options.against})
        rounds: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for _ in range(options.rounds):
            for case, job in jobs.items():
                for code, place in codes.items():
                    rounds.setdefault((case, code), []).append(run_one(job, place))
    rows = [{"case": case, "code": code, **_best(found)} for (case, code), found in rounds.items()]
    _print(rows, options)
    if options.output is not None:
        settings = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(options).items()}
        told = {"load": os.getloadavg(), "cores": os.cpu_count(), "settings": settings, "rows": rows}
        with atomic_write(options.output) as temporary:
            temporary.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return rows


def _jobs(options: DataOptions, scratch: Path) -> dict[str, dict[str, Any]]:
    """What is timed, by name: clips in the cache and not, or made ones, as x264 writes them by default and
    as `memcomp prepare` does."""
    common = {"pairs": options.pairs, "batch": options.batch, "workers": options.workers, "step": options.step}
    changes = [f"size={options.size}", *(f"data.augment.{name}={0.1 * options.jitter}" for name in JITTER)]

    def job(root: Path, *, cached: bool) -> dict[str, Any]:
        where = [f"data.cache={scratch / 'cache'}", "data.cache_gb=1000"]
        where = where if cached else [f"data.cache={scratch / 'none'}", "data.cache_gb=0"]
        return common | {"root": str(root), "overrides": [*changes, *where]}

    if options.root is not None:
        return {"cached": job(options.root, cached=True), "not cached": job(options.root, cached=False)}
    kinds = {f"a key frame every {distance}": distance for distance in options.key_frames}
    kinds["as prepare writes"] = options.prepared
    jobs = {}
    for case, distance in kinds.items():
        encode = made_clips.as_prepared if case == "as prepare writes" else made_clips.encode
        folder = scratch / case.replace(" ", "_") / "train"
        folder.mkdir(parents=True)
        for number in range(options.clips):
            frames = made_clips.moving(number, options.frames, options.size)
            encode(folder / f"person{number}_1.mp4", frames, distance)
        jobs[case] = job(folder.parent, cached=False)
    return {"cached": job(folder.parent, cached=True)} | jobs


def run_one(job: dict[str, Any], code: Path | None) -> dict[str, Any]:
    """Time one case in a process of its own, by the code of this installation or of another one."""
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    if code is not None:
        environment["PYTHONPATH"] = str(code.resolve())
    command = [sys.executable, "-P"] if sys.version_info >= (3, 11) else [sys.executable]
    command += [loading.__file__, json.dumps(job)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{job['root']}: loading its clips failed: {(done.stderr.splitlines() or ['?'])[-1]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _best(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The fastest round of each number, and all rounds' CPU time."""
    every = sorted(found["cpu_ms"] for found in rounds)
    by_workers = {
        workers: {
            "pairs_per_second": max(found["by_workers"][workers]["pairs_per_second"] for found in rounds),
            "waiting": min(found["by_workers"][workers]["waiting"] for found in rounds),
        }
        for workers in rounds[0]["by_workers"]
    }
    return {"cpu_ms": every[0], "rounds": every, "by_workers": by_workers, "batch_mb": rounds[0]["batch_mb"]}


def _print(rows: list[dict[str, Any]], options: DataOptions) -> None:
    load = f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    print(f"pairs of {options.size} px, best of {options.rounds}, a step of {options.step:g} s; {load}")
    for row in rows:
        code = "" if options.against is None else f" ({row['code']} code)"
        fast = (
            f"{workers} worker{'s' * (workers != '1')} {found['pairs_per_second']:.0f} pairs/s,"
            f" waiting {found['waiting']:.0%}"
            for workers, found in row["by_workers"].items()
        )
        print(f"{row['case'] + code:<36} {row['cpu_ms']:7.1f} ms CPU a pair · " + " · ".join(fast))
