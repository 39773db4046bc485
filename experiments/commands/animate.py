"""`memcomp animate`: move the face of a picture as the face of a video moves."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from memcomp.experiments.commands._shared import at_least, number
from memcomp.experiments.errors import Incomplete, UserError, counted, warn

FORMS = ("mp4", "webm", "gif", "png")
NEEDED = ("checkpoint", "output")  # beside --source, unless only a preview is drawn


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `memcomp animate`."""
    parser.add_argument("--checkpoint", help="run, checkpoint or pretrained folder, or `demo`")
    parser.add_argument("--source", type=Path, nargs="+", required=True, help="picture with the face to move, or more")
    parser.add_argument(
        "--driving",
        type=Path,
        nargs="+",
        default=[],
        help="video, or folder of pictures, to follow, or more; - or a named pipe: one that comes through a pipe "
        "(may be missing with --yaw, --pitch or --roll)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="mp4, webm or gif file, or a new folder for PNG; of several results a folder",
    )
    _motion(parser.add_argument_group("motion"))
    _pictures(parser.add_argument_group("which part of the pictures"))
    shown = parser.add_argument_group("what is shown")
    shown.add_argument("--side-by-side", action="store_true", help="source, driving and result beside each other")
    shown.add_argument("--grid", action="store_true", help="all sources in one video")
    shown.add_argument("--labels", action="store_true", help="say above each column what it is")
    shown.add_argument("--contact-sheet", action="store_true", help="also draw frames of it into OUTPUT_sheet.png")
    shown.add_argument("--form", choices=FORMS, default="mp4", help="of several results (default: %(default)s)")
    work = parser.add_argument_group("how it is computed")
    work.add_argument("--size", type=at_least(8), metavar="PX", help="of the host's pictures (default: as trained)")
    work.add_argument("--batch", type=at_least(1), default=8, help="frames generated at once (default: %(default)s)")
    work.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: %(default)s)")
    work.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="default: %(default)s"
    )
    work.add_argument("--compile", action="store_true", help="by torch.compile: minutes at first, then faster")


def _motion(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--motion",
        default="relative",
        metavar="MODE",
        help="relative: the driving face's motion (default); absolute: its position too; "
        "avd: the network of tpsm and mraa that keeps the source's shape",
    )
    group.add_argument(
        "--best-frame",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="relative: count motion from the driving frame most like the source, not from the first (default: yes)",
    )
    group.add_argument(
        "--smooth",
        type=number(0),
        default=0,
        metavar="SECONDS",
        help="average the driving motion over about that long; from a pipe it then comes about as late",
    )
    for angle, way in (("yaw", "to the side"), ("pitch", "up or down"), ("roll", "about the line of sight")):
        group.add_argument(
            f"--{angle}",
            type=number(-90, 90),
            default=0.0,
            metavar="DEGREES",
            help=f"turn the head {way} besides (facevid2vid); without --driving, from how the source holds it",
        )
    group.add_argument("--no-adapt-scale", action="store_true", help="relative: do not scale by the heads' sizes")


def _pictures(group: argparse._ArgumentGroup) -> None:
    square = "auto: around the face, upright; or x,y,side or x,y,side,degrees in pixels"
    group.add_argument("--crop", metavar="SQUARE", help=f"of the source: {square} (default: the largest centred)")
    group.add_argument("--face", type=at_least(1), metavar="N", help="which of several, from the left (with auto)")
    group.add_argument("--crop-driving", metavar="SQUARE", help="of the driving video, found in its first frame")
    group.add_argument("--paste", action="store_true", help="put the result back into the whole source picture")
    group.add_argument(
        "--preview", type=Path, metavar="PNG", help="only draw the faces found and the square; takes a source alone"
    )


