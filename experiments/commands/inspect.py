"""`memcomp inspect`: look into the memory of a trained host, as Fig. 1(e), 6, 7 and 8 of the paper do, and further."""

from __future__ import annotations

import argparse
from pathlib import Path

from memcomp.experiments.commands._shared import at_least
from memcomp.experiments.errors import UserError


def pixel(text: str) -> tuple[int, int]:
    """Read "x,y" for argparse: a place of the output, in whole pixels."""
    x, comma, y = text.partition(",")
    if not (comma and x.isdecimal() and y.isdecimal()):
        raise argparse.ArgumentTypeError(f"expected x,y in pixels, got {text!r}")
    return int(x), int(y)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `memcomp inspect`."""
    parser.add_argument("checkpoint", help="run, checkpoint or pretrained folder with a memory, or a memory alone")
    parser.add_argument("--source", type=Path, action="append", default=[], metavar="IMAGE", help="faces to look at")
    parser.add_argument("--driving", type=Path, metavar="IMAGE", help="pose to give them (default: their own)")
    parser.add_argument(
        "--identities",
        type=at_least(1),
        default=6,
        metavar="N",
        help="procedural heads to look at without --source (default: %(default)s)",
    )
    parser.add_argument("--compare", metavar="CHECKPOINT", help="a second memory, drawn beside the first (Fig. 8)")
    parser.add_argument(
        "--pixel",
        type=pixel,
        action="append",
        default=[],
        metavar="X,Y",
        help="place of the output whose attention is drawn",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to write into")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: %(default)s)")


def run(args: argparse.Namespace) -> None:
    """Write the pictures, and print the main numbers."""
    from memcomp.experiments.inspection.inspect import inspect_memory, summary

    if args.driving and not args.source:
        raise UserError("--driving: expected with --source; heads bring their own poses")
    content = inspect_memory(
        args.checkpoint,
        args.output,
        args.source,
        args.driving,
        identities=args.identities,
        pixels=args.pixel,
        compare=args.compare,
        device=args.device,
    )
    print(summary(content))
    names = sorted(path.name for path in args.output.iterdir() if path.name[0] != ".")
    print(f"\nwritten to {args.output}: {', '.join(names)}")
