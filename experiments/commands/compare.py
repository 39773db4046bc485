"""`memcomp compare`: train two recipes side by side on the same data and measure both on the same pairs."""

from __future__ import annotations

import argparse
from pathlib import Path

from memcomp.experiments.commands import _shared as shared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `memcomp compare`."""
    parser.add_argument("recipes", nargs=2, metavar="RECIPE", help="the second is compared with the first")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="keys to change in both")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to write into")
    shared.add_pair_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Run `memcomp compare`."""
    from memcomp.experiments.benchmark.compare import CompareOptions, compare

    compare(shared.options_of(CompareOptions, args, pairs=shared.pair_options(args)))
