"""`memcomp prepare`: make clips to train on of raw videos."""

from __future__ import annotations

import argparse
import signal
from pathlib import Path

from memcomp.experiments.commands._shared import at_least, number, options_of, words_of
from memcomp.experiments.errors import Incomplete, UserError, counted, few
from memcomp.experiments.prepare.options import PrepareOptions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `memcomp prepare`: the fields of `PrepareOptions`."""
    one, zero = at_least(1), at_least(0)
    parser.add_argument("input", type=Path, help="a video, a folder of videos, a folder of frames, or a metadata CSV")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="gets train/, test/, manifest.csv")
    made = parser.add_argument_group("clips")
    made.add_argument("--size", type=at_least(16), metavar="PX", help="height and width (default: 256)")
    made.add_argument("--rate", type=number(1, 250), metavar="FPS", help="frames per second (default: 25)")
    made.add_argument("--increase", type=number(0, 5), help="of a box on each side, its share (default: 0.1)")
    made.add_argument("--min-frames", type=one, metavar="N", help="shorter segments are left out (default: 64)")
    made.add_argument("--max-frames", type=one, metavar="N", help="longer ones are divided (default: 1024)")
    made.add_argument("--key-frames", type=one, metavar="N", help="distance of key frames (default: 10)")
    found = parser.add_argument_group("segments")
    found.add_argument("--least-head", type=one, metavar="PX", help="height of a head's box (default: 3/4 of --size)")
    found.add_argument("--iou", type=number(0, 1), help="of a box with the segment's first (default: 0.25)")
    found.add_argument("--gap", type=zero, metavar="N", help="frames without the head that are bridged (default: 3)")
    found.add_argument("--every", type=one, metavar="N", help="frames between looks at all of it (default: 5)")
    found.add_argument(
        "--ignore",
        type=words_of,
        metavar="NAME,…",
        help="what is not to end a segment: cut, two-faces, too-small, moved",
    )
    people = parser.add_argument_group("people")
    people.add_argument("--test-share", type=number(0, 1), help="of people who go to test/ (default: 0.1)")
    people.add_argument("--seed", type=zero, help="which people these are (default: 0)")
    people.add_argument(
        "--same-person",
        type=number(0, 100),
        metavar="DISTANCE",
        help="of identity codes, where neither folders nor metadata tell people (default: 0.45)",
    )
    people.add_argument("--shared-people", action="store_true", help="let a person be in train/ and in test/")
    parser.add_argument("--videos", type=Path, metavar="FOLDER", help="of a CSV, and to download to (default: its own)")
    parser.add_argument(
        "--backend",
        dest="backends",
        action="append",
        metavar="KEY=VALUE",
        help="what finds heads and codes people: heads=dlib, identity=openface:FILE, …",
    )
    parser.add_argument("--workers", type=zero, metavar="N", help="processes (default: one for each core)")
    parser.set_defaults(**(vars(PrepareOptions()) | {"backends": []}))


def run(args: argparse.Namespace) -> None:
    """Write the clips, and say what came of it."""
    from memcomp.experiments.prepare.prepare import prepare
    from memcomp.experiments.prepare.segments import NEEDED, POLICIES

    options = options_of(PrepareOptions, args)
    can = [name for name in POLICIES if name not in NEEDED]
    if unknown := [name for name in options.ignore if name not in can]:
        raise UserError(f"--ignore {unknown[0]}: expected some of {', '.join(can)}")
    if options.size % 2:
        raise UserError(f"--size {options.size}: expected an even number of pixels")
    if options.min_frames > options.max_frames:
        raise UserError(f"--min-frames {options.min_frames}: expected at most --max-frames {options.max_frames}")
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends it as Ctrl-C does
    try:
        made = prepare(args.input, args.output, options)
    finally:
        signal.signal(signal.SIGTERM, before)
    people = counted(made.train, "person", "people")
    print(
        f"{args.output}: {counted(made.clips, 'clip')} of {people} in train/ and {made.test} in test/; "
        f"{made.without} of {counted(made.inputs, 'input')} gave none; manifest.csv says what became of each"
    )
    if not made.clips and not made.troubled and args.input.suffix.lower() != ".csv":
        print(f"heads of less than {options.least} pixels are not looked for (--least-head)")
    if made.clips and not (made.train and made.test):
        print("training needs people in train/ and in test/: give it videos of more of them, or another --test-share")
    why = []
    if made.troubled:
        why.append(
            f"{len(made.troubled)} of {made.inputs} inputs are missing or could not be read to their end: "
            f"{few(made.troubled)}; manifest.csv says why"
        )
    if made.both:
        why.append(
            f"{len(made.both)} of {made.people} people would be in train/ and in test/ and were left out: "
            f"{few(made.both)}; --shared-people takes them"
        )
    if why:
        raise Incomplete(f"{args.output}: {'; '.join(why)}")
