"""Opening a file of moving pictures or sound, whatever its metadata are written in."""

from pathlib import Path
from typing import Any

import av


def open_media(path: str | Path) -> Any:
    """Open a container for reading; bytes of its metadata that are no UTF-8 are replaced.

    Raises:
        av.error.FFmpegError: it cannot be opened.
    """
    try:
        return av.open(str(path), metadata_errors="replace")
    except TypeError:  # from PyAV 19 on that is not for us to say
        return av.open(str(path))