def run(args: argparse.Namespace) -> None:
    """Write the videos, and say what is in them."""
    from memcomp.experiments.animation import AnimationOptions, Motion, animate_files, turn_files
    from memcomp.experiments.animation.square import draw_preview
    from memcomp.experiments.commands._shared import options_of

    if args.preview is not None:
        for line in draw_preview(args.preview, args.source[0], args.crop or "auto", args.face):
            print(line)
        return
    if missing := [f"--{name}" for name in NEEDED if not getattr(args, name)]:
        raise UserError(f"the following arguments are required: {', '.join(missing)}")
    motion = Motion(args.motion, not args.no_adapt_scale, (args.yaw, args.pitch, args.roll))
    files = {"sources": tuple(args.source), "drivings": tuple(args.driving)}
    options = options_of(AnimationOptions, args, motion=motion, **files)
    _check(args, options.jobs())
    if options.piped:
        _check_pipe(args, len(options.jobs()))
    broken = []
    for made in animate_files(options, warn) if args.driving else turn_files(options, warn):
        sound = {True: ", with its sound", False: ", without sound", None: ": the form has no sound"}[made.sound]
        height, width = made.size
        print(f"{made.path}: {counted(made.frames, 'frame')} of {width}×{height} {made.pace}{sound}")
        for source, reference in zip(args.source, made.references, strict=False):
            of = f" for {source}" * (len(made.references) > 1)
            print(f"motion counts from {reference} of the driving video, the one most like the source{of}")
        if made.interrupted:
            of = "" if made.expected is None else f" of {made.expected}"
            raise KeyboardInterrupt(f"{made.path} holds {made.frames}{of} frames")
        broken += [f"{made.path}: written, but incomplete: {made.broken}"] * bool(made.broken)
    if broken:
        raise Incomplete("; ".join(broken))


def _check(args: argparse.Namespace, jobs: list) -> None:
    """Raise UserError for options that do not go together, and for outputs that would replace an input."""
    if not args.driving:
        _check_turn(args)
    if str(args.output) == "-":
        raise UserError("--output -: expected a file or a folder, videos are not written into a pipe")
    if args.paste and (args.side_by_side or args.grid):
        raise UserError("--paste: expected without --side-by-side and --grid, which show the square alone")
    if args.side_by_side and args.grid:
        raise UserError("--grid: expected without --side-by-side, which it contains")
    if args.face is not None and args.crop != "auto":
        raise UserError("--face: expected with --crop auto, which finds faces")
    if args.labels and not (args.side_by_side or args.grid):
        raise UserError("--labels: expected with --side-by-side or --grid, whose columns they name")
    if len(jobs) > 1 and args.output.suffix.lower() in {f".{form}" for form in FORMS}:
        raise UserError(f"{args.output}: expected a folder for {len(jobs)} results, or --grid for several sources")
    # realpath, not resolve: links that lead in a circle are an error of the reading, in its words
    inputs = {os.path.realpath(path) for path in (*args.source, *args.driving)}
    for output in [job.output for job in jobs] or [args.output]:
        if os.path.realpath(output) in inputs:
            raise UserError(f"{output}: expected an output that is neither the source nor the driving video")


def _check_pipe(args: argparse.Namespace, results: int) -> None:
    """Say what a video is given up that shows each frame once; raise UserError where it would be needed again."""
    if len(args.driving) > 1 or results > 1:
        raise UserError("--driving: expected a pipe alone, with one --source or --grid: it shows each frame once")
    if args.best_frame:
        warn("--best-frame: a pipe shows each frame once, so motion counts from its first frame")
    if args.smooth:
        warn(f"--smooth {args.smooth:g}: a pipe does not show what follows, so the motion comes about as late")


def _check_turn(args: argparse.Namespace) -> None:
    """Raise UserError for what only a driving video makes sense of."""
    if not (args.yaw or args.pitch or args.roll):
        raise UserError("--driving: expected a video to follow, or degrees by --yaw, --pitch or --roll")
    if len(args.source) > 1:
        raise UserError("--source: expected one picture without --driving")
    given = {
        "--motion": args.motion != "relative",
        "--best-frame": args.best_frame is not None,
        "--smooth": bool(args.smooth),
        "--crop-driving": args.crop_driving is not None,
        "--side-by-side": args.side_by_side,
        "--grid": args.grid,
        "--contact-sheet": args.contact_sheet,
        "--paste": args.paste,
    }
    for option in (option for option, asked in given.items() if asked):
        raise UserError(f"{option}: expected with --driving")
