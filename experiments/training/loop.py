"""Train what a recipe describes, by one process or by several under torchrun: set up, loop, step.

A run's folder holds recipe.yaml (resolved), log.csv, losses.png, samples/, checkpoints/last.safetensors (to resume)
and, once it is done, model.safetensors and config.json: it is a pretrained folder then.
"""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from memcomp.adapters import Host
from memcomp.adapters.folder import WEIGHTS
from memcomp.experiments.checkpoints.build import build_host, initialise, load_weights
from memcomp.experiments.checkpoints.find import CHECKPOINT
from memcomp.experiments.checkpoints.run_file import RunState, load_run, save_run
from memcomp.experiments.checkpoints.trained import RECIPE, save_trained
from memcomp.experiments.data.batching import StepBatches, collate, loading, on_device
from memcomp.experiments.data.clips import warn_of_conversions
from memcomp.experiments.data.pairs import seeded
from memcomp.experiments.data.sources import held_out_pairs, training_pairs
from memcomp.experiments.errors import UserError
from memcomp.experiments.files import atomic_write, writable_folder
from memcomp.experiments.interruption import ignore_interrupts, interruption
from memcomp.experiments.processes import Processes
from memcomp.experiments.recipe.sections import LogSection, Recipe
from memcomp.experiments.training.capacity import initialise_widened, resolved
from memcomp.experiments.training.held_out import HeldOut
from memcomp.experiments.training.log import Clock, RunLog
from memcomp.experiments.training.loss import Objective
from memcomp.experiments.training.optimizers import DISCRIMINATOR, Optimisers, rate_factor

LAST = 20  # the held-out loss is measured after each of this many last steps


@dataclass(frozen=True)
class TrainingResult:
    """How far a training came, and its held-out loss before and after.

    Attributes:
        folder: of the run.
        step: optimiser steps done in all.
        finished: False if it was interrupted (a checkpoint is there).
        held_out_start: loss on held-out pairs before the first step (NaN in a process that keeps no log).
        held_out_end: its mean over the last 20 steps.
    """

    folder: Path
    step: int
    finished: bool
    held_out_start: float
    held_out_end: float


def train(
    recipe: Recipe, folder: str | Path, *, resume: bool = False, stop_after: int | None = None, progress: bool = True
) -> TrainingResult:
    """Train, writing into `folder`.

    Args:
        recipe: what to train.
        folder: of the run; made if need be.
        resume: go on from the folder's checkpoint; on the CPU every number is then what it would have been.
        stop_after: stop as if interrupted after this many steps in all.
        progress: show a bar.

    Raises:
        UserError: a run is there already (or, resuming, none is); input that cannot be used; gradients that stay not
            finite.
    """
    folder, processes = Path(folder), Processes.start(recipe.device)
    fresh = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        run = Training(recipe, folder, processes, resume)
        done = loop(run, stop_after, progress and processes.first)
        warn_of_conversions(run.converted)
        if done == run.total and processes.first:
            clips = len(run.info["damaged_clips"])  # not their names: what others get tells nothing of this machine
            save_trained(folder, run.host, run.recipe, done, run.info | {"damaged_clips": clips})
    except BaseException:
        for place in fresh:  # nothing was trained
            if place.is_dir() and not any(place.iterdir()):
                place.rmdir()
        raise
    finally:
        processes.stop()
    measured = (run.log.column("held_out") if run.log is not None else []) or [math.nan]
    tail = measured[-LAST:]
    return TrainingResult(folder, done, done == run.total, measured[0], sum(tail) / len(tail))


# ---- set up ----------------------------------------------------------------------------------------------------------


