"""`memcomp demo`: measure what the study trained, then train a small host with and without the memory."""

from __future__ import annotations

import argparse
from pathlib import Path

from memcomp.experiments.commands import _shared as shared

STEPS = 100  # of both trainings: together with the rest under five minutes on two idle cores


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `memcomp demo`."""
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="keys to change in all the demo's recipes")
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), help="folder (default: %(default)s)")
    parser.add_argument("--from-scratch", action="store_true", help="train the host as well: much longer")
    parser.add_argument(
        "--steps", type=shared.at_least(1), default=STEPS, help="of training with and without (default: %(default)s)"
    )
    parser.add_argument(
        "--host-steps", type=shared.at_least(1), help="with --from-scratch: of the host (default: its recipe's)"
    )
    parser.add_argument(
        "--pairs", type=shared.at_least(1), default=100, help="test pairs of each kind (default: %(default)s)"
    )
    parser.add_argument("--seed", type=shared.at_least(0), default=1, help="of the training (default: %(default)s)")


def run(args: argparse.Namespace) -> None:
    """Run `memcomp demo`."""
    from memcomp.experiments.demo.demo import DemoOptions, demo

    demo(shared.options_of(DemoOptions, args))
