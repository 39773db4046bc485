"""`memcomp benchmark`: any number of runs, measured on the same pairs, in one table and on one page."""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

from memcomp.experiments.commands import _shared as shared
from memcomp.experiments.evaluation.options import MeasureOptions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `memcomp benchmark`."""
    parser.add_argument(
        "runs", nargs="+", metavar="[NAME=]RUN", help="run, checkpoint or pretrained folder; NAME: that of its row"
    )
    parser.add_argument(
        "--set", dest="changes", action="append", default=[], metavar="key=value", help="changes to the pairs' recipe"
    )
    parser.add_argument("--baseline", metavar="NAME|INDEX", help="row, or number of a run from 1 (default: the first)")
    shared.add_pair_arguments(parser)
    parser.add_argument("--published", action="store_true", help="add the rows of the paper's Tables 1 and 2, marked")
    shared.add_measure_arguments(parser)
    parser.add_argument(
        "--repeats", type=shared.at_least(0), default=7, help="timed frames of each row; 0 = no times (default 7)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default auto)")
    parser.add_argument("--show", metavar="NAME", help="row whose clips and memory report.html shows")
    parser.add_argument("--no-report", action="store_true", help="no report.html: tables only")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to write into")


def run(args: argparse.Namespace) -> None:
    """`memcomp benchmark`: the tables, then the page of them."""
    from memcomp.experiments.benchmark.benchmark import benchmark
    from memcomp.experiments.benchmark.result import BenchmarkOptions

    pairs, measuring = shared.pair_options(args), shared.options_of(MeasureOptions, args)
    found = benchmark(shared.options_of(BenchmarkOptions, args, pairs=pairs, measuring=measuring))
    if args.no_report:
        return
    if find_spec("jinja2") is None:  # the tables stand already
        print("report.html is left out: it needs jinja2, pip install 'memcomp[report]'", file=sys.stderr)
        return
    from memcomp.experiments.report.collect import collect
    from memcomp.experiments.report.page import write_page

    collect(found)
    print(f"and for people: {write_page(args.output)}")
