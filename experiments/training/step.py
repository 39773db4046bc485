"""One optimiser step: parts of the batch, gradients over the processes, clipping; what is not finite is undone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from memcomp.adapters import HostOutput
from memcomp.adapters.shared.draws import ShareGenerator
from memcomp.experiments.data.batching import on_device
from memcomp.experiments.data.pairs import seeded
from memcomp.experiments.training.optimizers import DISCRIMINATOR, rate_factor
from memcomp.experiments.training.precision import autocast
from memcomp.experiments.training.resume import RULES
from memcomp.experiments.training.setup import Training


@dataclass(frozen=True)
class Outcome:
    """The numbers of one step, still on the device but for the rate: to read them is to wait for it."""

    loss: Tensor
    terms: dict[str, Tensor]
    norm: Tensor  # of all gradients before clipping; not finite: the step was undone
    rate: float


def step(run: Training, batch: dict[str, Any], number: int) -> Outcome:
    """Take one optimiser step, `number` from 0; a gradient that is not finite undoes it.

    All of it is decided on the device, and nothing waits for that where the optimisers are fused: the host may well be
    busy with the next step when this one is done.
    """
    # what this step works with: its pictures, draws, learning rate, and the batch statistics to go back to
    recipe, host, optimisers, device = run.recipe, run.host, run.optimisers, run.processes.device
    source, driving = (one.contiguous(memory_format=run.memory_format) for one in on_device(batch, device))
    epoch = number / run.steps_per_epoch
    rate = optimisers.set_rate(rate_factor(number, run.total, run.steps_per_epoch, recipe.optim))
    statistics = [buffer for buffer in host.buffers() if buffer.is_floating_point()]
    before = [buffer.clone() for buffer in statistics]

    # the host with its memory, part by part of the batch: forward, backward, in the last of which gradients
    # are averaged over the processes; what is kept are means over the parts
    optimisers.zero_grad()
    count, size = recipe.optim.accumulate, len(source) // recipe.optim.accumulate
    losses: list[Tensor] = []
    terms: dict[str, Tensor] = {}
    outputs: list[tuple[HostOutput, Tensor]] = []
    for first in range(0, len(source), size):
        part = source[first : first + size], driving[first : first + size]
        with autocast(run.precision, device):
            loss, found, output = run.objective(host, *part, draws(run, number, first), epoch)
        last = first + size == len(source)
        with run.exchange.of(optimisers.generator_parts() if last else ()):
            (loss / count).backward()
        losses.append(loss.detach() / count)
        terms = {name: terms.get(name, 0) + value / count for name, value in found.items()}
        if run.objective.adversarial and output is not None:
            outputs.append((output, part[1]))

    # clipped; a step unless not finite
    norm = optimisers.step(optimisers.generator_parts())
    finite = norm.isfinite()

    # the discriminator has its turn, on the same predictions
    if outputs:
        terms["discriminator"] = discriminator_step(run, outputs, finite)

    # what is not finite is undone: it would stay in the running statistics of batch norm for good
    with torch.no_grad():
        for buffer, value in zip(statistics, before, strict=True):
            buffer.copy_(torch.where(finite, buffer, value))
    if run.average is not None:
        run.average.update(host, number, finite)
    return Outcome(torch.stack(losses).sum(), terms, norm, rate)


def discriminator_step(run: Training, outputs: Sequence[tuple[HostOutput, Tensor]], finite: Tensor) -> Tensor:
    """Take the discriminator's optimiser step on what the host made of each part's driving frames; its mean loss.

    Nothing is changed unless `finite`, a truth value on the device.
    """
    optimisers, total = run.optimisers, torch.zeros((), device=run.processes.device)
    optimisers.zero_grad()  # the generator's loss left gradients in it
    for number, (output, driving) in enumerate(outputs, 1):
        with autocast(run.precision, run.processes.device):
            judged = run.recipe.loss.discriminator_gan * run.host.discriminator_loss(output, driving)
        with run.exchange.of([DISCRIMINATOR] if number == len(outputs) else ()):
            (judged / len(outputs)).backward()
        total = total + judged.detach() / len(outputs)
    optimisers.step([DISCRIMINATOR], unless=~finite)
    return total


def draws(run: Training, number: int, first: int) -> torch.Generator:
    """The generator of the step `number` for this process's pairs from its `first` on: each pair has its own draws."""
    rank, batch = run.processes.rank, run.recipe.optim.batch_size
    if run.rules < RULES:
        return seeded(run.recipe.seed, f"transform {rank}", number)
    share = batch // run.processes.world
    return ShareGenerator.of(seeded(run.recipe.seed, "transform 0", number), batch, rank * share + first)
