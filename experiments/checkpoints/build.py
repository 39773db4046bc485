"""Making the host that a recipe describes, and giving it weights: those of its own run, or others to start from."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from memcomp.adapters import Host, attach, create_host
from memcomp.adapters.upstream.checkpoint import read_checkpoint
from memcomp.experiments.checkpoints.find import DEMO_HOST, is_upstream
from memcomp.experiments.checkpoints.trained import read_trained
from memcomp.experiments.errors import UserError
from memcomp.experiments.recipe.sections import Recipe
from memcomp.handle import Handle


def build_host(recipe: Recipe, *, sync_batchnorm: bool = False) -> Host:
    """Make a fresh host with the memory that the recipe names; the host's weights are the same without a memory.

    Args:
        recipe: `seed`, `host`, `memory`, `freeze_host` and `freeze_motion` of it count.
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
            if recipe.freeze_motion:
                host.freeze_motion()
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
    for key, value in sorted(given.items()):
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
    """Give the host (and the memory, where both have one) the weights of a checkpoint, ours or upstream's.

    Of upstream's, sections that the host lacks are left out, such as a discriminator.

    Raises:
        UserError: no such file, or weights that do not fit.
    """
    if path != DEMO_HOST and not Path(path).exists():
        way = f"memcomp convert FILE --output {path}"
        raise UserError(
            f"{path}: expected a checkpoint to start from, found nothing; upstream's are converted by: {way}"
        )
    if is_upstream(Path(path)):
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
    load_weights(host, read_trained(path).weights, path, partial=True)


def _optional(host: Host, key: str) -> bool:
    return _of_memory(key) or key.split(".")[0] in host.optional_sections


def _of_memory(key: str) -> bool:
    return "memory_compensation" in key.split(".")