class Training:
    """Everything that the loop works with; it is made before anything is written into `folder`.

    Attributes:
        recipe: resolved: the capacity control widened, files that the host's model named read.
        batches: the pairs of the steps that are left, in this process.
        info: what the checkpoints tell of the run; the loop keeps it up to date.
        converted: what is told of clips that reading converted; the loop adds to it.
        held_out, log: None but in the first process, which writes.
    """

    def __init__(self, recipe: Recipe, folder: Path, processes: Processes, resume: bool) -> None:
        # the run: a new one, or one to go on with
        optim, device, last = recipe.optim, processes.device, folder / CHECKPOINT
        if resume and not last.is_file():
            raise UserError(f"{last}: nothing to resume; expected the checkpoint of an earlier run")
        for file in () if resume else (last, folder / WEIGHTS):
            if file.is_file():
                raise UserError(f"{file}: there already, of an earlier run; resume it or choose another folder")
        if optim.batch_size % processes.world:
            shared = f"{optim.batch_size} pairs cannot be shared by {processes.world} processes"
            raise UserError(f"optim.batch_size: {shared}")
        self.folder, self.processes = writable_folder(folder), processes
        saved = load_run(last) if resume else None
        self.start = 0 if saved is None else saved.step
        if recipe.threads:
            torch.set_num_threads(recipe.threads)

        # what learns: the host with its memory, the loss, the optimisers
        recipe = resolved(recipe)
        self.host = build_host(recipe, sync_batchnorm=processes.world > 1 and device.type == "cuda")
        self.recipe = recipe = replace(recipe, host=replace(recipe.host, model=self.host.model))
        _load(self.host, recipe, saved, last)
        self.memory_format = torch.channels_last if recipe.channels_last else torch.contiguous_format
        self.host.to(device).to(memory_format=self.memory_format).train()
        self.objective = Objective(recipe.loss, recipe.stage).to(device)
        self.optimisers = Optimisers(self.host, optim)
        if saved is not None:
            self.optimisers.load_state(saved.optimizer(), str(last))

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
            worker_init_fn=ignore_interrupts,
        )
        torch.backends.cudnn.benchmark = True  # every step has the same sizes

        # what is told of it: numbers for the checkpoints, held-out pairs, the log
        self.info: dict[str, Any] = {"backbone": self.objective.backbone, "torch": torch.__version__}
        self.info |= {"skipped_steps": 0, "damaged_clips": []} | ({} if saved is None else saved.info)
        first = processes.first
        self.held_out = HeldOut(recipe, self.objective, held_out_pairs(recipe), device) if first else None
        self.converted = set() if self.held_out is None else self.held_out.converted
        self.log = None if self.held_out is None else _open_log(self, self.held_out)


def _batch_bytes(recipe: Recipe, world: int) -> int:
    """Bytes of one process's share of a batch as it leaves the loader; pictures with motion are float."""
    pictures = 2 * recipe.optim.batch_size // world
    return pictures * recipe.data.channels * recipe.size**2 * (4 if recipe.data.motion else 1)


def _open_log(run: Training, held_out: HeldOut) -> RunLog:
    """Write recipe.yaml, and log.csv up to the step at which the run starts."""
    # measured before anything is written: it finds what a recipe asks of a host that cannot do it
    before = [{"step": 0, "held_out": held_out.loss(run.host)}] if run.start == 0 else []
    with atomic_write(run.folder / RECIPE) as temporary:
        temporary.write_text(run.recipe.to_yaml(), encoding="utf-8")
    log = RunLog(run.folder / "log.csv", run.start)
    for row in before:
        log.add(row)
    return log


def _load(host: Host, recipe: Recipe, saved: RunState | None, origin: Path) -> None:
    """Give the host the weights that it starts with, and prepare it for its stage."""
    if saved is not None:
        _check_same(recipe, saved.recipe, origin)
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


def _check_same(given: Recipe, saved: Recipe, origin: Path) -> None:
    """Refuse another recipe: resuming may change how a run is carried out, but not what it computes."""

    def essence(recipe: Recipe) -> dict[str, object]:
        data = replace(recipe.data, workers=0, cache=None, cache_gb=0.0, root=None, shared_people=False)
        plain = replace(recipe, device="", threads=None, data=data, log=LogSection()).to_dict()
        return {
            f"{section}.{key}" if key else section: item
            for section, value in plain.items()
            for key, item in (value if isinstance(value, dict) else {"": value}).items()
        }

    ours, theirs = essence(given), essence(saved)
    for key in sorted(ours.keys() | theirs.keys()):
        if ours.get(key) != theirs.get(key):
            raise UserError(
                f"{origin}: was trained with {key}={theirs.get(key)}, the recipe says {ours.get(key)}; the run's own "
                "recipe.yaml with --resume goes on with it, init=FOLDER starts another run from its weights"
            )


# ---- loop ------------------------------------------------------------------------------------------------------------


