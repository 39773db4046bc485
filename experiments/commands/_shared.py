"""What the arguments of several subcommands have in common."""

from __future__ import annotations

import argparse
from collections.abc import Callable

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
