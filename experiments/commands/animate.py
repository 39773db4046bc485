"""`memcomp animate`: move the face of a picture as the face of a video moves."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `memcomp animate`."""
    parser.add_argument("--checkpoint", type=Path, required=True, help="checkpoint of a run, or its folder")
    parser.add_argument("--source", type=Path, required=True, help="picture with the face to move")
    parser.add_argument("--driving", type=Path, required=True, help="video, or folder of pictures, to follow")
    parser.add_argument("--output", type=Path, required=True, help="mp4 file to write")
    parser.add_argument(
        "--motion",
        default="relative",
        metavar="MODE",
        help="relative: the driving face's motion (default); absolute: its position too; "
        "avd: tpsm's network that keeps the source's shape",
    )
    parser.add_argument("--no-adapt-scale", action="store_true", help="relative: do not scale by the heads' sizes")
    parser.add_argument("--side-by-side", action="store_true", help="source, driving and result beside each other")
    parser.add_argument("--batch", type=int, default=8, help="frames generated at once (default 8)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default auto)")


def run(args: argparse.Namespace) -> None:
    """`memcomp animate`."""
    import torch
    from tqdm import tqdm

    from memcomp.experiments.animation import Motion, animate
    from memcomp.experiments.checkpoints.run_file import load_host
    from memcomp.experiments.errors import Incomplete, UserError
    from memcomp.experiments.files import writable_folder
    from memcomp.experiments.processes import resolve_device
    from memcomp.experiments.video import Frames, Timetable, fit, keep_audio, read_picture, to_frame, write_video

    def warn(text: str) -> None:
        tqdm.write(f"memcomp: warning: {text}", file=sys.stderr)

    if args.output.suffix.lower() != ".mp4":
        raise UserError(f"{args.output}: expected an output name that ends in .mp4")
    if args.output.resolve() in (args.source.resolve(), args.driving.resolve()):
        raise UserError(f"{args.output}: expected an output that is neither the source nor the driving video")
    if args.batch < 1:
        raise UserError(f"--batch: expected 1 or more, got {args.batch}")
    source_picture, driving = read_picture(args.source, warn), Frames(args.driving, warn)
    host, recipe = load_host(args.checkpoint, resolve_device(args.device))
    writable_folder(args.output.parent)

    source = fit(source_picture, recipe.size)
    motion = Motion(args.motion, not args.no_adapt_scale)
    motion.check(host)  # before the first line of progress
    times = Timetable()
    poses = (fit(frame, recipe.size) for frame in times.pictures(driving.timed()))
    bar = tqdm(total=driving.length, unit=" frames", desc="animate")
    with bar, write_video(args.output, driving.frame_rate) as append:
        for pose, result in animate(host, source, poses, motion, args.batch):
            picture = torch.cat([source, pose, result], dim=-1) if args.side_by_side else result
            append(to_frame(picture), *times.next())
            bar.update()
    kept = keep_audio(args.output, args.driving, args.output, times.start, append.end if times.broken else None)
    sound = "with its sound" if kept else "without sound"
    print(f"{args.output}: {bar.n} frames of {recipe.size}×{recipe.size} {append.pace}, {sound}")
    if times.broken:
        raise Incomplete(f"{args.output}: written, but incomplete: {times.broken}")
