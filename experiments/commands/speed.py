"""`memcomp speed`: time the memory against its plain equations; hosts, procedural heads, and the start of a process."""

from __future__ import annotations

import argparse
from pathlib import Path

from memcomp.experiments.commands._shared import at_least
from memcomp.experiments.speed.options import CHANNELS, MODES, CompensationOptions, HostsOptions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `memcomp speed`, which without a further word times the compensation."""
    plain = CompensationOptions()
    defaults = {key: getattr(plain, key) for key in ("sizes", "modes", "repeats", "threads", "memory_channels")}
    _compensation(parser)
    parser.set_defaults(**defaults)
    kinds = parser.add_subparsers(title="what to time", dest="what", metavar="WHAT")
    core = "the memory against its plain equations, time and peak memory (default)"
    _compensation(
        kinds.add_parser("compensation", help=core, argument_default=argparse.SUPPRESS)
    )  # the outer ones hold
    _hosts(kinds.add_parser("hosts", help="every recipe: attach parity, precisions, compilation, training steps"))
    heads = kinds.add_parser("heads", help="how fast procedural heads are rendered")
    heads.add_argument(
        "--rounds", type=at_least(1), default=5, help="people timed, the fastest counts (default: %(default)s)"
    )
    heads.add_argument("--threads", type=at_least(1), help="CPU threads (default: all cores)")
    start = kinds.add_parser("start", help="`memcomp --version` and the package's import, processes of their own")
    start.add_argument("--repeats", type=at_least(1), default=7, help="processes of each (default: %(default)s)")


def _compensation(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sizes", type=int, nargs="+", choices=CHANNELS, metavar="PX", help="default: all")
    parser.add_argument("--modes", nargs="+", choices=MODES, metavar="MODE", help=f"{', '.join(MODES)} (default: all)")
    parser.add_argument("--repeats", type=at_least(1), help="timed calls of each variant (default 7)")
    parser.add_argument("--threads", type=at_least(0), help="CPU threads (default: torch's)")
    parser.add_argument("--memory-channels", type=at_least(1), help="C_m (default 512)")
    parser.add_argument("--no-peak", action="store_true", help="time only, no peak memory")
    parser.add_argument("--output", type=Path, help="also write the rows to this JSON file")


def _hosts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to every recipe")
    parser.add_argument("--recipes", nargs="+", default=[], metavar="NAME", help="default: all that are not demo/")
    parser.add_argument("--size", type=at_least(1), default=256, help="pixels (default 256)")
    parser.add_argument("--steps", type=at_least(1), default=20, help="training steps (default 20)")
    parser.add_argument("--batch", type=at_least(1), default=4, help="pairs of a training step (default 4)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default auto)")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--output", type=Path, required=True, help="folder of hosts.json")


def run(args: argparse.Namespace) -> None:
    """`memcomp speed`."""
    if args.what == "start":
        from memcomp.experiments.speed.start import time_start

        time_start(args.repeats)
    elif args.what == "heads":
        from memcomp.experiments.speed.heads import time_heads

        time_heads(args.rounds, args.threads)
    elif args.what == "hosts":
        from memcomp.experiments.speed.hosts import time_hosts

        words, names = tuple(args.overrides), tuple(args.recipes)
        few = (args.size, args.steps, args.batch, args.device, not args.no_compile)
        time_hosts(HostsOptions(args.output, words, names, *few))
    else:
        from memcomp.experiments.speed.compensation import time_compensation

        many = (tuple(args.sizes), tuple(args.modes), args.repeats, args.threads, args.memory_channels)
        time_compensation(CompensationOptions(*many, not args.no_peak, args.output))
