"""Opening a file of moving pictures or sound, whatever its metadata are written in."""

from pathlib import Path
from typing import Any, Protocol

import av


class Readable(Protocol):
    """Gives bytes, from front to end."""

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; none at the end."""


def open_media(source: str | Path | Readable) -> Any:
    """Open a container for reading; bytes of its metadata that are no UTF-8 are replaced.

    Args:
        source: file, or where its bytes come from.

    Raises:
        av.error.FFmpegError: it cannot be opened.
    """
    given = str(source) if isinstance(source, str | Path) else source
    try:
        return av.open(given, metadata_errors="replace")
    except TypeError:  # from PyAV 19 on that is not for us to say
        return av.open(given)
