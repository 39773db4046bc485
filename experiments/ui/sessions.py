"""What each open page keeps on disk, and that it goes when the page is closed."""

from __future__ import annotations

import secrets
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Generic, TypeVar

from memcomp.experiments.errors import UserError

T = TypeVar("T")


class Session(Generic[T]):
    """One open page.

    Args:
        folder: its own, made when it is needed.

    Attributes:
        uploads: files that it brought.
        result: what its last job made.
        gone: set when the page is closed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.uploads = folder, set[Path]()
        self.result: T | None = None
        self.gone = threading.Event()
        self._jobs, self._made, self._lock = 0, 0, threading.Lock()

    def new_folder(self) -> Path:
        """A new folder in its own."""
        with self._lock:
            self._made += 1
            folder = self.folder / str(self._made)
        folder.mkdir(parents=True)
        return folder

    @contextmanager
    def working(self) -> Iterator[Path]:
        """Yield a folder for a job; the folder of a page that is closed meanwhile goes when the last job ends."""
        with self._lock:
            self._jobs += 1
        try:
            yield self.new_folder()
        finally:
            with self._lock:
                self._jobs -= 1
            self._tidy()

    def drop(self, folder: Path) -> None:
        """Remove what an earlier job made."""
        shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """End it: jobs stop as soon as they can, files go."""
        self.gone.set()
        self._tidy()

    def _tidy(self) -> None:
        with self._lock:
            if self.gone.is_set() and not self._jobs:
                self.result = None
                shutil.rmtree(self.folder, ignore_errors=True)


class Sessions(Generic[T]):
    """All open pages, by the key that their browsers were given.

    Args:
        root: folder for their results.
        uploads: folder in which the server puts what browsers send.
    """

    def __init__(self, root: Path, uploads: Path) -> None:
        self.root, self.uploads = root, uploads
        self._open: dict[str, Session[T]] = {}
        self._ended: set[str] = set()
        self._lock = threading.Lock()

    def of(self, key: str) -> Session[T]:
        """The session of a key.

        Raises:
            UserError: it was closed.
        """
        with self._lock:
            if key in self._ended:
                raise UserError("this page was closed for the server, and what it had is gone: load it again")
            if key not in self._open:
                # a name that nobody guesses: whoever knows a file's address can see it
                self._open[key] = Session(self.root / secrets.token_hex(16))
            return self._open[key]

    def file(self, key: str, path: str | None, what: str) -> Path:
        """The file that a page names, which from then on is the session's.

        Raises:
            UserError: it names none, or one that was not sent here.
        """
        session = self.of(key)
        if not path:
            raise UserError(f"{what}: expected one, none is chosen")
        file = Path(path).resolve()
        if self.uploads.resolve() in file.parents:
            with self._lock:
                session.uploads.add(file)
        elif session.folder.resolve() not in file.parents:
            raise UserError(f"{what}: expected a file that was uploaded here")
        return file

    def end(self, key: str) -> None:
        """Close a page: its results go, and its uploads unless another open page brought the same file."""
        with self._lock:
            session = self._open.pop(key, None)
            self._ended.add(key)
            kept = set[Path]().union(*(other.uploads for other in self._open.values()))
        if session is None:
            return
        session.close()
        for file in session.uploads - kept:
            file.unlink(missing_ok=True)
            with suppress(OSError):  # not empty: another file of the same content
                file.parent.rmdir()
