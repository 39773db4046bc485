"""`memcomp heads`: a contact sheet of procedural heads, or their clips as ordinary videos with tables of the truth."""

from __future__ import annotations

import argparse
from pathlib import Path

from memcomp.experiments.commands._shared import at_least


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `memcomp heads`."""
    number, one = at_least(0), at_least(1)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.png|FOLDER", help="contact sheet, or clips")
    parser.add_argument(
        "--split", default="test", choices=("train", "val", "test"), help="which people (default: %(default)s)"
    )
    parser.add_argument("--identities", type=one, default=8, metavar="N", help="how many people (default: %(default)s)")
    parser.add_argument("--frames", type=one, default=100, metavar="N", help="frames of a clip (default: %(default)s)")
    parser.add_argument("--size", type=one, default=128, metavar="PX", help="height and width (default: %(default)s)")
    parser.add_argument("--seed", type=number, default=0, help="another seed, other people (default: %(default)s)")


def run(args: argparse.Namespace) -> None:
    """Write the contact sheet or the clips, and say where."""
    from memcomp.experiments.data.heads_files import write_heads
    from memcomp.experiments.data.heads_set import HeadsSet

    heads = HeadsSet(args.split, args.identities, args.frames, args.size, args.seed)
    print(f"{args.output}: {write_heads(args.output, heads)}")
