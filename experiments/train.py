"""Train what a recipe describes: one process, or several under torchrun, from the same file.

A run's folder holds recipe.yaml (resolved), log.csv, losses.png, samples/, checkpoints/last.safetensors (to resume)
and, once it is done, model.safetensors (weights alone).
"""

import argparse
import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from memcomp.adapters import Host
from memcomp.experiments.checkpoint import build_host, initialise, load_run, load_weights, save_run
from memcomp.experiments.data.pairs import StepBatches, collate, seeded
from memcomp.experiments.data.sources import held_out_pairs, training_pairs
from memcomp.experiments.errors import UserError
from memcomp.experiments.files import atomic_write, writable_folder
from memcomp.experiments.losses import Objective
from memcomp.experiments.optim import DISCRIMINATOR, Optimisers, Processes, rate_factor
from memcomp.experiments.recipe import Recipe, load_recipe
from memcomp.experiments.runlog import RunLog, sample_grid, save_picture

LAST = 20  # the held-out loss is measured after each of this many last steps


@dataclass(frozen=True)
class TrainingResult:
    """What `train` did.

    Attributes:
        folder: of the run.
        step: optimiser steps done in all.
        finished: False if it was interrupted (a checkpoint is there).
        held_out_start, held_out_end: held-out loss before the first step, and its mean over the last 20 steps.
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
        UserError: a run is there already (or, resuming, none is), input that cannot be used, a loss that stays not finite.
    """
    processes = Processes.start(recipe.device)
    try:
        return _train(recipe, Path(folder), resume, stop_after, progress and processes.first, processes)
    finally:
        processes.stop()


def _train(
    recipe: Recipe, folder: Path, resume: bool, stop_after: int | None, progress: bool, processes: Processes
) -> TrainingResult:
    optim, log_section, device = recipe.optim, recipe.log, processes.device
    last = folder / "checkpoints" / "last.safetensors"
    _check_folder(folder, last, resume)
    if optim.batch_size % processes.world:
        raise UserError(f"optim.batch_size: {optim.batch_size} pairs cannot be shared by {processes.world} processes")
    if recipe.threads:
        torch.set_num_threads(recipe.threads)

    pairs, held_out = training_pairs(recipe), held_out_pairs(recipe)
    steps_per_epoch = pairs.epoch_length / optim.batch_size
    total = optim.steps if optim.steps is not None else math.ceil((optim.epochs or 0) * steps_per_epoch)
    host = build_host(recipe)
    objective = Objective(recipe.loss).to(device)
    start = 0
    state = None
    if resume:
        state = load_run(last)
        _check_same(recipe, state.recipe, last)
        load_weights(host, state.model(), str(last))
        start = state.step
    elif recipe.init is not None:
        initialise(host, recipe.init)
    if device.type == "cuda" and processes.world > 1:
        host = torch.nn.SyncBatchNorm.convert_sync_batchnorm(host)
    host.to(device, memory_format=torch.channels_last if recipe.channels_last else torch.preserve_format).train()
    optimisers = Optimisers(host, optim)
    if state is not None:
        optimiser_state = {
            k.removeprefix("optimizer."): v for k, v in state.tensors.items() if k.startswith("optimizer.")
        }
        optimisers.load_state(optimiser_state, str(last))

    loader = DataLoader(
        pairs,
        batch_sampler=StepBatches(start, total, optim.batch_size, processes.rank, processes.world),
        num_workers=recipe.data.workers,
        collate_fn=collate,
        pin_memory=device.type == "cuda",
        worker_init_fn=_ignore_interrupts,
    )
    fixed = _Fixed(recipe, objective, held_out, device)
    if processes.first:
        with atomic_write(folder / "recipe.yaml") as temporary:
            temporary.write_text(recipe.to_yaml())
    log = RunLog(folder / "log.csv", start) if processes.first else None
    if log is not None and start == 0:
        log.add({"step": 0, "held_out": fixed.loss(host)})
    info = {"backbone": objective.backbone, "torch": torch.__version__}

    def save(step: int) -> None:
        if processes.first:
            save_run(last, recipe, host, step, optimizer=optimisers.state(), info=info)

    damaged: set[str] = set()
    skipped_steps = skipped_in_a_row = 0
    step = start
    batches = iter(loader)
    with (
        _interruption() as interrupted,
        tqdm(total=total, initial=start, unit="step", disable=not progress, dynamic_ncols=True, mininterval=0.5) as bar,
    ):
        clock = _Clock()
        while step < total:
            batch = next(batches)
            source, driving = (batch[key].to(device, non_blocking=True) for key in ("source", "driving"))
            if recipe.channels_last:
                source, driving = (x.contiguous(memory_format=torch.channels_last) for x in (source, driving))
            clock.data_is_here()
            rate = optimisers.set_rate(rate_factor(step, total, steps_per_epoch, optim))
            draw = seeded(recipe.seed, f"transform {processes.rank}", step)
            loss, terms, norm = _step(recipe, host, objective, optimisers, processes, source, driving, draw)
            finite = math.isfinite(norm)
            step += 1
            skipped_steps += not finite
            skipped_in_a_row = 0 if finite else skipped_in_a_row + 1
            if skipped_in_a_row > optim.skip_limit:
                raise UserError(
                    f"step {step}: {skipped_in_a_row} steps in a row had a loss or gradient that is not finite; "
                    f"try a lower optim.lr, optim.clip=10 or a longer optim.warmup (the last good weights are in {last})"
                )
            for message in batch["skipped"]:
                if message not in damaged and processes.first:
                    damaged.add(message)
                    tqdm.write(f"memcomp: skipped a damaged clip: {message}", file=sys.stderr)
            images_per_second, waiting = clock.step_is_done(optim.batch_size)
            bar.set_postfix(
                {"loss": f"{loss:.4g}", "images/s": f"{images_per_second:.1f}", "waiting": f"{waiting:.0%}"},
                refresh=False,
            )
            bar.update()

            stopping = processes.any(bool(interrupted)) or step == stop_after
            measured = step % log_section.held_out_every == 0 or step > total - LAST
            if log is not None and (step % log_section.every == 0 or measured or step == total):
                row = {"step": step, "loss": loss, "lr": rate, "gradient_norm": norm, "skipped_steps": skipped_steps}
                row |= {
                    "damaged_clips": len(damaged),
                    "images_per_second": images_per_second,
                    "waiting": waiting,
                    **terms,
                }
                if measured:
                    row["held_out"] = fixed.loss(host)
                log.add(row)
            if processes.first and (step % log_section.sample_every == 0 or step == total):
                save_picture(folder / "samples" / f"{step:07d}.png", fixed.samples(host))
                _draw_losses(folder)
            if step % log_section.checkpoint_every == 0 or step == total or stopping:
                save(step)
            clock.restart()
            if stopping:
                break
    finished = step >= total
    if finished and processes.first:
        save_run(folder / "model.safetensors", recipe, host, step, info=info)
    held = log.column("held_out") if log is not None else []
    tail = held[-LAST:]
    return TrainingResult(
        folder, step, finished, held[0] if held else math.nan, sum(tail) / len(tail) if tail else math.nan
    )


