"""One safetensors file holds a run: the host (memory included), the optimiser, the recipe and the step. No pickle.

Keys: `model.<host state-dict key>` and, while training can go on, `optimizer.<section>.<parameter>.<state>`.
Metadata: `format`, `recipe` (JSON), `step`, `info` (JSON; what the run found out, such as the resolved backbone).
A pretrained folder (see `memcomp.adapters.pretrained`) is read wherever a run is.
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

from memcomp.adapters import Host, attach, create_host, pretrained
from memcomp.adapters.upstream.checkpoint import read_checkpoint
from memcomp.experiments.errors import UserError
from memcomp.experiments.files import atomic_write, existing_file
from memcomp.experiments.recipe.load import recipe_from_dict
from memcomp.experiments.recipe.sections import Recipe
from memcomp.handle import Handle

FORMAT = "memcomp-run-1"
RUN_FILES = (pretrained.WEIGHTS, "checkpoints/last.safetensors")  # the first is a pretrained folder's too
UPSTREAM = (".pth", ".tar", ".pt")  # suffixes of upstream's checkpoints
DEFAULT_SIZE = 256  # of a pretrained folder that does not tell: what every host's published checkpoint was trained with
DEMO_HOST = "demo"  # the name, as a path to a checkpoint, of the host that comes with the package


@dataclass(frozen=True)
class RunState:
    """A checkpoint, read.

    Attributes:
        recipe: what was trained.
        tensors: "model.…" and "optimizer.…" → tensor, on the CPU.
        step: optimiser steps done.
        info: what else the run recorded, such as {"backbone": …}.
    """

    recipe: Recipe
    tensors: dict[str, Tensor]
    step: int
    info: dict[str, Any] = field(default_factory=dict)

    def model(self) -> dict[str, Tensor]:
        """The host's state dict."""
        return self._part("model.")

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
    info: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint; `path` holds the previous one until the new one is complete.

    Args:
        path: file to write.
        recipe: the resolved recipe.
        host: with its memory, if it has one.
        step: optimiser steps done.
        optimizer: "<section>.<parameter>.<state>" → tensor; left out, training cannot be resumed from the file.
        info: anything JSON can hold.

    Raises:
        UserError: the folder cannot be written.
    """
    tensors = {f"model.{key}": value for key, value in host.state_dict().items()}
    tensors |= {f"optimizer.{key}": value for key, value in (optimizer or {}).items()}
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
    """Read a checkpoint, or a pretrained folder: its step is 0, and of its recipe host, memory and size count.

    Raises:
        UserError: no such file, not a checkpoint of `memcomp train`, or weights that are not finite.
    """
    file = checkpoint_path(path)
    if is_pretrained(file):
        return _pretrained(file.parent)
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: expected a checkpoint of `memcomp train` (safetensors); {error}") from None
    if metadata.get("format") == pretrained.FORMAT:
        raise UserError(f"{file}: expected {pretrained.CONFIG} beside it, which tells what these weights are of")
    if metadata.get("format") != FORMAT:
        raise UserError(f"{file}: expected a checkpoint of format {FORMAT}, found {metadata.get('format', 'none')}")
    for key, value in tensors.items():
        if key.startswith("model.") and value.is_floating_point() and not bool(value.isfinite().all()):
            name = key.removeprefix("model.")
            raise UserError(f"{file}: {name} is not finite; expected weights without NaN or infinity")
    try:
        raw, step, info = json.loads(metadata["recipe"]), int(metadata["step"]), json.loads(metadata["info"])
    except (KeyError, ValueError) as error:
        raise UserError(f"{file}: expected recipe, step and info in the checkpoint's metadata ({error!r})") from None
    return RunState(recipe_from_dict(raw, str(file)), tensors, step, info)


def is_pretrained(file: Path) -> bool:
    """Whether it is the weights' file of a pretrained folder."""
    return file.name == pretrained.WEIGHTS and (file.parent / pretrained.CONFIG).is_file()


def _pretrained(folder: Path) -> RunState:
    try:
        read = pretrained.read_pretrained(folder)
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from None
    recipe: dict[str, Any] = {"host": {"name": read.host, "model": read.model}, "size": read.size or DEFAULT_SIZE}
    recipe |= {"optim": {"steps": 1}, "loss": {"pyramid_l1": 1.0}}  # a recipe must train something
    if read.memory is not None:
        config = read.memory["config"] or {}
        place = {key: read.memory[key] for key in ("mode", "scales")}
        recipe["memory"] = {"preset": config.get("variant", "paper"), **place, **config}
    if read.model.get("depth") == "truth":
        recipe["data"] = {"depth": True}
    tensors = {f"model.{key}": value for key, value in read.tensors.items()}
    return RunState(recipe_from_dict(recipe, str(folder / pretrained.CONFIG)), tensors, 0, {"source": read.source})


