"""`memcomp convert`: upstream's checkpoints into pretrained folders of ours, and back."""

from __future__ import annotations

import argparse
from pathlib import Path

from memcomp.experiments.commands._shared import at_least
from memcomp.experiments.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `memcomp convert`."""
    parser.add_argument(
        "files",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="upstream's checkpoint (of DaGAN, encoder.pth and depth.pth too); or a run or pretrained folder of ours",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to make; with --to upstream, file to write")
    parser.add_argument("--to", choices=("pretrained", "upstream"), default="pretrained", help="default: %(default)s")
    parser.add_argument(
        "--model", metavar="FILE", help="recipe or upstream YAML with what the weights do not tell (default: published)"
    )
    parser.add_argument("--host", metavar="NAME", help="host type (default: detected from the weights)")
    parser.add_argument(
        "--size", type=at_least(1), metavar="PX", help="size of the pictures (default 256; a run and --model know it)"
    )
    parser.add_argument("--without-memory", action="store_true", help="write the host alone")


def run(args: argparse.Namespace) -> None:
    """Convert, and say what became of every part."""
    from memcomp.experiments.checkpoints.convert import to_pretrained, to_upstream

    if args.output.exists() and not (args.output.is_dir() and not any(args.output.iterdir())):
        raise UserError(f"{args.output}: expected a new name, it exists already")
    memory = not args.without_memory
    if args.to == "pretrained":
        lines = to_pretrained(
            args.files, args.output, model=args.model, name=args.host, size=args.size, with_memory=memory
        )
    elif len(args.files) != 1 or args.model or args.host or args.size:
        raise UserError("--to upstream: expected one run or pretrained folder of ours, without --model, --host, --size")
    else:
        lines = to_upstream(args.files[0], args.output, with_memory=memory)
    print("\n".join(lines))
