"""Pretrained hosts: from a folder (see `memcomp.adapters.folder`) or from the Hugging Face hub."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from memcomp.adapters.attachment.attach import attach
from memcomp.adapters.base import Host
from memcomp.adapters.folder import CONFIG, WEIGHTS, Pretrained, read_pretrained
from memcomp.adapters.folder import FORMAT as FORMAT  # for whoever looks at a folder's files
from memcomp.adapters.registry import create_host
from memcomp.checkpoint import fill, take_dtypes
from memcomp.compensation import CompensationConfig

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def from_pretrained(folder_or_hub_id: str | os.PathLike[str], *, revision: str | None = None) -> Host:
    """Load the host of a pretrained folder, its memory attached if it has one, in the file's dtype, in eval mode.

    Args:
        folder_or_hub_id: a folder that `save_pretrained` wrote or, if there is none of this name, the ``owner/name``
            of a repository on the Hugging Face hub with the same two files (needs the extra ``hub``).
        revision: of the repository: branch, tag or commit.

    Raises:
        FileNotFoundError: no such folder, and nothing to be had from the hub.
        ModuleNotFoundError: a hub id without the package ``huggingface_hub``.
        ValueError: as `read_pretrained`; or the weights do not fit the host that the config describes.
    """
    folder = Path(folder_or_hub_id)
    if not folder.is_dir():
        folder = _from_hub(os.fspath(folder_or_hub_id), revision)
    return build_pretrained(read_pretrained(folder), folder / WEIGHTS)


def save_pretrained(host: Host, folder: str | os.PathLike[str], **about: Any) -> None:
    """Write a host as a folder: `Host.save_pretrained` as a function."""
    host.save_pretrained(folder, **about)


def build_pretrained(read: Pretrained, file: Path) -> Host:
    """Make the host that was read from a pretrained folder, as `from_pretrained` returns it; errors name `file`.

    Raises:
        ValueError: the weights do not fit the host that the config describes, or there is no such host.
    """
    try:
        host = create_host(read.host, read.model)
        if read.memory is not None:
            memory = dict(read.memory)
            config = memory.pop("config")
            attach(host, None if config is None else CompensationConfig.from_dict(config), **memory)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{file} describes no host that can be made: {error}") from error
    take_dtypes(host, read.tensors)
    fill(host, read.tensors, file)
    return host.eval()


def _from_hub(name: str, revision: str | None) -> Path:
    if not HUB_ID.fullmatch(name):
        raise FileNotFoundError(f"no such folder: {name}")
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"no such folder: {name}. To look for it on the Hugging Face hub: pip install 'memcomp[hub]'",
            name="huggingface_hub",
        ) from None
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=[CONFIG, WEIGHTS]))
    except Exception as error:  # no such repository, no connection, a proxy in between: many kinds of exception
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FileNotFoundError(f"no folder {name}, nor to be had from the hub (are you offline?): {reason}") from error
