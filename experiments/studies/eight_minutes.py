"""Published recipes on a GPU for eight minutes each: `python -m memcomp.experiments.studies.eight_minutes`.

What it tells of each: pictures a second, the share of the time that the device waits for them, the memory it takes and
how the loss falls, on procedural heads and, with `--clips CLIPS`, on real ones. How good a model gets it does not tell.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from memcomp.experiments.errors import UserError
from memcomp.experiments.files import atomic_write, writable_folder
from memcomp.experiments.output.figures import loss_curves, read_log
from memcomp.experiments.output.tables import markdown, versions_line
from memcomp.experiments.processes import resolve_device
from memcomp.experiments.recipe.load import load_recipe
from memcomp.experiments.training.loop import train

RECIPES = ("fomm_mcnet", "tpsm_mcnet")
HEADS = ("data.kind=heads", "data.identities=200", "data.repeats=75")
OFTEN = ("log.held_out_every=100",)  # a curve of some points
HEADER = ("training", "steps", "images/s", "waiting for data", "peak GiB", "held-out loss before", "after")


def run_for(minutes: float, recipe: str, overrides: Sequence[str], folder: Path) -> None:
    """Train until so much time has passed since the first row of the log, and stop as if a scheduler did.

    Raises:
        UserError: as `train`.
    """
    over = threading.Event()
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()  # that of the training before is not this one's
    threading.Thread(target=_stop_later, args=(minutes, folder / "log.csv", over), daemon=True).start()
    try:
        train(load_recipe(recipe, overrides), folder, resume="auto")
    finally:
        over.set()


def _stop_later(minutes: float, log: Path, over: threading.Event) -> None:
    while not log.is_file() or len(log.read_text(encoding="utf-8").splitlines()) < 3:  # its header, step 0 and a step
        if over.wait(0.5):
            return
    if not over.wait(60 * minutes):
        os.kill(os.getpid(), signal.SIGTERM)


def row(label: str, log: Path) -> list[str]:
    """What the log of a run tells, one line of the page; of the rates the median, for the first steps are slow."""
    table = {name: column[np.isfinite(column)] for name, column in read_log(log).items()}
    held_out, peak = table["held_out"], table.get("peak_gib", np.empty(0))
    return [
        label,
        f"{table['step'][-1]:.0f}",
        f"{np.median(table['images_per_second']):.1f}",
        f"{np.median(table['waiting']):.0%}",
        f"{peak[-1]:.1f}" if peak.size else "",
        f"{held_out[0]:.4g}",
        f"{held_out[-1]:.4g}" if held_out.size > 1 else "",
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Train one after the other, and write eight_minutes.md with the curves of the losses."""
    parser = argparse.ArgumentParser(prog="eight_minutes", description=str(__doc__).partition("\n")[0])
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes to every recipe")
    parser.add_argument("--output", type=Path, required=True, help="folder for the runs and the page")
    parser.add_argument("--clips", type=Path, help="folder with train/ and test/: on real clips, too")
    parser.add_argument("--minutes", type=float, default=8, help="of each training (default: %(default)s)")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), help="(default: %(default)s)")
    args = parser.parse_args(arguments)

    output, logs, rows = writable_folder(args.output), {}, []
    data = {"heads": HEADS} | ({"clips": (f"data.root={args.clips}",)} if args.clips else {})
    for recipe in args.recipes:
        for kind, own in data.items():
            label = f"{recipe}, {kind}"
            folder = output / f"{recipe}_{kind}"
            run_for(args.minutes, recipe, [*own, *OFTEN, *args.overrides], folder)
            logs[label] = folder / "log.csv"
            rows.append(row(label, logs[label]))

    loss_curves(output / "eight_minutes.png", logs, ["loss", "held_out"])
    device = resolve_device(load_recipe(args.recipes[0], args.overrides).device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU"
    changes = f", with {' '.join(args.overrides)}" if args.overrides else ""
    text = f"# {args.minutes:g} minutes each on {name}{changes}\n\n{markdown(HEADER, rows)}\n\n"
    with atomic_write(output / "eight_minutes.md") as temporary:
        temporary.write_text(f"{text}![losses](eight_minutes.png)\n\n{versions_line()}\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
