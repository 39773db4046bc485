"""`memcomp speed`: time the memory against its plain equations; training steps and data, hosts, heads, the start."""

from __future__ import annotations

import argparse
from pathlib import Path

from memcomp.experiments.commands import _shared as shared
from memcomp.experiments.speed.options import (
    CHANNELS,
    MODES,
    AnimationSpeedOptions,
    CompensationOptions,
    DataOptions,
    HostsOptions,
    TrainingSpeedOptions,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `memcomp speed`, which without a further word times the compensation."""
    _compensation(parser)
    kinds = parser.add_subparsers(title="what to time", dest="what", metavar="WHAT")
    core = "the memory against its plain equations, and read by place against the paper's (default)"
    _compensation(kinds.add_parser("compensation", help=core))
    _hosts(kinds.add_parser("hosts", help="every recipe: attach parity, precisions, compilation, training steps"))
    _animation(kinds.add_parser("animate", help="a source encoded once against one encoded for every frame"))
    step = "a training step, host and host + memory, ours against one written plainly: time, operations, peak memory"
    _training(kinds.add_parser("training", help=step))
    _data(kinds.add_parser("data", help="training pairs: CPU time, pairs per second, share of time spent waiting"))
    heads = kinds.add_parser("heads", help="how fast procedural heads are rendered")
    heads.add_argument(
        "--rounds", type=shared.at_least(1), default=5, help="people timed, the fastest counts (default: %(default)s)"
    )
    heads.add_argument("--threads", type=shared.at_least(1), help="CPU threads (default: all cores)")
    start = kinds.add_parser("start", help="`memcomp --version` and the package's import, processes of their own")
    start.add_argument("--repeats", type=shared.at_least(1), default=7, help="processes of each (default: %(default)s)")


def _compensation(parser: argparse.ArgumentParser) -> None:
    parser.argument_default = argparse.SUPPRESS  # what is not said keeps the default of `CompensationOptions`
    parser.add_argument("--sizes", type=int, nargs="+", choices=CHANNELS, metavar="PX", help="default: all")
    parser.add_argument("--modes", nargs="+", choices=MODES, metavar="MODE", help=f"{', '.join(MODES)} (default: all)")
    parser.add_argument("--repeats", type=shared.at_least(1), help="timed calls of each variant (default 7)")
    parser.add_argument("--threads", type=shared.at_least(0), help="CPU threads (default: torch's)")
    parser.add_argument("--memory-channels", type=shared.at_least(1), help="C_m (default 512)")
    parser.add_argument("--no-peak", dest="peak", action="store_false", help="time only, no peak memory")
    parser.add_argument("--output", type=Path, help="also write the rows to this JSON file")
    parser.argument_default = None


def _animation(parser: argparse.ArgumentParser) -> None:
    parser.argument_default = argparse.SUPPRESS
    parser.add_argument("--hosts", nargs="+", metavar="NAME", help="as published (default: fomm tpsm)")
    parser.add_argument("--size", type=shared.at_least(8), help="pixels (default 256)")
    parser.add_argument("--frames", type=shared.at_least(1), help="of each way and host (default 200)")
    parser.add_argument("--batch", type=shared.at_least(1), help="frames generated at once (default 8)")
    parser.add_argument("--device", help="auto, cpu, cuda or mps (default auto)")
    parser.add_argument(
        "--minutes", type=shared.number(0), help="also compare the peak memory of a video of that length with 10 s"
    )
    parser.add_argument("--output", type=Path, help="also write the rows to this JSON file")


def _hosts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to every recipe")
    parser.add_argument("--recipes", nargs="+", default=[], metavar="NAME", help="default: all that are not demo/")
    parser.add_argument("--size", type=shared.at_least(1), default=256, help="pixels (default 256)")
    parser.add_argument("--steps", type=shared.at_least(1), default=20, help="training steps (default 20)")
    parser.add_argument("--batch", type=shared.at_least(1), default=4, help="pairs of a training step (default 4)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default auto)")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave torch.compile out")
    half = "bf16 and fp16 on a CPU too, minutes a recipe (default: only on a GPU, where they are always measured)"
    parser.add_argument("--half", action="store_true", help=half)
    parser.add_argument("--output", type=Path, required=True, help="folder of hosts.json")


def _training(parser: argparse.ArgumentParser) -> None:
    parser.argument_default = argparse.SUPPRESS
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the recipe")
    parser.add_argument("--recipe", help="one with a memory (default fomm_mcnet)")
    parser.add_argument("--size", type=shared.at_least(8), help="pixels (default 256)")
    parser.add_argument("--batch", type=shared.at_least(1), help="pairs of a step (default 2)")
    parser.add_argument("--rounds", type=shared.at_least(1), help="timed steps of each, the median counts (default 5)")
    parser.add_argument("--device", help="auto, cpu, cuda or mps (default auto)")
    parser.add_argument("--output", type=Path, help="also write the rows to this JSON file")


def _data(parser: argparse.ArgumentParser) -> None:
    parser.argument_default = argparse.SUPPRESS  # what is not said keeps the default of `DataOptions`
    parser.add_argument("--root", type=Path, help="folder of clips with train/ (default: clips made for it)")
    parser.add_argument("--size", type=shared.at_least(16), help="pixels (default 256)")
    parser.add_argument("--pairs", type=shared.at_least(1), help="loaded for each number (default 64)")
    parser.add_argument("--batch", type=shared.at_least(1), help="pairs of a batch (default 8)")
    parser.add_argument("--workers", type=shared.at_least(0), nargs="+", help="processes that load (default 0 2)")
    parser.add_argument("--step", type=float, metavar="SECONDS", help="of a device for a batch (default 0.25)")
    parser.add_argument("--no-jitter", dest="jitter", action="store_false", help="leave colours as they are")
    parser.add_argument("--rounds", type=shared.at_least(1), help="of each case, the fastest counts (default 3)")
    parser.add_argument("--clips", type=shared.at_least(1), help="made without --root (default 4)")
    parser.add_argument("--frames", type=shared.at_least(1), help="of each made clip (default 200)")
    every = "from one key frame to the next in made clips (default 250 50)"
    parser.add_argument("--key-frames", type=shared.at_least(1), nargs="+", metavar="FRAMES", help=every)
    other = "another memcomp, put there by `pip install --target`, timed in turn"
    parser.add_argument("--against", type=Path, metavar="FOLDER", help=other)
    parser.add_argument("--output", type=Path, help="also write the rows to this JSON file")
    parser.argument_default = None


def run(args: argparse.Namespace) -> None:
    """Run `memcomp speed`."""
    if args.what == "start":
        from memcomp.experiments.speed.start import time_start

        time_start(args.repeats)
    elif args.what == "heads":
        from memcomp.experiments.speed.heads import time_heads

        time_heads(args.rounds, args.threads)
    elif args.what == "animate":
        from memcomp.experiments.speed.animation import time_animation

        time_animation(shared.options_of(AnimationSpeedOptions, args))
    elif args.what == "training":
        from memcomp.experiments.speed.training import time_training

        time_training(shared.options_of(TrainingSpeedOptions, args))
    elif args.what == "data":
        from memcomp.experiments.speed.data import time_data

        time_data(shared.options_of(DataOptions, args))
    elif args.what == "hosts":
        from memcomp.experiments.speed.hosts import time_hosts

        time_hosts(shared.options_of(HostsOptions, args))
    else:
        from memcomp.experiments.speed.compensation import time_compensation

        time_compensation(shared.options_of(CompensationOptions, args))
