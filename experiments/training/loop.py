"""Train what a recipe describes: one process, or several under torchrun, from the same file.

A run's folder holds recipe.yaml (resolved), log.csv, losses.png, samples/, checkpoints/last.safetensors (to resume)
and, once it is done, model.safetensors and config.json: it is a pretrained folder then.
"""

import argparse
import math
import shlex
import sys
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
from memcomp.experiments.checkpoints.run_file import load_run, save_run
from memcomp.experiments.checkpoints.trained import RECIPE, save_trained
from memcomp.experiments.data.pairs import StepBatches, collate, seeded
from memcomp.experiments.data.sources import held_out_pairs, training_pairs
from memcomp.experiments.errors import UserError
from memcomp.experiments.files import atomic_write, writable_folder
from memcomp.experiments.processes import Processes
from memcomp.experiments.recipe.load import load_recipe
from memcomp.experiments.recipe.sections import LogSection, Recipe
from memcomp.experiments.training.capacity import initialise_widened, resolved
from memcomp.experiments.training.interruption import ignore_interrupts, interruption
from memcomp.experiments.training.log import Clock, HeldOut, RunLog, save_picture
from memcomp.experiments.training.loss import Objective
from memcomp.experiments.training.optimizers import DISCRIMINATOR, Optimisers, rate_factor

LAST = 20  # the held-out loss is measured after each of this many last steps


