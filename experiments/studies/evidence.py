"""What is a facial memory good for? `python -m memcomp.experiments.studies.evidence --output DIR`, see EVIDENCE.md.

The motion is given (host `true_motion`), so that rows differ only in what completes the warped features. Every row is
trained from scratch for the same steps on the same pairs; then `memcomp benchmark` of all of them, and a plot of the
error on hidden pixels against what a frame costs. With `--whole` the motion is the host's own: one host learns it, and
its occlusion from the heads' exact visibility, and every row is trained on from there. With `--taught` the host learns
its motion from the heads, too, and the rows leave it as it is. With `--scratch` the rows learn all of this from their
first step, each host together with its memory (that much as in the paper). With `--fields` each field of the memory
read by place is tried alone, then other sizes of it. With `--clips` the rows are trained from scratch on real clips, of
which nobody knows what is hidden. `tpsm_near` and `tpsm_far` are TPSM's with another number of levels, and so another
reach; `fomm_published` is FOMM's at its published widths, 256 px, with a memory of the published size: for a GPU. The
same command goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from memcomp.experiments.checkpoints.trained import load_host
from memcomp.experiments.errors import UserError
from memcomp.experiments.evaluation.hidden import hidden_strip, spread_pairs
from memcomp.experiments.evaluation.options import SAME
from memcomp.experiments.evaluation.pair_lists import write_list
from memcomp.experiments.evaluation.scores import Model
from memcomp.experiments.files import writable_folder
from memcomp.experiments.output.figures import save_figure
from memcomp.experiments.recipe.load import load_recipe
from memcomp.experiments.studies.first_table import as_command, run, train
from memcomp.experiments.studies.settled import settled
from memcomp.experiments.training.side_by_side import Job

SHOWN = 8  # people in the strip
METRICS = "l1,ssim,features"
REAL = "l1,psnr,ssim"  # of clips
COLUMN = "standard.l1.disoccluded"  # what decides
TPSM = "host.model={{decoder: tpsm, generator_params: {{block_expansion: 24, max_features: {}, num_down_blocks: {}}}}}"


@dataclass(frozen=True)
class Row:
    """One row of the table."""

    name: str
    recipe: str
    """Its name; empty: that of the whole host of the decoder."""
    overrides: tuple[str, ...] = ()


MCNET, PLACED = "demo/true_motion_mcnet", "demo/true_motion_placed"
COMMON = (
    Row("host", "demo/true_motion"),
    Row("host, as many operations", PLACED, ("capacity=flops",)),
    Row("host, as many parameters", PLACED, ("capacity=parameters",)),
    Row("+ MCM", MCNET, ("memory.identity_conditioning=false", "memory.start=paper")),
    Row("+ IICM + MCM (paper)", MCNET, ("memory.start=paper",)),
    Row("+ memory read by place", PLACED),
    Row("+ global encoder-decoder", "demo/true_motion", ("host.model.completion_width=96",)),
    Row("+ memory read by place, half the channels", PLACED, ("memory.split=half",)),
)
DEEPER = Row("host, one block deeper", "demo/true_motion", ("host.model.generator_params.num_bottleneck_blocks=4",))
# TPSM's decoder sees 12, 30 and 66 px to either side of a pixel with one, two and three levels (its blocks' 3×3
# convolutions and the last 7×7): 19 %, 47 % and all of a picture of 64 px. The published one has three at 256 px: 26 %.
NEAR, FAR, PUBLISHED = "tpsm_near", "tpsm_far", "fomm_published"
PUBLISHED_MEMORY = ("memory.memory_channels=512", "memory.memory_size=[32, 32]")
ROWS = {
    "fomm": (*COMMON[:1], DEEPER, *COMMON[2:]),
    "tpsm": COMMON,
    NEAR: COMMON,
    FAR: COMMON,
    PUBLISHED: tuple(
        replace(row, overrides=(*row.overrides, *PUBLISHED_MEMORY)) if row.recipe in (MCNET, PLACED) else row
        for row in COMMON[:-2]
    ),
}
DECODERS = {
    "fomm": (),
    "tpsm": (TPSM.format(96, 2),),
    NEAR: (TPSM.format(48, 1),),
    FAR: (TPSM.format(96, 3),),
    PUBLISHED: (
        "size=256",
        "host.model.generator_params={block_expansion: 64, max_features: 512, num_down_blocks: 2, "
        "num_bottleneck_blocks: 6}",
        "data.identities=200",
        "optim.lr=5e-4",
    ),
}
HOSTS = ("whole", "taught")  # kinds of study whose rows start from one trained host
# kind of study → recipe of the host, by its decoder's name
RECIPES = {
    "whole": "demo/{}_visible",
    "taught": "demo/{}_taught",
    "scratch": "demo/{}_taught",
    "clips": "demo/clips_{}",
}
STEPS = {"whole": 2000, "taught": 2000, "scratch": 6000, "clips": 3000}  # kind → of each row, where not 4000
NARROW = "memory.identity_hidden=64"  # of the fields' rows; those of the tables have 128
# The paper's memory, and with one field each: those of the preset `placed`, the context, and a teacher.
ALONE = tuple(
    Row(name, MCNET, (*words, NARROW))
    for name, *words in (
        ("paper", "memory.start=paper"),
        ("place", "memory.start=paper", "memory.place=true"),
        ("driving keypoints", "memory.start=paper", "memory.driving=true"),
        ("visibility", "memory.start=paper", "memory.visibility=true"),
        ("normalised", "memory.start=paper", "memory.normalised=true"),
        ("residual start", "memory.start=residual"),
        ("all channels", "memory.start=paper", "memory.split=none"),
        ("context", "memory.start=paper", "memory.context=[8, 4, 1]"),
        ("teacher", "memory.start=paper", "loss.teacher=1"),
    )
)
# The memory read by place, with the context, at about as many operations, at more, and at fewer.
SIZES = tuple(
    Row("read by place" + name, PLACED, tuple(words))
    for name, *words in (
        ("",),
        (", context", "memory.context=[8, 4, 1]"),
        (", 4×4 places of 128", "memory.memory_size=[4, 4]", "memory.memory_channels=128"),
        (", 16×16 places of 16", "memory.memory_size=[16, 16]", "memory.memory_channels=16"),
        (", 16×16 places", "memory.memory_size=[16, 16]"),
        (", 128 channels", "memory.memory_channels=128"),
        (", asked at 16×16 places", "memory.queries=16"),
    )
)
OTHERS = (  # found missing later: what the preset has besides, each alone
    Row("M_o of deviation one", MCNET, ("memory.start=paper", "memory.memory_init=unit", NARROW)),
    Row("read by place, half the channels", PLACED, ("memory.split=half",)),
)
FIELDS = ALONE + SIZES + OTHERS
MEMORY = (
    "memory={{preset: {}, mode: inplace, scales: {}, start: {}, memory_channels: 64, memory_size: [8, 8], "
    "identity_hidden: 128}}"
)


def _rows(scales: str, paper_starts: str) -> tuple[Row, ...]:
    by_place, paper = MEMORY.format("placed", scales, "residual"), MEMORY.format("paper", scales, paper_starts)
    return (
        Row("host", ""),
        Row("host, as many operations", "", (by_place, "capacity=flops")),
        Row("host, as many parameters", "", (by_place, "capacity=parameters")),
        Row("+ IICM + MCM (paper)", "", (paper,)),
        Row("+ memory read by place", "", (by_place,)),
    )


# Of the memory in the whole hosts: at 64 px TPSM's lowest map has 8×8 places (NEAR's 32×32, as the published one's).
SCALES = {"fomm": "[0]", "tpsm": "all"}
WHOLE = {  # kind of study → decoder → rows; those of a trained host, and from scratch
    "whole": dict.fromkeys(SCALES, _rows("[0]", "residual")),
    "taught": {decoder: _rows(scales, "residual") for decoder, scales in SCALES.items()},
    **{kind: {decoder: _rows(scales, "paper") for decoder, scales in SCALES.items()} for kind in ("scratch", "clips")},
}
WHOLE["scratch"][NEAR] = _rows("[0]", "paper")
STILL = (  # the rows of a host that was taught its motion: it stays
    "freeze_motion=true",
    "data.correspondence=false",
    *(f"loss.{term}=0" for term in ("motion", "visibility", "equivariance_value", "equivariance_jacobian")),
)
FROM_THERE = {  # TPSM's host is trained: its background moves from the first step, no motion is dropped
    "fomm": (),
    "tpsm": ("host.model.train_params.bg_start=0", "host.model.train_params.dropout_epoch=0"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is not trained yet, then measure and plot."""
    parser = argparse.ArgumentParser(
        prog="evidence", description="What a memory is good for: trainings, measure, plot."
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="keys to change in every recipe")
    parser.add_argument("--decoders", nargs="+", choices=DECODERS, default=list(SCALES), help="default: fomm tpsm")
    parser.add_argument("--rows", type=int, nargs="+", metavar="N", help="some rows only, by number from 0 (the host)")
    which = parser.add_mutually_exclusive_group()
    for name, text in (
        ("whole", "its motion estimated, from a trained one"),
        ("taught", "its motion learned from the true one, and kept, from a trained one"),
        ("scratch", "its motion learned from the true one, with its memory from the first step"),
    ):
        text = f"the whole host, {text}"
        which.add_argument(f"--{name}", dest="kind", const=name, action="store_const", help=text)
    text = "each field of the memory read by place alone"
    which.add_argument("--fields", dest="kind", const="fields", action="store_const", help=text)
    text = "the whole host from scratch on the clips in FOLDER/train; measured on those in FOLDER/test"
    which.add_argument("--clips", type=Path, metavar="FOLDER", help=text)
    text = "with --clips: measure on these pairs, a list as `memcomp benchmark` takes it (default: drawn ones)"
    parser.add_argument("--pairs-file", type=Path, metavar="CSV", help=text)
    text = "of each row (default: 4000; of a trained host 2000; with --scratch 6000, FOMM's; with --clips 3000)"
    parser.add_argument("--steps", type=int, metavar="N", help=text)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], metavar="SEED", help="default: 1 2 3")
    parser.add_argument("--pairs", type=int, default=400, metavar="N", help="measured (default: %(default)s)")
    parser.add_argument("--choose", action="store_true", help="measure on people kept for choosing, not for the end")
    text = "measure with batch statistics of many batches (see settled.py)"
    parser.add_argument("--settled", action="store_true", help=text)
    parser.add_argument(
        "--parallel", type=int, default=min(2, os.cpu_count() or 1), metavar="N", help="trainings at once"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to write into")
    args = parser.parse_args(arguments)
    args.kind = "clips" if args.clips else args.kind
    args.steps = STEPS.get(args.kind, 4000) if args.steps is None else args.steps
    if min(args.steps, args.pairs, args.parallel) < 1:
        raise UserError("--steps, --pairs, --parallel: expected 1 or more")
    if args.pairs_file and not args.clips:
        raise UserError("--pairs-file: expected --clips beside it; heads have pairs of their own")
    if args.clips and (args.choose or any(word.startswith("data.root=") for word in args.overrides)):
        raise UserError("--clips: expected no --choose and no data.root beside it; FOLDER/test is measured")
    if args.kind in WHOLE and not set(args.decoders) <= set(WHOLE[args.kind]):
        raise UserError(f"--decoders: expected some of {', '.join(WHOLE[args.kind])} for this study")
    if args.kind == "fields" and PUBLISHED in args.decoders:
        raise UserError(f"--fields: expected another decoder than {PUBLISHED}: its rows are of the small memory")
    for decoder in args.decoders:
        known = WHOLE[args.kind][decoder] if args.kind in WHOLE else FIELDS if args.kind else ROWS[decoder]
        if not set(args.rows or ()) <= set(range(len(known))):
            raise UserError(f"--rows: expected numbers from 0 to {len(known) - 1}")
        rows = [known[i] for i in args.rows or range(len(known))]
        folder = writable_folder(args.output / "_".join(filter(None, (args.kind, decoder))))
        jobs = train_rows(decoder, rows, folder, args)
        measure(decoder, rows, jobs, folder, args)


def train_rows(decoder: str, rows: Sequence[Row], folder: Path, args: argparse.Namespace) -> list[list[Job]]:
    """Train every row with every seed; returns each row's trainings, all finished."""
    if args.kind in HOSTS:
        host = host_job(decoder, folder, args)
        train([host], load_recipe(host.recipe, host.overrides).optim.steps or 0, 1)
    jobs = jobs_of(decoder, rows, folder, args)
    train(
        [job for i in range(len(args.seeds)) for of_row in jobs for job in of_row[i : i + 1]], args.steps, args.parallel
    )
    return jobs


def host_job(decoder: str, folder: Path, args: argparse.Namespace) -> Job:
    """The training of the host that the rows of `--whole` and `--taught` start from; its recipe says the steps."""
    return Job(f"{decoder}: host", RECIPES[args.kind].format(decoder), tuple(args.overrides), folder / "host_before")


def jobs_of(decoder: str, rows: Sequence[Row], folder: Path, args: argparse.Namespace) -> list[list[Job]]:
    """Each row's trainings, one for each seed."""
    common: tuple[str, ...] = () if args.kind in WHOLE else DECODERS[decoder]
    if args.kind in HOSTS:
        still = STILL if args.kind == "taught" else ()
        common = (*FROM_THERE[decoder], *still, f"init={folder / 'host_before'}")
    elif args.kind == "clips":
        common = (f"data.root={args.clips}",)
    return [
        [
            Job(f"{decoder}: {row.name} (seed {seed})", recipe, words, folder / f"{_slug(row.name)}_seed{seed}")
            for seed in args.seeds
            for words in [(*common, *row.overrides, *args.overrides, f"optim.steps={args.steps}", f"seed={seed}")]
        ]
        for row in rows
        for recipe in [row.recipe or RECIPES[args.kind].format(decoder)]
    ]


def measure(
    decoder: str, rows: Sequence[Row], jobs: Sequence[Sequence[Job]], folder: Path, args: argparse.Namespace
) -> None:
    """`memcomp benchmark` of all runs on the pairs of the study, and, of heads, the plot."""
    seed = int(args.choose)  # the test people of another data seed are nobody's: for choosing
    out = folder / (("chosen" if args.choose else "benchmark") + "_settled" * args.settled)
    runs = [[settled(job.output) if args.settled else job.output for job in of_row] for of_row in jobs]
    named = [f"{row.name}={path}" for row, of_row in zip(rows, runs, strict=True) for path in of_row]
    words = ["benchmark", *named, "--baseline", rows[0].name, "--no-report", "--output", str(out)]
    if args.kind == "clips":
        listed = ["--pairs-file", str(args.pairs_file)] if args.pairs_file else []
        run([*words, "--metrics", REAL, "--root", str(args.clips), "--pairs", str(args.pairs), *listed])
        return
    data = [word for word in (*DECODERS[decoder], *args.overrides) if word.startswith(("data.", "size="))]
    pairs = spread_pairs(load_recipe("demo/true_motion", data), seed, args.pairs)
    write_list(writable_folder(out) / "spread.csv", {SAME: pairs})
    run([*words, "--metrics", METRICS, "--pairs-file", str(out / "spread.csv"), "--set", f"data.seed={seed}"])
    loaded = {row.name: load_host(of_row[0]) for row, of_row in zip(rows, runs, strict=True)}
    shown = {name: Model(host, recipe.data.channels) for name, (host, recipe) in loaded.items()}
    print(f"strips.png: {hidden_strip(out / 'strips.png', pairs, shown, SHOWN)}")
    plot(json.loads((out / "benchmark.json").read_text("utf-8")), out / "cost.png")


def plot(content: dict[str, Any], path: Path) -> None:
    """Draw L1 on hidden pixels against operations and time of a frame, ± its spread over seeds."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    found = content["results"][SAME]
    left, right = figure.subplots(1, 2, sharey=True)
    for axis, key, label in ((left, "gflop", "GFLOP of a frame"), (right, "milliseconds", "ms of a frame, CPU")):
        for number, row in enumerate(content["rows"]):
            cell = found[row["name"]][COLUMN]
            if cell["value"] is None:  # too few hidden pixels in every pair
                continue
            axis.errorbar(
                row[key], cell["value"], yerr=cell["deviation_of_seeds"] or 0, fmt="os^vDP*X"[number % 8], capsize=3
            )
            axis.annotate(row["name"], (row[key], cell["value"]), xytext=(6, 4), textcoords="offset points", fontsize=8)
        axis.set(xlabel=label)
        axis.spines[["top", "right"]].set_visible(False)
    left.set_ylabel("L1 on hidden pixels ↓")
    save_figure(figure, path)


def _slug(name: str) -> str:
    return "_".join("".join(c if c.isalnum() else " " for c in name).split())


if __name__ == "__main__":
    torch.set_num_threads(1)
    as_command(main, "evidence")
