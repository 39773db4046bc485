"""A trained host, whatever holds it: a pretrained folder (which a finished run's folder is), or a run file."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from memcomp.adapters import Host
from memcomp.adapters.folder import WEIGHTS, Pretrained, read_pretrained
from memcomp.adapters.pretrained import build_pretrained
from memcomp.config import CompensationConfig
from memcomp.experiments.checkpoints.find import CHECKPOINT, checkpoint_path, is_pretrained
from memcomp.experiments.checkpoints.kept import load_newest
from memcomp.experiments.checkpoints.run_file import load_run
from memcomp.experiments.errors import UserError
from memcomp.experiments.recipe.load import load_recipe
from memcomp.experiments.recipe.sections import DataSection, HostSection, MemorySection, Recipe

RECIPE = "recipe.yaml"  # of a run's folder
DEFAULT_SIZE = 256  # of a host that does not tell: what every host's published checkpoint was trained with


@dataclass(frozen=True)
class Trained:
    """A trained host as it was read; `host` makes it.

    Attributes:
        path: the file of weights.
        content: the weights, what they are of, and where they came from.
        saved_recipe: the recipe that the file of weights itself holds (a run file does).
    """

    path: Path
    content: Pretrained
    saved_recipe: Recipe | None = None

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """The host's state dict, on the CPU, in the file's dtypes."""
        return self.content.tensors

    @property
    def size(self) -> int:
        """Height and width of the pictures that it was trained with."""
        return self.content.size or DEFAULT_SIZE

    @property
    def info(self) -> dict[str, Any]:
        """What its training recorded, such as {"backbone": …}; empty if nothing is known."""
        return dict(self.content.training or {})

    @property
    def step(self) -> int:
        """Optimiser steps that it was trained; 0 if nothing is known."""
        step = self.info.get("step")
        return step if type(step) is int else 0

    @cached_property
    def recipe(self) -> Recipe | None:
        """The recipe that trained it: in its run file, or beside its weights. None if there is none.

        Raises:
            UserError: the recipe beside the weights cannot be read, or describes another host.
        """
        file = self.path.parent / RECIPE
        if self.saved_recipe is not None or not file.is_file():
            return self.saved_recipe
        recipe, described = load_recipe(file), self._described()
        theirs, ours = _essence(recipe), _essence(described)
        for key, value in theirs.items():
            if value != ours[key]:
                raise UserError(f"{file}: expected the recipe of {self.path.name}, trained with another {key}")
        return recipe

    def recipe_or_heads(self) -> Recipe:
        """The recipe that trained it; where none is known, one of this host alone, with procedural heads as its data.

        Raises:
            UserError: as `recipe`.
        """
        return self.recipe or self._described()

    def build(self) -> Host:
        """Make the host, its memory attached if it has one, in the file's dtype, in eval mode.

        Raises:
            UserError: there is no such host, or the weights do not fit it.
        """
        try:
            with torch.random.fork_rng([]):  # fresh weights are drawn, then replaced
                return build_pretrained(self.content, self.path)
        except ValueError as error:
            raise UserError(str(error)) from None

    def host(self, device: str | torch.device = "cpu") -> Host:
        """Make the host as `build` does, in float32, in which everything here computes, on `device`."""
        return self.build().float().to(device)

    def _described(self) -> Recipe:
        """What the weights' description says, as a recipe that trains nothing."""
        content, memory = self.content, None
        if content.memory is not None:
            config = CompensationConfig.from_dict(content.memory["config"] or {})
            memory = MemorySection(config.variant, content.memory["mode"], tuple(content.memory["scales"]), config)
        data = DataSection(depth=takes_depth(content.model))
        return Recipe(size=self.size, host=HostSection(content.host, content.model), memory=memory, data=data)


def read_trained(path: str | os.PathLike[str]) -> Trained:
    """Read a trained host.

    Args:
        path: a run's folder, finished or not, a pretrained folder, the file of weights in either, or "demo".

    Raises:
        UserError: there is none, it is damaged, or its weights are not finite.
    """
    file = checkpoint_path(path)
    if is_pretrained(file):
        if file.name != WEIGHTS:
            raise UserError(f"{file}: expected the name {WEIGHTS}, under which a pretrained folder holds its weights")
        try:
            return Trained(file, read_pretrained(file.parent))
        except (ValueError, OSError) as error:
            raise UserError(str(error)) from None
    if file == Path(path) / CHECKPOINT:
        file, state = load_newest(Path(path))
    else:
        state = load_run(file)
    recipe, section = state.recipe, state.recipe.memory
    memory: dict[str, Any] | None = None
    if section is not None:  # None: all scales, and as many keypoints as the host has
        scales = None if section.scales == "all" else list(section.scales)
        memory = {"config": section.config.to_dict(), "mode": section.mode, "scales": scales, "keypoints": None}
    training, weights = _training(recipe, state.step, state.info), state.average() or state.model()
    content = Pretrained(recipe.host.name, recipe.host.model, memory, recipe.size, None, weights, training)
    return Trained(file, content, recipe)


def load_host(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> tuple[Host, Recipe]:
    """Load a trained host, in eval mode on `device`, and the recipe whose data it is measured on.

    Raises:
        UserError: as `read_trained`, or there is no such host, or the weights do not fit it.
    """
    trained = read_trained(path)
    return trained.host(device), trained.recipe_or_heads()


def save_trained(folder: Path, host: Host, recipe: Recipe, step: int, info: Mapping[str, Any]) -> None:
    """Make a run's folder, which holds `recipe.yaml` already, the pretrained folder of what it trained.

    A writer that is stopped at any point leaves the folder as it was, or finished.

    Args:
        folder: of the run.
        host: trained.
        recipe: that trained it.
        step: optimiser steps done.
        info: what the run recorded; anything JSON can hold.

    Raises:
        UserError: a weight is not finite.
    """
    try:
        host.save_pretrained(folder, size=recipe.size, training=_training(recipe, step, info))
    except ValueError as error:
        raise UserError(f"{folder}: {error}") from None


def takes_depth(model: Mapping[str, Any]) -> bool:
    """Whether a host of this `model` takes its pictures' true disparity as a fourth channel."""
    return model.get("depth") == "truth"


def _training(recipe: Recipe, step: int, info: Mapping[str, Any]) -> dict[str, Any]:
    return {"step": step, "seed": recipe.seed, **info}


def _essence(recipe: Recipe) -> dict[str, Any]:
    """What a recipe and the description of its weights both say."""
    memory, control = recipe.memory, recipe.memory is not None and recipe.memory.mode == "skip_control"
    return {
        "host.name": recipe.host.name,
        "host.model": recipe.host.model,
        "size": recipe.size,
        "memory.mode": None if memory is None else memory.mode,
        "memory": None if memory is None or control else memory.config,  # a control has no use for it
    }
