"""Train what a recipe describes, by one process or by several under torchrun: set up, loop, step.

A run's folder holds recipe.yaml (resolved), log.csv, losses.png, samples/, checkpoints/ (to resume, see
`checkpoints/kept.py`) and, once it is done, model.safetensors and config.json: it is a pretrained folder then.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from memcomp.adapters import Host, HostOutput
from memcomp.adapters.folder import WEIGHTS
from memcomp.adapters.shared.draws import ShareGenerator
from memcomp.experiments.checkpoints.build import build_host, initialise, load_weights
from memcomp.experiments.checkpoints.find import CHECKPOINT
from memcomp.experiments.checkpoints.kept import (
    BEST,
    earlier,
    has_run,
    load_newest,
    make_newest,
    save_checkpoint,
    sweep,
)
from memcomp.experiments.checkpoints.run_file import RunState, save_run
from memcomp.experiments.checkpoints.trained import RECIPE, save_trained
from memcomp.experiments.data.batching import StepBatches, collate, loading, on_device
from memcomp.experiments.data.clips import warn_of_conversions
from memcomp.experiments.data.pairs import seeded
from memcomp.experiments.data.sources import held_out_pairs, training_pairs
from memcomp.experiments.errors import UserError, warn
from memcomp.experiments.files import atomic_write, writable_folder
from memcomp.experiments.interruption import ignore_interrupts, interruption, no_worker_left
from memcomp.experiments.processes import Processes
from memcomp.experiments.recipe.sections import Recipe
from memcomp.experiments.training.average import Average
from memcomp.experiments.training.capacity import initialise_widened, resolved
from memcomp.experiments.training.held_out import HeldOut
from memcomp.experiments.training.log import Clock, RunLog
from memcomp.experiments.training.loss import Objective
from memcomp.experiments.training.optimizers import DISCRIMINATOR, Optimisers, rate_factor
from memcomp.experiments.training.precision import autocast, products_of
from memcomp.experiments.training.resume import RULES, allowed_changes

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
    recipe: Recipe,
    folder: str | Path,
    *,
    resume: bool | Literal["auto"] = False,
    allow: Sequence[str] = (),
    stop_after: int | None = None,
    progress: bool = True,
) -> TrainingResult:
    """Train, writing into `folder`.

    Args:
        recipe: what to train.
        folder: of the run; made if need be.
        resume: go on from the folder's checkpoint; on the CPU every number is then what it would have been. "auto": if
            there is one.
        allow: keys of the recipe that may differ from those that the run was trained with so far.
        stop_after: stop as if interrupted after this many steps in all.
        progress: show a bar.

    Raises:
        UserError: a run is there already (or, resuming, none is); input that cannot be used; gradients that stay not
            finite.
    """
    folder, processes = Path(folder), Processes.start(recipe.device)
    fresh = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        run = Training(recipe, folder, processes, has_run(folder) if resume == "auto" else resume, allow)
        with products_of(run.precision):
            catch_up(run)
            done = loop(run, stop_after, progress and processes.first)
        warn_of_conversions(run.converted)
        if done == run.total and processes.first:
            clips = len(run.info["damaged_clips"])  # not their names: what others get tells nothing of this machine
            with run.averaged():
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
        self.rules = RULES if saved is None else saved.info.get("rules", 1)
        self.precision = recipe.precision
        if self.rules < RULES and self.precision == "float32" and device.type == "cuda":
            warn(f"{last}: of an earlier version, whose float32 meant TF32 for convolutions: goes on with tf32")
            self.precision = "tf32"
        if self.rules < RULES and processes.world > 1:
            warn(f"{last}: of an earlier version: each process goes on with random draws of its own")
        self.memory_format = torch.channels_last if recipe.channels_last else torch.contiguous_format
        self.host.to(device).lay_out(self.memory_format).train()
        self.objective = Objective(recipe.loss, recipe.stage).to(device)
        self.optimisers = Optimisers(self.host, optim)
        self.average = None if optim.ema is None else Average(self.host, optim.ema)
        if saved is not None:
            self.optimisers.load_state(saved.optimizer(), str(last))
        if self.average is not None and saved is not None and (averaged := saved.average()):
            self.average.load(averaged)

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


def _batch_bytes(recipe: Recipe, world: int) -> int:
    """Bytes of one process's share of a batch as it leaves the loader; pictures with motion or pose are float."""
    pictures, data = 2 * recipe.optim.batch_size // world, recipe.data
    return pictures * (data.channels + 3 * data.pose) * recipe.size**2 * (4 if data.motion or data.pose else 1)


def _open_log(run: Training, held_out: HeldOut) -> RunLog:
    """Write recipe.yaml, and log.csv up to the step at which the run starts."""
    # measured before anything is written: it finds what a recipe asks of a host that cannot do it
    before = []
    if run.start == 0:
        with products_of(run.precision), autocast(run.precision, run.processes.device):
            before = [{"step": 0, "held_out": held_out.loss(run.host)}]
    sweep(run.folder)
    with atomic_write(run.folder / RECIPE) as temporary:
        temporary.write_text(run.recipe.to_yaml(), encoding="utf-8")
    log = RunLog(run.folder / "log.csv", run.start)
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


# ---- loop ------------------------------------------------------------------------------------------------------------


