"""Is work lost when a training is killed? `python -m memcomp.experiments.studies.kills [--output DIR] [--scratch DIR]`.

A training of six steps is killed (SIGKILL, all its processes) 40 times: at eight points of loading, step, checkpointing
and drawing, each with one and two processes, with and without processes that read data; and eight times some
milliseconds after a point. Six more get a signal that their whole group gets, as schedulers send it. After each, the
folder is animated; then the same command goes on with `--resume-auto`, and the weights at the end are compared, bit by
bit, with those of a training that nothing happened to. The same command goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from memcomp.experiments.files import atomic_write
from memcomp.experiments.output.tables import markdown, versions_line, write_json
from memcomp.experiments.studies.killed_training import Case, Laboratory, Seen

POINTS = {  # where a training is killed → in which of the six steps: early and late
    "loading": (2, 5),
    "step": (1, 4),
    "step: before Adam": (3, 6),
    "log row": (2, 6),
    "checkpoint: begun": (2, 4),
    "checkpoint: half written": (4, 6),
    "checkpoint: not yet renamed": (2, 6),
    "drawing": (3, 6),
}
MODES = ((1, 0), (1, 2), (2, 0), (2, 2))  # processes; processes of each that read data


def cases() -> list[Case]:
    """All cases: 32 at the points, 8 some time behind one, 6 with a signal to the group."""
    draw, found = random.Random(0), []
    for number, (point, steps) in enumerate(POINTS.items()):
        for other, (processes, workers) in enumerate(MODES):
            found.append(Case(processes, workers, point, steps[(number + other) % 2]))
    for point, step in (("step", 3), ("checkpoint: begun", 4)):
        found += [Case(*mode, point, step, round(draw.uniform(0, 0.05), 3)) for mode in MODES]
    for mode in ((1, 0), (1, 2), (2, 2)):
        found += [Case(*mode, "step", 3, 0.0, name) for name in ("SIGTERM", "SIGINT")]
    return found


def table(found: Sequence[tuple[Case, Seen]]) -> str:
    """What happened to each case, in Markdown."""
    header = ["what was sent", "at", "step", "processes", "readers of each", "last passed", "exit", "checkpoint"]
    header += ["temporary files", "left after going on", "readers left", "animate", "going on", "tensors that differ"]
    rows = []
    for case, seen in found:
        late = "" if not case.late else f" + {1000 * case.late:.0f} ms"
        cells = [case.sent, case.point + late, case.step, case.processes, case.workers]
        cells += [f"{seen.last[0]} {seen.last[1]}", " ".join(map(str, seen.status)), seen.checkpoint or "none yet"]
        cells += [*seen.left, seen.workers, seen.animated, " ".join(map(str, seen.resumed)), seen.different]
        rows.append([str(cell) for cell in cells])
    return markdown(header, rows)


def page(found: Sequence[tuple[Case, Seen]]) -> str:
    """The kept page."""
    killed = sum(case.sent == "SIGKILL" for case, _ in found)
    lost = sum(seen.lost for _, seen in found)
    return (
        "# Trainings that were killed\n\n"
        "Made by `python -m memcomp.experiments.studies.kills`. Six steps of a small host with a memory on a CPU; "
        "each training is ended where the row says, its folder is animated, and the same command goes on with "
        "`--resume-auto`. Exit: -9 = killed, 130 = stopped with a checkpoint. The last column counts weights and "
        "optimisers' states that are not, bit by bit, those of a training that nothing happened to.\n\n"
        f"{killed} kills, {len(found) - killed} signals to the whole group; in {lost} of {len(found)} anything was "
        f"lost or left behind.\n\n{table(found)}\n\n{versions_line()}\n"
    )


def main() -> int:
    """Try all cases that are not tried yet; returns 1 if anything was lost in one."""
    parser = argparse.ArgumentParser(description="Kill trainings, and see whether anything is lost.")
    parser.add_argument("--output", type=Path, default=Path("runs/kills"), help="folder of kills.md and kills.json")
    parser.add_argument("--scratch", type=Path, help="folder to train in (default: a temporary one)")
    options = parser.parse_args()
    kept_rows = options.output / "kills.json"
    rows = json.loads(kept_rows.read_text()) if kept_rows.is_file() else {}
    with tempfile.TemporaryDirectory() as temporary:
        laboratory = Laboratory(options.scratch or Path(temporary))
        for case in cases():
            if case.name not in rows:
                rows[case.name] = asdict(laboratory.try_out(case))
                write_json(kept_rows, rows)
                print(case.name, rows[case.name], flush=True)
            found = [(one, _read(rows[one.name])) for one in cases() if one.name in rows]
            with atomic_write(options.output / "kills.md") as file:
                file.write_text(page(found), encoding="utf-8")
    return int(any(seen.lost for _, seen in found))


def _read(row: dict[str, Any]) -> Seen:
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}
    return Seen(**values)


if __name__ == "__main__":
    sys.exit(main())
