"""Files: written so that a reader never meets half of one; found or refused in one line; told apart by their sha256."""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from memcomp.experiments.errors import UserError


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it takes the place of `path` only if the block ends without an exception.

    The temporary name keeps the suffix (video writers choose their container by it). A process killed in between
    leaves the previous `path` as it was.

    Raises:
        UserError: the folder cannot be written.
    """
    target = Path(path)
    writable_folder(target.parent)
    with _system_errors(target):
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem}-", suffix=target.suffix)
        os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with _system_errors(target):
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            temporary.chmod(0o666 & ~_umask())  # mkstemp's files are for the owner alone
            os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def writable_folder(path: str | os.PathLike[str]) -> Path:
    """Make the folder `path` if need be, check that a file can be made in it, and return it.

    Raises:
        UserError: it is a file, cannot be made, or cannot be written.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".writable-"):
            pass
    except OSError as error:
        raise UserError(f"{folder}: expected a folder that can be written ({error.strerror or error})") from None
    return folder


def existing_file(path: str | os.PathLike[str], what: str = "file") -> Path:
    """Return `path` as a `Path` if it is a file.

    Raises:
        UserError: there is none; `what` says what was expected.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"{file}: expected a {what}, found {'a folder' if file.is_dir() else 'nothing'}")
    return file


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextmanager
def _system_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror or error})") from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
