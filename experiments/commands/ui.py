"""`memcomp ui`: a page in the browser."""

from __future__ import annotations

import argparse
import time

from memcomp.experiments.commands._shared import at_least, number
from memcomp.experiments.errors import warn

OWN = ("127.0.0.1", "localhost", "::1")  # addresses that this machine alone can reach


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `memcomp ui`."""
    parser.add_argument(
        "checkpoints", nargs="*", default=["demo"], help="runs, pretrained folders, or demo (default: demo)"
    )
    parser.add_argument("--address", default=OWN[0], help="where to listen (default: %(default)s, this machine alone)")
    parser.add_argument("--port", type=at_least(1), help="default: the first free one from 7860 on")
    limits = parser.add_argument_group("what it takes")
    limits.add_argument(
        "--seconds", type=number(0.1, 600), default=20, help="of a driving clip, at most (default: %(default)s)"
    )
    limits.add_argument(
        "--megabytes", type=at_least(1), default=50, metavar="MB", help="of a file, at most (default: %(default)s)"
    )
    limits.add_argument("--jobs", type=at_least(1), default=2, help="at a time; others wait (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: %(default)s)")


def run(args: argparse.Namespace) -> None:
    """Serve the page until Ctrl-C."""
    from memcomp.experiments.commands._shared import options_of
    from memcomp.experiments.interruption import interruption
    from memcomp.experiments.ui.options import UiOptions
    from memcomp.experiments.ui.server import serving

    if args.address not in OWN:
        warn(f"--address {args.address}: whoever can reach this machine can use the page, no password is asked")
    with serving(options_of(UiOptions, args)) as served, interruption() as stop:
        print(f"the page is at {served.url}; Ctrl-C ends it, and deletes what was brought", flush=True)
        while not stop:
            time.sleep(0.2)
