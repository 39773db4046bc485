"""The user's cache of rendered and decoded frames: a convenience, never a must."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from memcomp.experiments.errors import CannotWrite, warn
from memcomp.experiments.files import atomic_write, writable_folder

_left_out: set[Path] = set()


def cache_folder(given: str | os.PathLike[str] | None = None) -> Path:
    """The folder `given` (a recipe's `data.cache`), else $MEMCOMP_CACHE, else ~/.cache/memcomp; a user without a home
    folder, as in some containers, has one among the system's temporary files."""
    if chosen := given or os.environ.get("MEMCOMP_CACHE"):
        return Path(chosen)
    try:
        return Path.home() / ".cache" / "memcomp"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / "memcomp"


def usable(folder: Path) -> bool:
    """Whether files can be kept in a folder of the cache. If not, it is left out by this process, with a word."""
    if folder in _left_out:
        return False
    try:
        writable_folder(folder)
    except CannotWrite as error:
        _leave_out(folder, error)
        return False
    return True


def keep(file: Path, write: Callable[[Path], object]) -> bool:
    """Make a file of the cache by `write(temporary path)`; False if it cannot be written (see `usable`).

    Raises:
        whatever `write` raises but for a disk that is full.
    """
    if not usable(file.parent):
        return False
    try:
        with atomic_write(file) as temporary:
            write(temporary)
    except CannotWrite as error:
        _leave_out(file.parent, error)
        return False
    return True


def _leave_out(folder: Path, why: CannotWrite) -> None:
    _left_out.add(folder)
    way_out = "the cache is left out, which costs time; MEMCOMP_CACHE or data.cache can name another folder"
    warn(f"{why}; {way_out}")
