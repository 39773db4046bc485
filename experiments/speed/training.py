"""`memcomp speed training`: a training step, host and host + memory, ours against one written plainly.

The plain one is float32 and contiguous, with Adam and clipping tensor by tensor and numbers read where they are looked
at; host, memory and loss are the same. The four take turns, step by step, on the same pairs; medians count, and of
ratios the median over the rounds. What CPU time says, other work on the machine disturbs least.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from memcomp.experiments.cost import Counted
from memcomp.experiments.data.batching import on_device
from memcomp.experiments.errors import UserError
from memcomp.experiments.output.tables import versions, write_json
from memcomp.experiments.processes import Processes, resolve_device
from memcomp.experiments.recipe.load import load_recipe
from memcomp.experiments.recipe.sections import Recipe
from memcomp.experiments.speed.options import TrainingSpeedOptions
from memcomp.experiments.training.perceptual import OFFLINE
from memcomp.experiments.training.precision import products_of
from memcomp.experiments.training.setup import Training
from memcomp.experiments.training.step import draws, step
from memcomp.experiments.training.watch import Watch

WAYS = ("plain", "ours")
FEW = ["data.kind=heads", "data.identities=4", "data.frames=2", "data.workers=0", "log.held_out_pairs=1"]


@dataclass
class Turn:
    """One of the four that take turns.

    Attributes:
        tflop: 10¹² operations of its step.
        megabytes: the most that the tensors made by its step take.
        seconds, cpu: of each timed step.
    """

    what: str
    way: str
    run: Training
    take: Callable[[int], None]
    tflop: float
    megabytes: float
    seconds: list[float]
    cpu: list[float]


def time_training(options: TrainingSpeedOptions) -> None:
    """Measure, print a line for each and the ratios, and write them if asked to."""
    device = resolve_device(options.device)
    with tempfile.TemporaryDirectory(prefix="memcomp-speed-") as folder:
        turns = set_up(options, Path(folder), device)
        for number in range(1, options.rounds + 1):
            for turn in turns if number % 2 else turns[::-1]:
                _time(turn, number, device)
    rows = [_row(turn) for turn in turns]
    print("| step | | seconds | CPU seconds | TFLOP | tensors it makes, MB |\n|---|---|---:|---:|---:|---:|")
    for row in rows:
        numbers = f"{row['seconds']:.3f} | {row['cpu']:.3f} | {row['tflop']:.3f} | {row['megabytes']:.0f}"
        print(f"| {row['what']} | {row['way']} | {numbers} |")
    ratios = compared(turns)
    for name, value in ratios.items():
        print(f"{name}: {value:.3f}")
    if options.output is not None:
        about = {"recipe": options.recipe, "size": options.size, "batch": options.batch, "rounds": options.rounds}
        about |= {"overrides": list(options.overrides), "device": str(device), "threads": torch.get_num_threads()}
        write_json(options.output, {**about, "load": os.getloadavg(), "rows": rows, "ratios": ratios, **versions()})


def set_up(options: TrainingSpeedOptions, folder: Path, device: torch.device) -> list[Turn]:
    """The four, each of which has taken one step."""
    recipes = _recipes(options, str(folder / "cache"))
    return [
        _turn(what, way, recipe, folder / f"{what} {way}", device) for what, recipe in recipes.items() for way in WAYS
    ]


def compared(turns: list[Turn]) -> dict[str, float]:
    """Ratios of what the same round took: plain over ours, and with over without a memory; of operations, too."""
    found: dict[str, float] = {}
    of = {(turn.what, turn.way): turn for turn in turns}
    for what in dict.fromkeys(turn.what for turn in turns):
        plain, ours = of[what, "plain"], of[what, "ours"]
        found[f"{what}: plain / ours, time"] = _ratio(plain.seconds, ours.seconds)
        found[f"{what}: plain / ours, CPU time"] = _ratio(plain.cpu, ours.cpu)
        found[f"{what}: plain / ours, memory"] = round(plain.megabytes / ours.megabytes, 4)
    for way in WAYS:
        alone, both = of["host", way], of["host + memory", way]
        found[f"with / without memory, {way}: time"] = _ratio(both.seconds, alone.seconds)
        found[f"with / without memory, {way}: CPU time"] = _ratio(both.cpu, alone.cpu)
        found[f"with / without memory, {way}: operations"] = round(both.tflop / alone.tflop, 4)
        found[f"with / without memory, {way}: memory"] = round(both.megabytes / alone.megabytes, 4)
    return found


def plain_step(run: Training, adams: list[torch.optim.Adam], batch: dict[str, Any], number: int) -> dict[str, float]:
    """The step as one writes it down first; returns the terms of the loss. It knows no discriminator."""
    clip = run.recipe.optim.clip
    source, driving = (pictures.contiguous() for pictures in on_device(batch, run.processes.device))
    loss, terms, _ = run.objective(run.host, source, driving, draws(run, number, 0), number / run.steps_per_epoch)
    told = {name: value.item() for name, value in terms.items()}
    for adam in adams:
        adam.zero_grad()
    loss.backward()
    finite = math.isfinite(loss.item())
    for parameter in run.host.parameters():
        if parameter.grad is not None:
            norm = torch.nn.utils.clip_grad_norm_(parameter, math.inf if clip is None else clip, foreach=False)
            finite = finite and math.isfinite(norm.item())
    for adam in adams if finite else ():
        adam.step()
    return told


def _recipes(options: TrainingSpeedOptions, cache: str) -> dict[str, Recipe]:
    """The recipe without its memory, and with it.

    Raises:
        UserError: it has none, or trains a discriminator or a further stage, which the plain step cannot.
    """
    few = [f"size={options.size}", f"device={options.device}", f"optim.batch_size={options.batch}", *FEW]
    words = [*few, "init=null", f"data.cache={cache}", "optim.epochs=null", f"optim.steps={options.rounds + 1}"]
    recipe = load_recipe(options.recipe, [*words, *OFFLINE.split(), *options.overrides])
    if recipe.memory is None or recipe.stage is not None or recipe.loss.generator_gan > 0:
        raise UserError(f"{options.recipe}: expected a recipe with a memory, without discriminator or further stage")
    alone = replace(recipe, memory=None, loss=replace(recipe.loss, consistency=0.0, teacher=0.0))
    return {"host": alone, "host + memory": recipe}


def _turn(what: str, way: str, recipe: Recipe, folder: Path, device: torch.device) -> Turn:
    """Set up, and take a step that counts operations and memory; it warms up, too."""
    if way == "plain":
        recipe = replace(recipe, precision="float32", channels_last=False)
    run = Training(recipe, folder, Processes(0, 1, device), resume=False)
    batch = next(iter(run.batches))
    if way == "ours":
        take = lambda number: (step(run, batch, number), None)[1]  # noqa: E731
    else:
        adams = [
            torch.optim.Adam(
                parameters, lr=recipe.optim.lr, betas=(recipe.optim.betas[0], recipe.optim.betas[1]), foreach=False
            )
            for parameters in run.optimisers.parameters().values()
            if parameters
        ]
        take = lambda number: (plain_step(run, adams, batch, number), None)[1]  # noqa: E731
    with products_of(run.precision), Counted() as counter, Watch(device) as watch:
        take(0)
    return Turn(what, way, run, take, counter.flop / 1e12, watch.peak / 2**20, [], [])


def _time(turn: Turn, number: int, device: torch.device) -> None:
    start, before = time.perf_counter(), time.process_time()
    with products_of(turn.run.precision):
        turn.take(number)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    turn.seconds.append(time.perf_counter() - start)
    turn.cpu.append(time.process_time() - before)


def _ratio(above: list[float], below: list[float]) -> float:
    return round(median(a / b for a, b in zip(above, below, strict=True)), 4)


def _row(turn: Turn) -> dict[str, Any]:
    numbers = {"seconds": median(turn.seconds), "cpu": median(turn.cpu)}
    return {"what": turn.what, "way": turn.way, "tflop": turn.tflop, "megabytes": turn.megabytes, **numbers}
