"""What the arguments of several subcommands have in common."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from memcomp.experiments.evaluation.options import DRAWN, LIST, PairOptions

Options = TypeVar("Options", bound=Any)  # a dataclass
LARGEST = 2**63 - 1  # that numpy and torch take for a count or a seed


def at_least(least: int) -> Callable[[str], int]:
    """A `type=` of argparse: whole numbers of `least` or more, so that each subcommand checks its counts alike."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected a whole number, got {text!r}") from None
        if not least <= value <= LARGEST:
            raise argparse.ArgumentTypeError(f"expected {least} or more, got {text}")
        return value

    return read


def number(least: float, most: float = float("inf")) -> Callable[[str], float]:
    """A `type=` of argparse: numbers from `least` to `most`, infinity not among them."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected a number, got {text!r}") from None
        if not (least <= value <= most and value < float("inf")):
            bound = f"{least:g} or more" if most == float("inf") else f"a number from {least:g} to {most:g}"
            raise argparse.ArgumentTypeError(f"expected {bound}, got {text}")
        return value

    return read


def words_of(text: str) -> tuple[str, ...]:
    """A `type=` of argparse: names separated by commas."""
    return tuple(word.strip() for word in text.split(",")) if text.strip() else ()


def add_pair_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of every command that measures pairs; `pair_options` reads them."""
    counted = f"pairs of each kind (default: {DRAWN}, or all of a list)"
    parser.add_argument("--pairs", type=at_least(1), metavar="N", help=counted)
    parser.add_argument("--seed", type=at_least(0), default=0, help="of the pairs (default: %(default)s)")
    parser.add_argument(
        "--pairs-file",
        type=Path,
        action="append",
        default=[],
        metavar="CSV",
        help=f"these pairs: a {LIST} of a former run, or a list of upstream's",
    )
    parser.add_argument(
        "--root",
        type=Path,
        metavar="FOLDER",
        help="measure its clips, CLIP or PERSON/CLIP in its test/ or in itself, not the recipe's data",
    )


def add_measure_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the commands whose metrics can be chosen: the fields of `MeasureOptions`."""
    parser.add_argument("--batch", type=at_least(1), default=8, help="pairs predicted at once (default: %(default)s)")
    parser.add_argument(
        "--metrics",
        type=words_of,
        default=(),
        metavar="NAME,…",
        help="all, or some of those in experiments/metrics/README.md (default: L1, PSNR and SSIM)",
    )
    parser.add_argument(
        "--backend",
        dest="backends",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="what reads faces, or where weights are: landmarks=face-alignment, identity=openface:FILE, …",
    )


def options_of(kind: type[Options], args: argparse.Namespace, **others: object) -> Options:
    """Fill a dataclass of options with the arguments that are called as its fields; lists become tuples.

    Args:
        kind: the dataclass.
        args: what argparse read; what it lacks keeps the dataclass's default.
        others: fields that no argument is called as.
    """
    found = {one.name: getattr(args, one.name) for one in fields(kind) if hasattr(args, one.name)} | others
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in found.items()})


def pair_options(args: argparse.Namespace) -> PairOptions:
    """Which pairs to measure."""
    return PairOptions(args.pairs, args.seed, tuple(args.pairs_file), args.root)
