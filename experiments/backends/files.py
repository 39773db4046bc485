"""Reading of weights that a user brings as a file."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from memcomp.adapters.upstream.files import read_state
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
    for name, value in network.state_dict().items():
        if name.endswith("num_batches_tracked"):  # older checkpoints do not count them
            state.setdefault(name, value)
        if name not in state or state[name].shape != value.shape:
            have = f"has shape {tuple(state[name].shape)}" if name in state else "is missing"
            raise UserError(f"{file}: {name} {have}, expected {tuple(value.shape)}")
    network.load_state_dict({name: state[name] for name in network.state_dict()})
    return Path(file).name