def loop(run: Training, stop_after: int | None, progress: bool) -> int:
    """Take the steps that are left, until the last one or an interruption; returns the steps done in all."""
    done, skipped_in_a_row = run.start, 0
    bar = tqdm(total=run.total, initial=done, unit="step", disable=not progress, dynamic_ncols=True, mininterval=0.5)
    with interruption() as interrupted, bar:
        clock = Clock()
        for batch in run.batches:
            clock.data_is_here()
            outcome = step(run, batch, done)
            done += 1
            images_per_second, waiting = clock.step_is_done(run.recipe.optim.batch_size)

            # what went wrong
            finite = math.isfinite(outcome.norm)
            run.info["skipped_steps"] += not finite
            skipped_in_a_row = 0 if finite else skipped_in_a_row + 1
            if skipped_in_a_row > run.recipe.optim.skip_limit:
                raise UserError(
                    f"step {done}: {skipped_in_a_row} steps in a row had a loss or gradient that is not finite; try a "
                    "lower optim.lr, optim.clip=10 or a longer optim.warmup"
                )
            for message in sorted(set(batch["skipped"]).difference(run.info["damaged_clips"])):
                run.info["damaged_clips"].append(message)
                tqdm.write(f"memcomp: skipped a damaged clip: {message}", file=sys.stderr)
            run.converted.update(batch["converted"])

            # what is told and kept of it
            drawn = progress and (time.time() - bar.last_print_t >= bar.mininterval or done == run.total)
            if drawn:  # at most twice a second is the loss read for it
                speed = f"{images_per_second:.1f} images/s, {waiting:.0%} waiting for data"
                bar.set_postfix_str(f"loss {outcome.loss.item():.4g}, {speed}", refresh=False)
            bar.update()
            stopping = run.processes.any(bool(interrupted)) or done == stop_after
            write_down(run, done, outcome, {"images_per_second": images_per_second, "waiting": waiting}, stopping)
            clock.restart()
            if stopping:
                break
    return done


def write_down(run: Training, done: int, outcome: Outcome, speed: dict[str, float], stopping: bool) -> None:
    """Write the row of the log, the pictures and the checkpoint that are due after `done` steps."""
    every, info = run.recipe.log, run.info
    if run.log is None or run.held_out is None:  # another process does
        return
    measured = done % every.held_out_every == 0 or done > run.total - LAST
    if measured or done % every.every == 0:
        row = {"step": done, "loss": outcome.loss.item(), "lr": outcome.rate, "gradient_norm": outcome.norm}
        row |= {"skipped_steps": info["skipped_steps"], "damaged_clips": len(info["damaged_clips"])}
        row |= speed | {name: term.item() for name, term in outcome.terms.items()}
        run.log.add(row | ({"held_out": run.held_out.loss(run.host)} if measured else {}))
    if done % every.sample_every == 0 or done == run.total:
        run.held_out.draw(run.folder / "samples" / f"{done:07d}.png", run.host)
        run.log.draw(run.folder / "losses.png")
    if done % every.checkpoint_every == 0 or done == run.total or stopping:
        save_run(run.folder / CHECKPOINT, run.recipe, run.host, done, optimizer=run.optimisers.state(), info=info)


# ---- step ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """The numbers of one step. `loss` and `terms` are still on the device: to read them is to wait for it."""

    loss: Tensor
    terms: dict[str, Tensor]
    norm: float  # of all gradients before clipping; not finite: the step was undone
    rate: float


def step(run: Training, batch: dict[str, Any], number: int) -> Outcome:
    """Take one optimiser step, `number` from 0; a gradient that is not finite undoes it."""
    # what this step works with: its pictures, draws, learning rate, and the batch statistics to go back to
    recipe, host, optimisers, device = run.recipe, run.host, run.optimisers, run.processes.device
    source, driving = (one.contiguous(memory_format=run.memory_format) for one in on_device(batch, device))
    draw, epoch = seeded(recipe.seed, f"transform {run.processes.rank}", number), number / run.steps_per_epoch
    rate = optimisers.set_rate(rate_factor(number, run.total, run.steps_per_epoch, recipe.optim))
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16")
    statistics = [buffer for buffer in host.buffers() if buffer.is_floating_point()]
    before = [buffer.clone() for buffer in statistics]

    # the host with its memory: forward, backward, average over the processes, clip and step unless not finite
    optimisers.zero_grad()
    with autocast:
        loss, terms, output = run.objective(host, source, driving, draw, epoch)
    loss.backward()
    run.processes.average(optimisers.gradients())
    norm = optimisers.step(optimisers.generator_parts())

    # what is not finite is undone: it would stay in the running statistics of batch norm for good
    if not math.isfinite(norm):
        for buffer, value in zip(statistics, before, strict=True):
            buffer.copy_(value)
    # else the discriminator has its turn, on the same prediction
    elif run.objective.adversarial and output is not None:
        optimisers.zero_grad()  # the generator's loss left gradients in it
        with autocast:
            judged = recipe.loss.discriminator_gan * host.discriminator_loss(output, driving)
        judged.backward()
        run.processes.average(optimisers.gradients())
        optimisers.step([DISCRIMINATOR])
        terms["discriminator"] = judged.detach()
    return Outcome(loss.detach(), terms, norm, rate)
