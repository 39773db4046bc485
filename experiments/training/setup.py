"""What a training works with, made before anything is written: host, loss, optimisers, pairs, log."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

from memcomp.adapters import Host
from memcomp.adapters.folder import WEIGHTS
from memcomp.experiments.checkpoints.build import build_host, initialise, load_weights
from memcomp.experiments.checkpoints.find import CHECKPOINT
from memcomp.experiments.checkpoints.kept import earlier, has_run, load_newest, make_newest, sweep
from memcomp.experiments.checkpoints.run_file import RunState
from memcomp.experiments.checkpoints.trained import RECIPE
from memcomp.experiments.data.batching import StepBatches, collate, loading
from memcomp.experiments.data.sources import held_out_pairs, training_pairs
from memcomp.experiments.errors import UserError, counted, warn
from memcomp.experiments.files import atomic_write, writable_folder
from memcomp.experiments.interruption import belong_to_training
from memcomp.experiments.processes import Processes
from memcomp.experiments.recipe.sections import Recipe
from memcomp.experiments.training.average import Average
from memcomp.experiments.training.board import Board
from memcomp.experiments.training.capacity import initialise_widened, resolved
from memcomp.experiments.training.compiled import compile_host
from memcomp.experiments.training.exchange import Exchange
from memcomp.experiments.training.held_out import HeldOut
from memcomp.experiments.training.log import RunLog
from memcomp.experiments.training.loss import Objective
from memcomp.experiments.training.optimizers import Optimisers
from memcomp.experiments.training.precision import autocast, products_of
from memcomp.experiments.training.resume import RULES, allowed_changes, check_agreement


class Training:
    """Everything that the loop works with; it is made before anything is written into `folder`.

    Attributes:
        recipe: resolved: the capacity control widened, files that the host's model named read.
        batches: the pairs of the steps that are left, in this process.
        info: what the checkpoints tell of the run; the loop keeps it up to date.
        converted: what is told of clips that reading converted; the loop adds to it.
        held_out, log: None but in the first process, which writes.
    """

    def __init__(
        self, recipe: Recipe, folder: Path, processes: Processes, resume: bool, allow: Sequence[str] = ()
    ) -> None:
        # the run: a new one, or one to go on with
        optim, device, last = recipe.optim, processes.device, folder / CHECKPOINT
        if resume and not has_run(folder):
            raise UserError(f"{last}: nothing to resume; expected the checkpoint of an earlier run")
        for file in () if resume else (last, *earlier(folder), folder / WEIGHTS):
            if file.is_file():
                raise UserError(f"{file}: there already, of an earlier run; resume it or choose another folder")
        if optim.batch_size % (processes.world * optim.accumulate):
            shared = f"{optim.batch_size} pairs cannot be shared by {processes.world} processes"
            parts = f" in {optim.accumulate} parts each" if optim.accumulate > 1 else ""
            raise UserError(f"optim.batch_size: {shared}{parts}")
        self.folder, self.processes = writable_folder(folder), processes
        last, saved = load_newest(folder) if resume else (last, None)
        self.start = 0 if saved is None else saved.step
        if recipe.threads:
            torch.set_num_threads(recipe.threads)

        # what learns: the host with its memory, the loss, the optimisers
        recipe = resolved(recipe)
        self.host = build_host(recipe, sync_batchnorm=processes.world > 1 and device.type == "cuda")
        self.recipe = recipe = replace(recipe, host=replace(recipe.host, model=self.host.model))
        changed = _load(self.host, recipe, saved, last, allow)
        check_agreement(processes, recipe, self.start)
        self.rules = RULES if saved is None else saved.info.get("rules", 1)
        self.precision = recipe.precision
        if self.rules < RULES and self.precision == "float32" and device.type == "cuda":
            warn(f"{last}: of an earlier version, whose float32 meant TF32 for convolutions: goes on with tf32")
            self.precision = "tf32"
        if self.rules < RULES and processes.world > 1:
            warn(f"{last}: of an earlier version: each process goes on with random draws of its own")
        self.memory_format = torch.channels_last if recipe.channels_last else torch.contiguous_format
        self.host.to(device).lay_out(self.memory_format).train()
        if processes.world > 1 and device.type == "cpu" and _has_batch_statistics(self.host):
            own = counted(optim.batch_size // processes.world, "pair")
            warn(f"{processes.world} processes on CPUs: each has batch statistics of its own {own}, not of the batch")
        self.objective = Objective(recipe.loss, recipe.stage).to(device)
        self.optimisers = Optimisers(self.host, optim)
        self.exchange = Exchange(processes, self.optimisers.parameters(), self.host.generator_section)
        self.average = None if optim.ema is None else Average(self.host, optim.ema)
        if saved is not None:
            self.optimisers.load_state(saved.optimizer(), str(last))
        if self.average is not None and saved is not None and (averaged := saved.average()):
            self.average.load(averaged)
        if recipe.compile:  # after all that hangs hooks on the host
            compile_host(self.host, device)

        # what it learns from: pairs of frames, the same for any number of processes and workers
        pairs = training_pairs(recipe)  # after the host, for heads may take minutes to render
        self.steps_per_epoch = pairs.epoch_length / optim.batch_size
        self.total = math.ceil((optim.epochs or 0) * self.steps_per_epoch) if optim.steps is None else optim.steps
        self.batches = DataLoader(
            pairs,
            batch_sampler=StepBatches(self.start, self.total, optim.batch_size, processes.rank, processes.world),
            **loading(recipe.data.workers, _batch_bytes(recipe, processes.world), processes.on_this_machine),
            collate_fn=collate,
            pin_memory=device.type == "cuda",
            worker_init_fn=belong_to_training,
        )
        torch.backends.cudnn.benchmark = True  # every step has the same sizes

        # what is told of it: numbers for the checkpoints, held-out pairs, the log
        self.info: dict[str, Any] = {"backbone": self.objective.backbone, "torch": torch.__version__}
        self.info |= {"skipped_steps": 0, "damaged_clips": []} | ({"rules": RULES} if saved is None else saved.info)
        if changed:
            self.info["changed"] = [*self.info.get("changed", []), f"from step {self.start} on: {'; '.join(changed)}"]
        first = processes.first
        if first and saved is not None and last != folder / CHECKPOINT:
            make_newest(folder, last)
        self.held_out = HeldOut(recipe, self.objective, held_out_pairs(recipe), device) if first else None
        self.converted = set() if self.held_out is None else self.held_out.converted
        self.log = None if self.held_out is None else _open_log(self, self.held_out)
        self.saved = time.monotonic()  # when the newest checkpoint was written

    def averaged(self) -> AbstractContextManager[None]:
        """Inside of the context the host has the weights that are measured and kept: the average, if there is one."""
        return nullcontext() if self.average is None else self.average.in_place(self.host)


def _has_batch_statistics(host: Host) -> bool:
    return any(isinstance(module, _BatchNorm) and module.training for module in host.modules())


def _batch_bytes(recipe: Recipe, world: int) -> int:
    """Bytes of one process's share of a batch as it leaves the loader: bytes, or floats."""
    pictures, data = 2 * recipe.optim.batch_size // world, recipe.data
    return pictures * data.loaded_channels * recipe.size**2 * (4 if data.loaded_as_float else 1)