def load_host(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> tuple[Host, Recipe]:
    """The trained host of a checkpoint, its memory attached if it has one, in eval mode on `device`.

    Raises:
        UserError: as `load_run`, or the weights do not fit the recipe beside them.
    """
    run = load_run(path)
    host = build_host(run.recipe)
    load_weights(host, run.model(), str(path))
    return host.to(device).eval(), run.recipe


def build_host(recipe: Recipe, *, sync_batchnorm: bool = False) -> Host:
    """A fresh host with the memory that the recipe names. The host's weights are the same with and without a memory.

    Args:
        recipe: `seed`, `host`, `memory` and `freeze_host` of it count.
        sync_batchnorm: batch statistics over all processes (CUDA only).

    Raises:
        UserError: the host or its memory cannot be made as described, or the host refuses pictures of this size.
    """
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(recipe.seed)
        try:
            host = create_host(recipe.host.name, recipe.host.model)
            if sync_batchnorm:
                torch.nn.SyncBatchNorm.convert_sync_batchnorm(host)
            if recipe.freeze_host:
                host.freeze()
            if recipe.memory is not None:
                scales = None if recipe.memory.scales == "all" else recipe.memory.scales
                attach(host, recipe.memory.config, mode=recipe.memory.mode, scales=scales)
            blank = torch.zeros(1, recipe.data.channels, recipe.size, recipe.size)
            with torch.no_grad():
                made = host.eval()(blank, blank).prediction  # networks that halve a size refuse some, or lose pixels
            if made.shape[2:] != blank.shape[2:]:
                raise ValueError(f"size: expected one that it keeps, it makes {made.shape[-1]} of {recipe.size}")
            host.train()
        except (ValueError, TypeError, RuntimeError) as error:  # torch's own for a negative width
            hint = "; data.depth: expected true only of a host that takes a fourth channel" if recipe.data.depth else ""
            raise UserError(f"host {recipe.host.name!r} of the recipe: {error}{hint}") from None
    return host


def load_weights(host: Host, weights: Mapping[str, Tensor], origin: str, *, partial: bool = False) -> None:
    """Load a state dict after checking it key by key.

    Args:
        host: with or without a memory.
        weights: its state dict.
        origin: the file, for errors.
        partial: either side may lack the memory (a host trained alone gets one, or back) and sections that upstream's
            checkpoints may lack, such as a discriminator.

    Raises:
        UserError: a key that is missing, unexpected or of another shape.
    """
    ours = host.state_dict()
    given = dict(weights)
    if partial:
        given = {key: value for key, value in given.items() if key in ours or not _optional(host, key)}
    for key, value in given.items():
        if key not in ours:
            raise UserError(f"{origin}: unexpected {key}; the recipe's host {host.name!r} has no such weight")
        if value.shape != ours[key].shape:
            expected = tuple(ours[key].shape)
            raise UserError(f"{origin}: {key} has shape {tuple(value.shape)}, the recipe's host expects {expected}")
    missing = [key for key in ours if key not in given]
    if partial:
        absent = host.optional_sections - {key.split(".")[0] for key in given}
        missing = [key for key in missing if not _of_memory(key) and key.split(".")[0] not in absent]
    if missing:
        raise UserError(
            f"{origin}: {missing[0]} is missing ({len(missing)} of {len(ours)} weights of the recipe's host)"
        )
    host.load_state_dict(given, strict=False)


def initialise(host: Host, path: str) -> None:
    """Start the host (and the memory, where both have one) from a checkpoint of ours or of upstream (.pth, .tar).

    Of upstream's, sections that the host lacks are left out, such as a discriminator.

    Raises:
        UserError: no such file, or weights that do not fit.
    """
    if path != DEMO_HOST and not Path(path).exists():
        way = f"memcomp convert FILE --output {path}"
        raise UserError(
            f"{path}: expected a checkpoint to start from, found nothing; upstream's are converted by: {way}"
        )
    if Path(path).suffix in UPSTREAM:
        try:
            sections = read_checkpoint(path).sections
            alone = host.memory is None
            host.load_upstream({name: state for name, state in sections.items() if name in host.sections()})
        except ValueError as error:
            raise UserError(f"{path}: expected upstream's checkpoint; {error}") from None
        handle = Handle.of(host.sections()[host.generator_section])
        if alone and host.memory is not None and handle is not None:  # came with the weights; the recipe names none
            handle.remove()
        return
    load_weights(host, load_run(path).model(), path, partial=True)


def checkpoint_path(path: str | os.PathLike[str]) -> Path:
    """The file that `path` names: a checkpoint, a run's or a pretrained folder, or "demo" for the package's host.

    Raises:
        UserError: there is none, or it is upstream's.
    """
    if os.fspath(path) == DEMO_HOST:
        from memcomp.experiments.checkpoints.shipped import shipped_host

        return shipped_host()[0]
    file = Path(path)
    if file.suffix in UPSTREAM and file.is_file():
        raise UserError(f"{file}: expected a checkpoint of ours; first: memcomp convert {file} --output FOLDER")
    if file.is_dir():
        found = next((file / name for name in RUN_FILES if (file / name).is_file()), None)
        if found is None:
            raise UserError(f"{file}: expected a run's folder with {' or '.join(RUN_FILES)}, found neither")
        return found
    return existing_file(file, "checkpoint")


def _optional(host: Host, key: str) -> bool:
    return _of_memory(key) or key.split(".")[0] in host.optional_sections


def _of_memory(key: str) -> bool:
    return "memory_compensation" in key.split(".")
