"""What is told of input: the exceptions that mean that it is wrong, not the program, and warnings."""

import functools
import os
import sys
from collections.abc import Sequence


class UserError(ValueError):
    """Something the user can put right: a path, a key, a file. One line that names the thing and what was expected.

    The `memcomp` command prints it without a traceback and leaves with exit code 2.
    """


class CannotWrite(UserError):
    """A file or folder that the system does not let us write: a full disk, a folder of somebody else."""


class Incomplete(UserError):
    """What was asked for is written, but not all of it. One line that names the file and both numbers.

    The `memcomp` command prints it and leaves with exit code 3.
    """


@functools.cache
def warn(text: str) -> None:
    """Tell the user on stderr, once, what stops nothing; of several processes the first one does."""
    from tqdm import tqdm

    if os.environ.get("RANK", "0") == "0":
        tqdm.write(f"memcomp: warning: {' '.join(text.split())}", file=sys.stderr)


def few(words: Sequence[str], between: str = ", ") -> str:
    """The first three of some words, and whether there are more."""
    return between.join([*words[:3], *["…"] * (len(words) > 3)])


def counted(number: int, one: str, many: str | None = None) -> str:
    """A number with its noun: "1 frame", "2 frames"."""
    return f"{number} {one if number == 1 else many or one + 's'}"