def _open_log(run: Training, held_out: HeldOut) -> RunLog:
    """Write recipe.yaml, and log.csv up to the step at which the run starts."""
    # measured before anything is written: it finds what a recipe asks of a host that cannot do it
    before = []
    if run.start == 0:
        with products_of(run.precision), autocast(run.precision, run.processes.device):
            loss = held_out.loss(run.host)
        before = [{"step": 0, "held_out": loss} | held_out.usage(run.host)]
    sweep(run.folder)
    with atomic_write(run.folder / RECIPE) as temporary:
        temporary.write_text(run.recipe.to_yaml(), encoding="utf-8")
    log = RunLog(run.folder / "log.csv", run.start, Board.beside(run.folder, run.start))
    for row in before:
        log.add(row)
    return log


def _load(host: Host, recipe: Recipe, saved: RunState | None, origin: Path, allow: Sequence[str]) -> list[str]:
    """Give the host the weights that it starts with, and prepare it for its stage; returns what changed in the recipe.

    Raises:
        UserError: the weights do not fit, or a resumed run has another recipe.
    """
    changed: list[str] = []
    if saved is not None:
        changed = allowed_changes(recipe, saved.recipe, allow, origin, rules=saved.info.get("rules", 1))
        load_weights(host, saved.model(), str(origin))
    elif recipe.init is not None and recipe.host.widened != 1:
        initialise_widened(host, recipe)
    elif recipe.init is not None:
        initialise(host, recipe.init)
    try:
        host.check_trainable()
    except ValueError as error:
        raise UserError(f"host {host.name!r} of the recipe: {error}") from None
    if recipe.stage is not None:
        try:
            host.enter_stage(recipe.stage)
        except ValueError as error:
            raise UserError(f"stage: {error}") from None
    return changed
