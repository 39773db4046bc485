"""Files: written so that a reader never meets half of one; found or refused in one line; told apart by their sha256."""

import errno
import hashlib
import itertools
import os
import re
import shutil
import tempfile
from collections.abc import Container, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from memcomp.experiments.errors import CannotWrite, UserError

NAMES = "surrogateescape"  # how files hold names that are not UTF-8; Python reads folders so
REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # of a disk, whatever file they are reported for


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it takes the place of `path` only if the block ends without an exception.

    The temporary name keeps the suffix (video writers choose their container by it). A process killed in between
    leaves the previous `path` as it was. Where `path` is a link, the file that it leads to is written.

    Raises:
        CannotWrite: the folder cannot be written, the disk is full, or `path` is a pipe or a device.
    """
    target = Path(os.path.realpath(path))
    writable_folder(target.parent)
    if target.exists() and not target.is_file() and not target.is_dir():
        raise CannotWrite(f"{path}: cannot be written (it is {kind_of(target)})")
    with system_errors(target):
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem}-", suffix=target.suffix)
        os.close(handle)
    temporary = Path(name)
    try:
        with _disk_errors(target):
            yield temporary
        with system_errors(target):
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            temporary.chmod(0o666 & ~_umask())  # mkstemp's files are for the owner alone
            os.replace(temporary, target)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; it takes that name only if the block ends without an exception.

    Raises:
        UserError: `path` is there and no empty folder.
        CannotWrite: it cannot be written, or the disk is full.
    """
    target = Path(path)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        held = "a folder with files in it" if target.is_dir() else "a file"
        raise UserError(f"{target}: expected a new or an empty folder, found {held}")
    writable_folder(target.parent)
    with system_errors(target):
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    try:
        with _disk_errors(target):
            yield temporary
        with system_errors(target):
            temporary.chmod(0o777 & ~_umask())  # mkdtemp's folders are for the owner alone
            os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def writable_folder(path: str | os.PathLike[str]) -> Path:
    """Make the folder `path` if need be, check that a file can be made in it, and return it.

    Raises:
        CannotWrite: it is a file, cannot be made, or cannot be written.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".writable-"):
            pass
    except OSError as error:
        raise CannotWrite(f"{folder}: expected a folder that can be written ({error.strerror or error})") from None
    return folder


def disk_refusal(error: BaseException) -> str | None:
    """The system's word if the disk is why something could not be written, whatever a library made of it; else None."""
    cause: BaseException | None = error
    while cause is not None:
        number = re.search(r"(?:os error|Os \{ code:) (\d+)", str(cause))  # as safetensors, in Rust, says it
        code = int(number.group(1)) if number else getattr(cause, "errno", None)
        if code in REFUSALS:
            return os.strerror(code)
        cause = cause.__cause__ or cause.__context__
    return None


def existing_file(path: str | os.PathLike[str], what: str = "file") -> Path:
    """Return `path` as a `Path` if it is a file.

    Raises:
        UserError: there is none; `what` says what was expected.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"{file}: expected a {what}, found {kind_of(file)}")
    return file


def kind_of(path: Path) -> str:
    """Say in words what lies at a path."""
    if path.is_file():
        return "a file"
    if path.is_dir():
        return "a folder"
    if path.is_symlink():
        return "a link that leads to nothing"
    return "a pipe or a device" if path.exists() else "nothing"


def untaken(name: str, taken: Container[str], numbered: str = "{}_{}") -> str:
    """The name, or with the first number from 2 on with which it is not taken."""
    names = itertools.chain([name], (numbered.format(name, number) for number in itertools.count(2)))
    return next(one for one in names if one not in taken)


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextmanager
def system_errors(target: Path) -> Iterator[None]:
    """Make what the system refuses while `target` is written a CannotWrite that names it."""
    try:
        yield
    except OSError as error:
        raise CannotWrite(f"{target}: cannot be written ({error.strerror or error})") from None


@contextmanager
def _disk_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of any library that writes
        reason = disk_refusal(error)
        if reason is None:
            raise
        raise CannotWrite(f"{target}: cannot be written ({reason})") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