@dataclass(frozen=True)
class TrainingResult:
    """What `train` did.

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
    fresh = not folder.exists()
    try:
        return _train(recipe, folder, resume, stop_after, progress and processes.first, processes)
    except BaseException:
        if fresh and folder.is_dir() and not any(folder.iterdir()):  # nothing was trained
            folder.rmdir()
        raise
    finally:
        processes.stop()


def _train(
    recipe: Recipe, folder: Path, resume: bool, stop_after: int | None, progress: bool, processes: Processes
) -> TrainingResult:
    optim, device, last = recipe.optim, processes.device, folder / "checkpoints" / "last.safetensors"
    if resume and not last.is_file():
        raise UserError(f"{last}: nothing to resume; expected the checkpoint of an earlier run")
    for file in (last, folder / WEIGHTS):
        if file.is_file() and not resume:
            raise UserError(f"{file}: there already, of an earlier run; resume it or choose another folder")
    if optim.batch_size % processes.world:
        raise UserError(f"optim.batch_size: {optim.batch_size} pairs cannot be shared by {processes.world} processes")
    writable_folder(folder)
    if recipe.threads:
        torch.set_num_threads(recipe.threads)

    recipe = resolved(recipe)
    host = build_host(recipe, sync_batchnorm=processes.world > 1 and device.type == "cuda")
    pairs = training_pairs(recipe)  # after the host, for heads may take minutes to render
    steps_per_epoch = pairs.epoch_length / optim.batch_size
    total = optim.steps if optim.steps is not None else math.ceil((optim.epochs or 0) * steps_per_epoch)
    objective = Objective(recipe.loss, recipe.stage).to(device)
    recipe = replace(recipe, host=replace(recipe.host, model=host.model))  # files that it named have been read
    state = load_run(last) if resume else None
    if state is not None:
        _check_same(recipe, state.recipe, last)
        load_weights(host, state.model(), str(last))
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
    form = torch.channels_last if recipe.channels_last else torch.contiguous_format
    host.to(device).to(memory_format=form).train()
    torch.backends.cudnn.benchmark = True  # every step has the same sizes
    optimisers = Optimisers(host, optim)
    if state is not None:
        optimisers.load_state(state.optimizer(), str(last))
    step = 0 if state is None else state.step

    loader = DataLoader(
        pairs,
        batch_sampler=StepBatches(step, total, optim.batch_size, processes.rank, processes.world),
        num_workers=recipe.data.workers,
        collate_fn=collate,
        pin_memory=device.type == "cuda",
        worker_init_fn=ignore_interrupts,
    )
    held_out = log = None
    if processes.first:
        held_out = HeldOut(recipe, objective, held_out_pairs(recipe), device)
        # measured before anything is written: it finds what a recipe asks of a host that cannot do it
        before = [{"step": 0, "held_out": held_out.loss(host)}] if step == 0 else []
        with atomic_write(folder / RECIPE) as temporary:
            temporary.write_text(recipe.to_yaml(), encoding="utf-8")
        log = RunLog(folder / "log.csv", step)
        for row in before:
            log.add(row)
    info: dict[str, Any] = {
        "backbone": objective.backbone,
        "torch": torch.__version__,
        "skipped_steps": 0,
        "damaged_clips": [],
    }
    info |= {} if state is None else state.info
    bar = tqdm(total=total, initial=step, unit="step", disable=not progress, dynamic_ncols=True, mininterval=0.5)
    in_a_row = 0  # steps without a finite gradient

    with interruption() as interrupted, bar:
        clock = Clock()
        for batch in loader:
            source, driving = (
                batch[name].to(device, non_blocking=True).contiguous(memory_format=form)
                for name in ("source", "driving")
            )
            clock.data_is_here()
            rate = optimisers.set_rate(rate_factor(step, total, steps_per_epoch, optim))
            draw = seeded(recipe.seed, f"transform {processes.rank}", step)
            epoch = step / steps_per_epoch
            loss, terms, norm = _step(recipe, host, objective, optimisers, processes, source, driving, draw, epoch)
            step += 1
            finite = math.isfinite(norm)
            info["skipped_steps"] += not finite
            in_a_row = 0 if finite else in_a_row + 1
            if in_a_row > optim.skip_limit:
                raise UserError(
                    f"step {step}: {in_a_row} steps in a row had a loss or gradient that is not finite; try a lower "
                    "optim.lr, optim.clip=10 or a longer optim.warmup"
                )
            for message in sorted(set(batch["skipped"]).difference(info["damaged_clips"])):
                info["damaged_clips"].append(message)
                tqdm.write(f"memcomp: skipped a damaged clip: {message}", file=sys.stderr)
            images_per_second, waiting = clock.step_is_done(optim.batch_size)
            bar.set_postfix_str(
                f"loss {loss:.4g}, {images_per_second:.1f} images/s, {waiting:.0%} waiting for data", refresh=False
            )
            bar.update()

            stopping = processes.any(bool(interrupted)) or step == stop_after
            if log is not None and held_out is not None:
                measured = step % recipe.log.held_out_every == 0 or step > total - LAST
                if measured or step % recipe.log.every == 0:
                    row = {"step": step, "loss": loss, "lr": rate, "gradient_norm": norm}
                    row |= {"skipped_steps": info["skipped_steps"], "damaged_clips": len(info["damaged_clips"])}
                    row |= {"images_per_second": images_per_second, "waiting": waiting}
                    row |= {"held_out": held_out.loss(host)} if measured else {}
                    log.add(row | terms)
                if step % recipe.log.sample_every == 0 or step == total:
                    save_picture(folder / "samples" / f"{step:07d}.png", held_out.samples(host))
                    log.draw(folder / "losses.png")
                if step % recipe.log.checkpoint_every == 0 or step == total or stopping:
                    save_run(last, recipe, host, step, optimizer=optimisers.state(), info=info)
            clock.restart()
            if stopping:
                break
    if log is not None and step == total:
        clips = len(info["damaged_clips"])  # not their names: a folder that others get tells nothing of this machine
        save_trained(folder, host, recipe, step, info | {"damaged_clips": clips})
    measurements = (log.column("held_out") if log is not None else []) or [math.nan]
    tail = measurements[-LAST:]
    return TrainingResult(folder, step, step == total, measurements[0], sum(tail) / len(tail))


def _step(
    recipe: Recipe,
    host: Host,
    objective: Objective,
    optimisers: Optimisers,
    processes: Processes,
    source: Tensor,
    driving: Tensor,
    draw: torch.Generator,
    epoch: float,
) -> tuple[float, dict[str, float], float]:
    """One optimiser step; returns the loss, its terms, and the gradient norm (not finite: nothing was changed)."""
    statistics = [buffer for buffer in host.buffers() if buffer.is_floating_point()]
    before = [buffer.clone() for buffer in statistics]
    autocast = torch.autocast(source.device.type, torch.bfloat16, enabled=recipe.precision == "bf16")
    optimisers.zero_grad()
    with autocast:
        loss, terms, output = objective(host, source, driving, draw, epoch)
    loss.backward()
    processes.average(optimisers.gradients())
    norm = optimisers.step(optimisers.generator_parts())
    if not math.isfinite(norm):  # what is not finite would stay in the running statistics of batch norm for good
        for buffer, value in zip(statistics, before, strict=True):
            buffer.copy_(value)
    elif objective.adversarial and output is not None:
        optimisers.zero_grad()  # the generator's loss left gradients in the discriminator
        with autocast:
            judged = recipe.loss.discriminator_gan * host.discriminator_loss(output, driving)
        judged.backward()
        processes.average(optimisers.gradients())
        optimisers.step([DISCRIMINATOR])
        terms["discriminator"] = judged.detach()
    return loss.item(), {name: value.item() for name, value in terms.items()}, norm


def _check_same(given: Recipe, saved: Recipe, origin: Path) -> None:
    """Resuming may change how a run is carried out, but not what it computes."""

    def essence(recipe: Recipe) -> dict[str, object]:
        data = replace(recipe.data, workers=0, cache=None, cache_gb=0.0, root=None)
        plain = replace(recipe, device="", threads=None, data=data, log=LogSection()).to_dict()
        return {
            f"{section}.{key}" if key else section: item
            for section, value in plain.items()
            for key, item in (value if isinstance(value, dict) else {"": value}).items()
        }

    ours, theirs = essence(given), essence(saved)
    for key in sorted(ours.keys() | theirs.keys()):
        if ours.get(key) != theirs.get(key):
            raise UserError(f"{origin}: was trained with {key}={theirs.get(key)}, the recipe says {ours.get(key)}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `memcomp train`."""
    parser.add_argument("recipe", help="name (`memcomp recipes`) or path of a recipe")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="keys of the recipe to change")
    parser.add_argument("--output", metavar="DIR", help="folder of the run (default: runs/<recipe>)")
    parser.add_argument("--resume", action="store_true", help="go on from the run's last checkpoint")


def run(args: argparse.Namespace) -> None:
    """`memcomp train`."""
    recipe = load_recipe(args.recipe, args.overrides)
    folder = Path(args.output or Path("runs") / Path(args.recipe).with_suffix("").name)
    result = train(recipe, folder, resume=args.resume)
    if not result.finished:
        again = shlex.join(["memcomp", "train", args.recipe, *args.overrides, "--output", str(folder), "--resume"])
        print(f"stopped after step {result.step}; go on with: {again}")
        raise KeyboardInterrupt
    if not math.isnan(result.held_out_start):
        print(
            f"{folder}: {result.step} steps; loss on held-out pairs {result.held_out_start:.4g} before the first, "
            f"{result.held_out_end:.4g} over the last {min(LAST, result.step)}"
        )
