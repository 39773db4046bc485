"""Reading of weights that a user brings as a file."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from memcomp.adapters.upstream.files import fill, read_state
from memcomp.experiments.backends.base import Unavailable
from memcomp.experiments.errors import UserError


def read_weights(file: str | Path) -> dict[str, Tensor]:
    """Read the state dict of a file of safetensors or `torch.save`: see `memcomp.adapters.upstream.files.read_state`.

    Raises:
        Unavailable: there is no such file.
        UserError: it cannot be read, or holds something else.
    """
    path = Path(file)
    if not path.is_file():
        raise Unavailable(path.name or "a file", f"{path}: expected a file of weights, found none")
    try:
        return read_state(path)
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from None


def load_weights(network: nn.Module, file: str | Path) -> str:
    """Fill `network` with the weights of a file, every one of them; returns the file's name.

    Entries that the network does not have are ignored: checkpoints carry layers that are not used.

    Raises:
        Unavailable: there is no such file.
        UserError: it cannot be read, or lacks a tensor, or one has another shape.
    """
    state = read_weights(file)
    try:
        fill(network, state)
    except ValueError as error:
        raise UserError(f"{file}: {error}") from None
    return Path(file).name
