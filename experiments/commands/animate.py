"""`memcomp animate`: move the face of a picture as the face of a video moves."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from memcomp.experiments.commands._shared import at_least
from memcomp.experiments.errors import Incomplete, UserError, warn


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `memcomp animate`."""
    parser.add_argument("--checkpoint", required=True, help="run, checkpoint or pretrained folder, or `demo`")
    parser.add_argument("--source", type=Path, required=True, help="picture with the face to move")
    parser.add_argument("--driving", type=Path, required=True, help="video, or folder of pictures, to follow")
    parser.add_argument("--output", type=Path, required=True, help="mp4 file to write")
    parser.add_argument(
        "--motion",
        default="relative",
        metavar="MODE",
        help="relative: the driving face's motion (default); absolute: its position too; "
        "avd: the network of tpsm and mraa that keeps the source's shape",
    )
    parser.add_argument("--no-adapt-scale", action="store_true", help="relative: do not scale by the heads' sizes")
    parser.add_argument("--side-by-side", action="store_true", help="source, driving and result beside each other")
    parser.add_argument("--batch", type=at_least(1), default=8, help="frames generated at once (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: %(default)s)")


def run(args: argparse.Namespace) -> None:
    """Write the video, and say what is in it."""
    from memcomp.experiments.animation import Motion, animate_video

    if args.output.suffix.lower() != ".mp4":
        raise UserError(f"{args.output}: expected an output name that ends in .mp4")
    # realpath, not resolve: links that lead in a circle are an error of the reading, in its words
    if os.path.realpath(args.output) in (os.path.realpath(args.source), os.path.realpath(args.driving)):
        raise UserError(f"{args.output}: expected an output that is neither the source nor the driving video")
    made = animate_video(
        args.checkpoint,
        args.source,
        args.driving,
        args.output,
        Motion(args.motion, not args.no_adapt_scale),
        side_by_side=args.side_by_side,
        batch=args.batch,
        device=args.device,
        warn=warn,
    )
    sound = "with its sound" if made.sound else "without sound"
    print(f"{args.output}: {made.frames} frames of {made.size}×{made.size} {made.pace}, {sound}")
    if made.broken:
        raise Incomplete(f"{args.output}: written, but incomplete: {made.broken}")