def _step(
    recipe: Recipe,
    host: Host,
    objective: Objective,
    optimisers: Optimisers,
    processes: Processes,
    source: Tensor,
    driving: Tensor,
    draw: torch.Generator,
) -> tuple[float, dict[str, float], float]:
    """One optimiser step; returns the loss, its terms, and the gradient norm (not finite: nothing was changed)."""
    parts = optimisers.generator_parts()
    statistics = [buffer for buffer in host.buffers() if buffer.is_floating_point()]
    before = [buffer.clone() for buffer in statistics]  # a loss that is not finite would poison batch norm for good
    optimisers.zero_grad()
    with torch.autocast(source.device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
        loss, terms, output = objective(host, source, driving, draw)
    loss.backward()
    processes.average(optimisers.gradients())
    norm = optimisers.step(parts) if torch.isfinite(loss) or processes.world > 1 else math.nan
    if math.isfinite(norm) and objective.adversarial:
        optimisers.zero_grad([DISCRIMINATOR])  # the generator's loss left gradients there
        with torch.autocast(source.device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
            judged = recipe.loss.discriminator_gan * host.discriminator_loss(output, driving)
        judged.backward()
        processes.average(optimisers.gradients())
        optimisers.step([DISCRIMINATOR])
        terms["discriminator"] = judged.detach()
    if not math.isfinite(norm):
        for buffer, value in zip(statistics, before, strict=True):
            buffer.copy_(value)
    return loss.item(), {name: value.item() for name, value in terms.items()}, norm


class _Fixed:
    """The fixed held-out pairs: their loss in eval mode, and pictures of them."""

    def __init__(
        self, recipe: Recipe, objective: Objective, pairs: torch.utils.data.Dataset, device: torch.device
    ) -> None:
        self.recipe, self.objective = recipe, objective
        size = min(recipe.optim.batch_size, recipe.log.held_out_pairs)
        items = [pairs[i] for i in range(recipe.log.held_out_pairs)]
        for item in items:
            if item["skipped"]:
                raise UserError(item["skipped"][0])
        self.batches = [
            tuple(collate(items[i : i + size])[key].to(device) for key in ("source", "driving"))
            for i in range(0, len(items), size)
        ]

    def loss(self, host: Host) -> float:
        """Mean loss over the pairs."""
        with _evaluating(host), torch.no_grad():
            losses = [
                (self.objective(host, source, driving, seeded(0, "held out", i))[0].item(), len(source))
                for i, (source, driving) in enumerate(self.batches)
            ]
        return sum(loss * count for loss, count in losses) / sum(count for _, count in losses)

    def samples(self, host: Host, rows: int = 6) -> Tensor:
        """source | driving | warped | prediction of the first pairs."""
        source, driving = (x[:rows] for x in self.batches[0])
        with _evaluating(host), torch.no_grad():
            return sample_grid(source, driving, host(source, driving))


@contextmanager
def _evaluating(host: Host) -> Iterator[None]:
    host.eval()
    try:
        yield
    finally:
        host.train()


class _Clock:
    """Images per second and the share of time spent waiting for data, as running means."""

    def __init__(self) -> None:
        self.begin, self.here = time.perf_counter(), 0.0
        self.waited = self.spent = 0.0

    def data_is_here(self) -> None:
        self.here = time.perf_counter()

    def step_is_done(self, images: int) -> tuple[float, float]:
        now = time.perf_counter()
        keep = 0.95 if self.spent else 0.0
        self.waited = keep * self.waited + (1 - keep) * (self.here - self.begin)
        self.spent = keep * self.spent + (1 - keep) * (now - self.begin)
        return images / self.spent, self.waited / self.spent

    def restart(self) -> None:
        """Do not count what came after the step: pictures, checkpoints, held-out loss."""
        self.begin = time.perf_counter()


@contextmanager
def _interruption() -> Iterator[list[int]]:
    """A list that SIGINT or SIGTERM makes non-empty; a second signal interrupts at once."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    previous = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, note)
    except ValueError:  # not the main thread: whoever runs it handles signals
        pass
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _ignore_interrupts(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the training process decides what Ctrl-C means


def _check_folder(folder: Path, last: Path, resume: bool) -> None:
    if resume and not last.is_file():
        raise UserError(f"{last}: nothing to resume; expected the checkpoint of an earlier run")
    if not resume and last.is_file():
        raise UserError(f"{folder}: holds a run already; expected another --output, or --resume to go on")
    for name in (".", "checkpoints", "samples"):
        writable_folder(folder / name)


def _check_same(given: Recipe, saved: Recipe, origin: Path) -> None:
    """Resuming may change how a run is carried out, but not what it computes."""

    def essence(recipe: Recipe) -> dict[str, object]:
        data = replace(recipe.data, workers=0, cache=None, cache_gb=0, root=None)
        plain = replace(recipe, device="", threads=None, data=data, log=type(recipe.log)()).to_dict()
        return {f"{section}.{key}": value for section, value in plain.items() if isinstance(value, dict)
                for key, value in value.items()} | {k: v for k, v in plain.items() if not isinstance(v, dict)}  # fmt: skip

    ours, theirs = essence(given), essence(saved)
    for key in sorted(ours.keys() | theirs.keys()):
        if ours.get(key) != theirs.get(key):
            raise UserError(f"{origin}: was trained with {key}={theirs.get(key)}, the recipe says {ours.get(key)}")


def _draw_losses(folder: Path) -> None:
    from memcomp.experiments.pictures import loss_curves

    loss_curves(folder / "losses.png", {folder.name: folder / "log.csv"}, ["loss", "held_out"])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `memcomp train`."""
    parser.add_argument("recipe", help="name (`memcomp recipes`) or path of a recipe")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="keys of the recipe to change")
    parser.add_argument("--output", metavar="DIR", help="folder of the run (default: runs/<recipe>)")
    parser.add_argument("--resume", action="store_true", help="go on from the run's last checkpoint")


def run(args: argparse.Namespace) -> None:
    """`memcomp train`."""
    recipe = load_recipe(args.recipe, args.overrides)
    folder = Path(args.output or Path("runs") / Path(args.recipe).with_suffix("").name)
    result = train(recipe, folder, resume=args.resume)
    if not result.finished:
        print(f"stopped after step {result.step}; go on with: memcomp train {args.recipe} --resume --output {folder}")
        raise KeyboardInterrupt
    print(f"{folder}: {result.step} steps; held-out loss {result.held_out_start:.4g} before the first step, ", end="")
    print(f"{result.held_out_end:.4g} over the last {min(LAST, result.step)}")
