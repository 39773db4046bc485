"""Train what a recipe describes, by one process or by several under torchrun: set up, loop, step.

A run's folder holds recipe.yaml (resolved), log.csv, tensorboard/ (where that is installed), losses.png, usage.png (of
a memory), samples/, checkpoints/ (to resume, see `checkpoints/kept.py`) and, once it is done, model.safetensors and
config.json: it is a pretrained folder then.
"""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from tqdm import tqdm

from memcomp.experiments.checkpoints.kept import BEST, has_run, save_checkpoint
from memcomp.experiments.checkpoints.run_file import save_run
from memcomp.experiments.checkpoints.trained import save_trained
from memcomp.experiments.data.clips import warn_of_conversions
from memcomp.experiments.interruption import interruption, no_worker_left
from memcomp.experiments.processes import Processes
from memcomp.experiments.recipe.sections import Recipe
from memcomp.experiments.training.log import Clock
from memcomp.experiments.training.precision import autocast, products_of
from memcomp.experiments.training.setup import Training
from memcomp.experiments.training.step import Outcome, step
from memcomp.experiments.training.undone import Arriving, Undone

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
        processes.stop()
    except BaseException:
        for place in fresh:  # nothing was trained
            with contextlib.suppress(OSError):  # it holds something, or another process was quicker
                place.rmdir()
        processes.stop(failed=True)
        raise
    measured = (run.log.column("held_out") if run.log is not None else []) or [math.nan]
    tail = measured[-LAST:]
    return TrainingResult(folder, done, done == run.total, measured[0], sum(tail) / len(tail))


def loop(run: Training, stop_after: int | None, progress: bool) -> int:
    """Take the steps that are left, until the last one or an interruption; returns the steps done in all."""
    done, undone = run.start, Undone(run.info, run.recipe.optim.skip_limit)
    bar = tqdm(total=run.total, initial=done, unit="step", disable=not progress, dynamic_ncols=True, mininterval=0.5)
    with interruption() as interrupted, no_worker_left(), bar:
        clock, told = Clock(), None
        for batch in run.batches:
            clock.data_is_here()
            outcome = step(run, batch, done)
            done += 1

            # what went wrong: in the steps before this one, in this one if something of it is written, in its pairs
            undone.check()
            undone.add(done, outcome.norm)
            damaged = set(batch["skipped"]).difference(run.info["damaged_clips"])
            stopping, some_damaged = run.processes.any_of([bool(interrupted), bool(damaged)])
            stopping = stopping or done == stop_after
            due = due_after(run, done, stopping)
            if due:
                undone.settle()
            images_per_second, waiting = clock.step_is_done(run.recipe.optim.batch_size)
            for message in sorted(set().union(*run.processes.gather(damaged)) if some_damaged else ()):
                run.info["damaged_clips"].append(message)
                if run.processes.first:
                    tqdm.write(f"memcomp: skipped a damaged clip: {message}", file=sys.stderr)
            run.converted.update(batch["converted"])

            # what is told and kept of it
            drawn = progress and (time.time() - bar.last_print_t >= bar.mininterval or done == run.total)
            if drawn and told is not None:  # the loss of the step before, which is there
                speed = f"{images_per_second:.1f} images/s, {waiting:.0%} waiting for data"
                bar.set_postfix_str(f"loss {told.read():.4g}, {speed}", refresh=False)
            told = Arriving(outcome.loss) if progress else None
            bar.update()
            if _logged(run, done):
                outcome = everywhere(run, outcome)
            rates = {"images_per_second": images_per_second, "waiting": waiting}
            write_down(run, done, outcome, rates, due, stopping)
            clock.restart()
            if stopping:
                break
        undone.check()
    return done


