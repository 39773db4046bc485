"""One safetensors file holds a training that can go on: host (memory included), optimisers, recipe, step. No pickle.

Keys: `model.<host state-dict key>`, `optimizer.<section>.<parameter>.<state>` and, if the weights are averaged,
`average.<host state-dict key>`.
Metadata: `format`, `recipe` (JSON), `step`, `info` (JSON; what the run found out, such as the resolved backbone).
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from memcomp.adapters import Host
from memcomp.experiments.errors import UserError
from memcomp.experiments.files import atomic_write
from memcomp.experiments.recipe.load import recipe_from_dict
from memcomp.experiments.recipe.sections import Recipe
from memcomp.formats import weights_format

FORMAT = "memcomp-run-1"


class DamagedRun(UserError):
    """A run file that is not whole: truncated, or not what its name says."""


@dataclass(frozen=True)
class RunState:
    """What a run file holds.

    Attributes:
        recipe: what is trained.
        tensors: "model.…" and "optimizer.…" → tensor, on the CPU.
        step: optimiser steps done.
        info: what else the run recorded, such as {"backbone": …}.
    """

    recipe: Recipe
    tensors: dict[str, Tensor]
    step: int
    info: dict[str, Any] = field(default_factory=dict)

    def model(self) -> dict[str, Tensor]:
        """The host's state dict, as training goes on with it."""
        return self._part("model.")

    def average(self) -> dict[str, Tensor]:
        """The running average of the host's state dict; empty if the recipe asks for none."""
        return self._part("average.")

    def optimizer(self) -> dict[str, Tensor]:
        """The optimisers' state; empty in a file of weights alone."""
        return self._part("optimizer.")

    def _part(self, prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): value for key, value in self.tensors.items() if key.startswith(prefix)}


def save_run(
    path: str | os.PathLike[str],
    recipe: Recipe,
    host: Host,
    step: int,
    *,
    optimizer: Mapping[str, Tensor] | None = None,
    average: Mapping[str, Tensor] | None = None,
    info: Mapping[str, Any] | None = None,
) -> None:
    """Write a run file; `path` holds the previous one until the new one is complete.

    Args:
        path: file to write.
        recipe: the resolved recipe.
        host: with its memory, if it has one.
        step: optimiser steps done.
        optimizer: "<section>.<parameter>.<state>" → tensor; left out, training cannot be resumed from the file.
        average: running average of the host's state dict; left out, there is none.
        info: anything JSON can hold.

    Raises:
        UserError: the folder cannot be written.
    """
    tensors = {f"model.{key}": value for key, value in host.state_dict().items()}
    tensors |= {f"optimizer.{key}": value for key, value in (optimizer or {}).items()}
    tensors |= {f"average.{key}": value for key, value in (average or {}).items()}
    # copies: safetensors refuses tensors that share memory
    tensors = {key: value.detach().cpu().clone(memory_format=torch.contiguous_format) for key, value in tensors.items()}
    metadata = {
        "format": FORMAT,
        "recipe": json.dumps(recipe.to_dict()),
        "step": str(step),
        "info": json.dumps(info or {}),
    }
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata)


def load_run(path: str | os.PathLike[str]) -> RunState:
    """Read a run file.

    Raises:
        DamagedRun: it cannot be read, or not to its end.
        UserError: not a checkpoint of `memcomp train`, or weights that are not finite.
    """
    file = Path(path)
    try:
        weights_format(file)
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 (no mapping)
    except ValueError as error:
        raise DamagedRun(str(error)) from None
    except (SafetensorError, OSError) as error:
        raise DamagedRun(f"{file}: expected a checkpoint of `memcomp train` (safetensors); {error}") from None
    if metadata.get("format") != FORMAT:
        raise UserError(f"{file}: expected a checkpoint of format {FORMAT}, found {metadata.get('format', 'none')}")
    for key, value in tensors.items():
        if key.startswith(("model.", "average.")) and value.is_floating_point() and not bool(value.isfinite().all()):
            name = key.partition(".")[2]
            raise UserError(f"{file}: {name} is not finite; expected weights without NaN or infinity")
    try:
        raw, step, info = json.loads(metadata["recipe"]), int(metadata["step"]), json.loads(metadata["info"])
    except (KeyError, ValueError) as error:
        raise UserError(f"{file}: expected recipe, step and info in the checkpoint's metadata ({error!r})") from None
    return RunState(recipe_from_dict(raw, str(file)), tensors, step, info)
