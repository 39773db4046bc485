"""`memcomp evaluate`: measure a checkpoint on fixed, seeded pairs of people that training did not see."""

from __future__ import annotations

import argparse
from pathlib import Path

from memcomp.experiments.commands._shared import (
    add_measure_arguments,
    add_pair_arguments,
    at_least,
    measure_options,
    pair_options,
)
from memcomp.experiments.evaluation.options import CROSS, SAME


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `memcomp evaluate`."""
    parser.add_argument("checkpoint", help="checkpoint, folder of a run, or `demo` for the host of the package")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="keys of its recipe to change, as data.root=…"
    )
    add_pair_arguments(parser)
    parser.add_argument("--same", action="store_true", help="only pairs of one person")
    parser.add_argument("--cross", action="store_true", help="only pairs of two people")
    count = {"type": at_least(0), "metavar": "N"}
    parser.add_argument("--videos", default=4, **count, help="clips: cross-identity videos to write (default: 4)")
    parser.add_argument(
        "--video-frames", type=at_least(1), default=75, metavar="N", help="their length (default: %(default)s)"
    )
    parser.add_argument("--clips", default=0, **count, help="also measure jitter and flicker of N whole clips")
    add_measure_arguments(parser)
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: `evaluation` beside the checkpoint")


def run(args: argparse.Namespace) -> None:
    """`memcomp evaluate`."""
    from memcomp.experiments.evaluation.evaluate import EvaluationOptions, evaluate

    kinds = [kind for kind, wanted in ((SAME, args.same), (CROSS, args.cross)) if wanted]
    options = EvaluationOptions(
        checkpoint=args.checkpoint,
        overrides=tuple(args.overrides),
        pairs=pair_options(args),
        measuring=measure_options(args),
        kinds=tuple(kinds) or (SAME, CROSS),
        videos=args.videos,
        video_frames=args.video_frames,
        clips=args.clips,
        output=args.output,
    )
    evaluate(options)
