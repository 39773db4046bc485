"""`memcomp evaluate`: measure a checkpoint on fixed, seeded pairs of people that training did not see."""

from __future__ import annotations

import argparse
from pathlib import Path

from memcomp.experiments.commands import _shared as shared
from memcomp.experiments.evaluation.options import CROSS, SAME, MeasureOptions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `memcomp evaluate`."""
    parser.add_argument("checkpoint", help="checkpoint, folder of a run, or `demo` for the host of the package")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="keys of its recipe to change, as data.root=…"
    )
    shared.add_pair_arguments(parser)
    parser.add_argument("--same", action="store_true", help="only pairs of one person")
    parser.add_argument("--cross", action="store_true", help="only pairs of two people")
    any_number = shared.at_least(0)
    parser.add_argument(
        "--videos", type=any_number, default=4, metavar="N", help="clips: videos of two people to write (default: 4)"
    )
    parser.add_argument(
        "--video-frames", type=shared.at_least(1), default=75, metavar="N", help="their length (default: %(default)s)"
    )
    parser.add_argument(
        "--clips", type=any_number, default=0, metavar="N", help="also jitter and flicker of N whole clips"
    )
    shared.add_measure_arguments(parser)
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: `evaluation` beside the checkpoint")


def run(args: argparse.Namespace) -> None:
    """Run `memcomp evaluate`."""
    from memcomp.experiments.evaluation.evaluate import EvaluationOptions, evaluate

    kinds = tuple(kind for kind, wanted in ((SAME, args.same), (CROSS, args.cross)) if wanted) or (SAME, CROSS)
    pairs, measuring = shared.pair_options(args), shared.options_of(MeasureOptions, args)
    evaluate(shared.options_of(EvaluationOptions, args, pairs=pairs, measuring=measuring, kinds=kinds))