def loop(run: Training, stop_after: int | None, progress: bool) -> int:
    """Take the steps that are left, until the last one or an interruption; returns the steps done in all."""
    done, skipped_in_a_row = run.start, 0
    bar = tqdm(total=run.total, initial=done, unit="step", disable=not progress, dynamic_ncols=True, mininterval=0.5)
    with interruption() as interrupted, no_worker_left(), bar:
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
    """Write the row of the log, the checkpoint and the pictures that are due after `done` steps.

    A run that is stopping writes row and checkpoint alone, for who stopped it may not wait; `catch_up` does the rest.
    """
    every, info = run.recipe.log, run.info
    if run.log is None or run.held_out is None:  # another process does
        return
    measured = _measured(run, done)
    if measured or done % every.every == 0:
        row = {"step": done, "loss": outcome.loss.item(), "lr": outcome.rate, "gradient_norm": outcome.norm}
        row |= {"skipped_steps": info["skipped_steps"], "damaged_clips": len(info["damaged_clips"])}
        row |= speed | {name: term.item() for name, term in outcome.terms.items()}
        run.log.add(row | ({"held_out": _measure(run, done)} if measured and not stopping else {}))
    late = every.checkpoint_minutes is not None and time.monotonic() - run.saved > 60 * every.checkpoint_minutes
    if done % every.checkpoint_every == 0 or done == run.total or stopping or late:
        states = {"optimizer": run.optimisers.state(), "average": run.average.values if run.average else {}}
        save_checkpoint(run.folder, run.recipe, run.host, done, **states, info=info, keep=every.keep)
        run.saved = time.monotonic()
    if _drawn(run, done) and not stopping:
        _draw(run, done)


def catch_up(run: Training) -> None:
    """Measure and draw what was due after the last step of a run that goes on, and what stopped it cut off."""
    if run.log is None or run.start == 0:
        return
    if _measured(run, run.start) and not run.log.has("held_out", run.start):
        run.log.complete(run.start, {"held_out": _measure(run, run.start)})
    if _drawn(run, run.start) and not _sample(run, run.start).is_file():
        _draw(run, run.start)


def _measured(run: Training, done: int) -> bool:
    return done % run.recipe.log.held_out_every == 0 or done > run.total - LAST


def _measure(run: Training, done: int) -> float:
    """Measure the held-out loss; the weights are kept if it is the least so far."""
    assert run.log is not None and run.held_out is not None  # the first process
    before = run.log.column("held_out", above=0)
    with run.averaged():
        with autocast(run.precision, run.processes.device):
            loss = run.held_out.loss(run.host)
        if run.recipe.log.keep_best and all(loss < other for other in before):
            save_run(run.folder / BEST, run.recipe, run.host, done, info=run.info | {"held_out": loss})
    return loss


def _drawn(run: Training, done: int) -> bool:
    return done % run.recipe.log.sample_every == 0 or done == run.total


def _sample(run: Training, done: int) -> Path:
    return run.folder / "samples" / f"{done:07d}.png"


def _draw(run: Training, done: int) -> None:
    assert run.log is not None and run.held_out is not None  # the first process
    with run.averaged(), autocast(run.precision, run.processes.device):
        run.held_out.draw(_sample(run, done), run.host)
    run.log.draw(run.folder / "losses.png")


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
    epoch = number / run.steps_per_epoch
    rate = optimisers.set_rate(rate_factor(number, run.total, run.steps_per_epoch, recipe.optim))
    statistics = [buffer for buffer in host.buffers() if buffer.is_floating_point()]
    before = [buffer.clone() for buffer in statistics]

    # the host with its memory, part by part of the batch: forward, backward; what is kept are means over the parts
    optimisers.zero_grad()
    count, size = recipe.optim.accumulate, len(source) // recipe.optim.accumulate
    losses: list[Tensor] = []
    terms: dict[str, Tensor] = {}
    outputs: list[tuple[HostOutput, Tensor]] = []
    for first in range(0, len(source), size):
        part = source[first : first + size], driving[first : first + size]
        with autocast(run.precision, device):
            loss, found, output = run.objective(host, *part, draws(run, number, first), epoch)
        (loss / count).backward()
        losses.append(loss.detach() / count)
        terms = {name: terms.get(name, 0) + value / count for name, value in found.items()}
        if run.objective.adversarial and output is not None:
            outputs.append((output, part[1]))

    # averaged over the processes, clipped; a step unless not finite
    run.processes.average(optimisers.gradients())
    norm = optimisers.step(optimisers.generator_parts())

    # what is not finite is undone: it would stay in the running statistics of batch norm for good
    if not math.isfinite(norm):
        for buffer, value in zip(statistics, before, strict=True):
            buffer.copy_(value)
    # else the discriminator has its turn, on the same predictions
    elif outputs:
        terms["discriminator"] = discriminator_step(run, outputs)
    if run.average is not None and math.isfinite(norm):
        run.average.update(host, number)
    return Outcome(torch.stack(losses).sum(), terms, norm, rate)


def discriminator_step(run: Training, outputs: Sequence[tuple[HostOutput, Tensor]]) -> Tensor:
    """Take the discriminator's optimiser step on what the host made of each part's driving frames; its mean loss."""
    optimisers, total = run.optimisers, torch.zeros((), device=run.processes.device)
    optimisers.zero_grad()  # the generator's loss left gradients in it
    for output, driving in outputs:
        with autocast(run.precision, run.processes.device):
            judged = run.recipe.loss.discriminator_gan * run.host.discriminator_loss(output, driving)
        (judged / len(outputs)).backward()
        total = total + judged.detach() / len(outputs)
    run.processes.average(optimisers.gradients())
    optimisers.step([DISCRIMINATOR])
    return total


def draws(run: Training, number: int, first: int) -> torch.Generator:
    """The generator of the step `number` for this process's pairs from its `first` on: each pair has its own draws."""
    rank, batch = run.processes.rank, run.recipe.optim.batch_size
    if run.rules < RULES:
        return seeded(run.recipe.seed, f"transform {rank}", number)
    share = batch // run.processes.world
    return ShareGenerator.of(seeded(run.recipe.seed, "transform 0", number), batch, rank * share + first)