def due_after(run: Training, done: int, stopping: bool) -> frozenset[str]:
    """Tell what this process writes down after `done` steps: the "row" of the log, a "checkpoint", a "picture"."""
    every = run.recipe.log
    if run.log is None:  # another process does
        return frozenset()
    late = every.checkpoint_minutes is not None and time.monotonic() - run.saved > 60 * every.checkpoint_minutes
    found = {
        "row": _logged(run, done),
        "checkpoint": done % every.checkpoint_every == 0 or done == run.total or stopping or late,
        "picture": _drawn(run, done) and not stopping,
    }
    return frozenset(name for name, is_due in found.items() if is_due)


def everywhere(run: Training, outcome: Outcome) -> Outcome:
    """The outcome of a step with loss and terms meant over the processes, each of which must call this."""
    if run.processes.world == 1:
        return outcome
    loss, *terms = values = [value.clone() for value in (outcome.loss, *outcome.terms.values())]
    run.processes.average(values)
    return replace(outcome, loss=loss, terms=dict(zip(outcome.terms, terms, strict=True)))


def write_down(
    run: Training, done: int, outcome: Outcome, speed: dict[str, float], due: frozenset[str], stopping: bool
) -> None:
    """Write the row of the log, the checkpoint and the pictures that are `due` after `done` steps.

    A run that is stopping writes row and checkpoint alone, for who stopped it may not wait; `catch_up` does the rest.
    """
    info = run.info
    if "row" in due and run.log is not None:
        row = {"step": done, "loss": outcome.loss.item(), "lr": outcome.rate, "gradient_norm": outcome.norm.item()}
        row |= {"skipped_steps": info["skipped_steps"], "damaged_clips": len(info["damaged_clips"])}
        if run.processes.device.type == "cuda":  # of this process, so far
            row["peak_gib"] = torch.cuda.max_memory_allocated(run.processes.device) / 2**30
        row |= speed | {name: term.item() for name, term in outcome.terms.items()}
        run.log.add(row | (_measure(run, done) if _measured(run, done) and not stopping else {}))
    if "checkpoint" in due:
        states = {"optimizer": run.optimisers.state(), "average": run.average.values if run.average else {}}
        save_checkpoint(run.folder, run.recipe, run.host, done, **states, info=info, keep=run.recipe.log.keep)
        run.saved = time.monotonic()
    if "picture" in due:
        _draw(run, done)


def catch_up(run: Training) -> None:
    """Measure and draw what was due after the last step of a run that goes on, and what stopped it cut off."""
    if run.log is None or run.start == 0:
        return
    if _measured(run, run.start) and not run.log.has("held_out", run.start):
        run.log.complete(run.start, _measure(run, run.start))
    if _drawn(run, run.start) and not _sample(run, run.start).is_file():
        _draw(run, run.start)


def _logged(run: Training, done: int) -> bool:
    return done % run.recipe.log.every == 0 or _measured(run, done)


def _measured(run: Training, done: int) -> bool:
    return done % run.recipe.log.held_out_every == 0 or done > run.total - LAST


def _measure(run: Training, done: int) -> dict[str, float]:
    """Measure the held-out loss, and now and then the use of the memory; the weights of the least loss are kept."""
    assert run.log is not None and run.held_out is not None  # the first process
    before = run.log.column("held_out", above=0)
    with run.averaged():
        with autocast(run.precision, run.processes.device):
            loss = run.held_out.loss(run.host)
        if run.recipe.log.keep_best and all(loss < other for other in before):
            save_run(run.folder / BEST, run.recipe, run.host, done, info=run.info | {"held_out": loss})
        seldom = done % run.recipe.log.held_out_every == 0 or done == run.total  # not after each of the last steps
        return {"held_out": loss} | (run.held_out.usage(run.host) if seldom else {})


def _drawn(run: Training, done: int) -> bool:
    return done % run.recipe.log.sample_every == 0 or done == run.total


def _sample(run: Training, done: int) -> Path:
    return run.folder / "samples" / f"{done:07d}.png"


def _draw(run: Training, done: int) -> None:
    assert run.log is not None and run.held_out is not None  # the first process
    with run.averaged(), autocast(run.precision, run.processes.device):
        grid = run.held_out.draw(_sample(run, done), run.host)
    run.log.draw(run.folder, done, grid)
