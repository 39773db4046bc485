"""`memcomp report`: the page of a benchmark, made anew from the files in its folder."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `memcomp report`."""
    parser.add_argument("folder", type=Path, help="that `memcomp benchmark --output` wrote")


def run(args: argparse.Namespace) -> None:
    """Run `memcomp report`."""
    from memcomp.experiments.report.page import write_page

    path = write_page(args.folder)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
