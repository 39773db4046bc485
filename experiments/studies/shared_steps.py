"""Do several processes take the step of one? `python -m memcomp.experiments.studies.shared_steps [--output DIR]`.

One step of every host with a memory, and of the second stages, is taken by one process and by 2 and 4 (gloo, CPU),
each with its share of the same batch. What is compared are the gradients that the optimisers are given, and the loss
that is logged. The networks are narrow, the pictures procedural heads; batch norms are in eval mode, for over gloo
their statistics are each process's own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from memcomp.experiments.data.batching import on_device
from memcomp.experiments.files import atomic_write
from memcomp.experiments.output.tables import markdown, versions_line
from memcomp.experiments.processes import Processes
from memcomp.experiments.recipe.load import load_recipe
from memcomp.experiments.training.loop import everywhere
from memcomp.experiments.training.setup import Training
from memcomp.experiments.training.step import step

LIMITS = {"float64": 1e-10, "float32": 1e-5}  # of a difference, in the units of the section's gradients
WORLDS = (1, 2, 4)
PREFIXES = {  # of the hourglasses of each host
    "fomm": ("kp_detector_params", "generator_params.dense_motion_params"),
    "tpsm": ("dense_motion_params",),
    "mraa": ("region_predictor_params", "bg_predictor_params", "generator_params.pixelwise_flow_predictor_params"),
}
HOURGLASS = ("block_expansion=4", "max_features=16", "num_blocks=2")
DISCRIMINATOR = "{scales: [1], block_expansion: 4, max_features: 8, num_blocks: 2, sn: true, use_kp: true}"
FIRST_ORDER = (
    *(f"host.model.{prefix}.{value}" for prefix in PREFIXES["fomm"] for value in HOURGLASS),
    "host.model.common_params.num_kp=3",
    "host.model.generator_params.block_expansion=8",
    "host.model.generator_params.max_features=32",
    "host.model.generator_params.num_bottleneck_blocks=1",
)
NARROW: dict[str, tuple[str, ...]] = {
    "fomm": FIRST_ORDER,
    "dagan": (*FIRST_ORDER, "host.model.depth=truth", "data.depth=true"),
    "mcnet": FIRST_ORDER,
    "tpsm": (
        *(f"host.model.{prefix}.{value}" for prefix in PREFIXES["tpsm"] for value in HOURGLASS),
        "host.model.common_params.num_tps=2",
        "host.model.generator_params.block_expansion=4",
        "host.model.generator_params.max_features=32",
        "host.model.train_params={bg_start: 0, dropout_epoch: 9}",
    ),
    "mraa": (
        *(f"host.model.{prefix}.{value}" for prefix in PREFIXES["mraa"] for value in HOURGLASS),
        "host.model.num_regions=3",
        "host.model.generator_params.block_expansion=8",
        "host.model.generator_params.max_features=16",
        "host.model.generator_params.num_bottleneck_blocks=1",
    ),
    "facevid2vid": (
        *(f"host.model.{prefix}.{value}" for prefix in PREFIXES["fomm"] for value in HOURGLASS),
        "host.model.common_params.num_kp=4",
        "host.model.common_params.feature_channel=4",
        "host.model.kp_detector_params.reshape_channel=64",
        "host.model.kp_detector_params.reshape_depth=4",
        "host.model.he_estimator_params={block_expansion: 4, widths: [8, 8, 12, 16]}",
        *(f"host.model.generator_params.{key}=4" for key in ("block_expansion", "reshape_channel", "reshape_depth")),
        "host.model.generator_params.max_features=16",
        "host.model.generator_params.num_resblocks=1",
        "host.model.generator_params.dense_motion_params.reshape_depth=4",
        "data.pose=true",
        "loss.pose_teacher=null",
    ),
}
RUN: tuple[str, ...] = (
    "device=cpu",
    "threads=1",
    "size=64",
    "init=null",
    "data={kind: heads, identities: 4, frames: 4, rate: 3}",
)
RUN += ("optim.batch_size=4", "optim.steps=100", "optim.epochs=null", "log.held_out_pairs=1")
MEMORY = ("memory.memory_channels=8", "memory.memory_size=[4, 4]", "memory.identity_hidden=8")
ADVERSARIAL = (f"host.model.discriminator_params={DISCRIMINATOR}", "loss.generator_gan=1", "loss.feature_matching=1")


@dataclass(frozen=True)
class Case:
    """A step: of a recipe, narrowed, in float32 or float64."""

    recipe: str
    dtype: str
    more: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """A file's name."""
        return f"{self.recipe}{'_adversarial' if self.more else ''}_{self.dtype}"

    def overrides(self, cache: Path) -> list[str]:
        """What is changed in the recipe."""
        recipe = load_recipe(self.recipe)
        found = [*RUN, f"data.cache={cache}", *NARROW[recipe.host.name], *self.more]
        found += MEMORY if recipe.memory is not None else ()
        if recipe.host.model.get("discriminator_params"):
            found += [f"host.model.discriminator_params.{value}" for value in HOURGLASS]
        return [*found, *(() if recipe.stage else ("loss.perceptual=null", "loss.pyramid_l1=10"))]


def cases() -> list[Case]:
    """Every host with a memory, an adversarial step (as DaGAN's), and the second stages, in both precisions."""
    names = (*(f"{host}_mcnet" for host in ("fomm", "tpsm", "dagan", "mraa", "facevid2vid")), "mcnet")
    names += ("tpsm_avd", "mraa_avd")
    return [
        Case(name, dtype, more)
        for dtype in LIMITS
        for name, more in (*((name, ()) for name in names), ("fomm_mcnet", ADVERSARIAL))
    ]


def compare(scratch: Path, chosen: Sequence[Case]) -> dict[str, dict[int, float]]:
    """Take each step with each number of processes; case → number → largest difference to the step of one.

    Each difference is in the units of the norm of the gradients of its section, or of its loss term. That of one
    process in float32 is the one to its own step in float64: how much rounding alone makes of it.
    """
    for world in WORLDS:
        _run(scratch, chosen, world)
    found: dict[str, dict[int, float]] = {}
    for case in chosen:
        alone, *shared = (_found(scratch, case, world) for world in WORLDS)
        exact = replace(case, dtype="float64")
        found[case.name] = {1: largest_difference(_found(scratch, exact, 1), alone) if exact in chosen else 0.0}
        found[case.name] |= {
            world: largest_difference(alone, one) for world, one in zip(WORLDS[1:], shared, strict=True)
        }
    return found


def too_different(case: Case, found: Mapping[int, float]) -> bool:
    """Whether the step of several processes differs by more than the limit and by more than rounding explains."""
    return max(found[world] for world in WORLDS[1:]) > max(LIMITS[case.dtype], found[1])


def largest_difference(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    """How much two steps differ; infinity if one has a gradient that the other lacks."""
    if ours.keys() != theirs.keys():
        return float("inf")
    strength: dict[str, Tensor] = {}
    for name, value in ours.items():
        square = value.double().square().sum()
        strength[_section(name)] = strength.get(_section(name), torch.zeros((), dtype=torch.float64)) + square
    away = [
        ((theirs[name].double() - value.double()).norm() / strength[_section(name)].sqrt()).item()
        for name, value in ours.items()
        if strength[_section(name)] > 0
    ]
    return max(away)


def _section(name: str) -> str:
    return name if name.startswith("loss ") else ".".join(name.split(".")[:2])


def _found(scratch: Path, case: Case, world: int) -> dict[str, Tensor]:
    return load_file(scratch / f"{case.name}_{world}.safetensors")


def _run(scratch: Path, chosen: Sequence[Case], world: int) -> None:
    """Let `world` processes take the steps of all cases one after the other."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    os.environ["OMP_NUM_THREADS"] = "1"  # before the server of processes starts, which imports torch once
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["memcomp.experiments.training.loop"])
    shared = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": str(world)}
    processes = [context.Process(target=_work, args=(scratch, chosen, shared, rank)) for rank in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert not any(process.exitcode for process in processes), f"{world} processes: one of them failed"


def _work(scratch: Path, chosen: Sequence[Case], shared: Mapping[str, str], rank: int) -> None:
    os.environ.update({**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})
    torch.set_num_threads(1)
    processes = Processes.start("cpu")
    for case in chosen:
        recipe = load_recipe(case.recipe, case.overrides(scratch / "cache"))
        run = Training(recipe, scratch / f"{case.name}_{processes.world}", processes, False)

        found = gradients(run, getattr(torch, case.dtype))
        if processes.first:
            save_file(found, scratch / f"{case.name}_{processes.world}.safetensors")
    processes.stop()


def gradients(run: Training, dtype: torch.dtype) -> dict[str, Tensor]:
    """Take a step, its batch norms in eval mode; the gradients by stage and parameter, and what is logged."""
    for module in run.host.modules():
        if isinstance(module, _BatchNorm):
            module.train(False)
    run.host.to(dtype)
    run.objective.to(dtype)
    names = {id(parameter): name for name, parameter in run.host.named_parameters()}
    found: dict[str, Tensor] = {}
    plain = run.exchange.of

    @contextmanager
    def noting(parts: Sequence[str]) -> Iterator[None]:
        with plain(parts):
            yield
        for parameter in (p for part in parts for p in run.exchange.parts[part]):
            if parameter.grad is not None:
                gradient = parameter.grad.clone(memory_format=torch.contiguous_format)
                found[f"{parts[0]}.{names[id(parameter)]}"] = gradient

    run.exchange.of = noting  # type: ignore[method-assign]
    batch = next(iter(run.batches))
    source, driving = on_device(batch, run.processes.device)
    outcome = everywhere(run, step(run, batch | {"source": source.to(dtype), "driving": driving.to(dtype)}, 20))
    return found | {f"loss {name}": value for name, value in ({"": outcome.loss} | outcome.terms).items()}


def page(differences: Mapping[str, Mapping[int, float]]) -> str:
    """The kept page."""
    rows = [
        [name, *(f"{found[world]:.1e}" if found[world] else "" for world in (*WORLDS[1:], 1))]
        for name, found in differences.items()
    ]
    return (
        "# A step of several processes\n\n"
        "Made by `python -m memcomp.experiments.studies.shared_steps`: the largest difference of a gradient, or of a "
        "logged loss term, to the step that one process takes with the joint batch, relative to the gradients of the "
        "section, or to the term. Wanted: "
        + ", ".join(f"{limit:g} in {dtype}" for dtype, limit in LIMITS.items())
        + ", or what rounding makes of the step of one process: its difference to float64, in the last column.\n\n"
        + f"{markdown(['step', *(f'{world} processes' for world in WORLDS[1:]), 'rounding'], rows)}\n\n"
        + f"{versions_line()}\n"
    )


def main() -> int:
    """Take all steps; returns 1 if a difference is larger than it may be."""
    parser = argparse.ArgumentParser(description="Compare the step of several processes with that of one.")
    parser.add_argument("--output", type=Path, default=Path("runs/shared_steps"), help="folder of shared_steps.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        differences = compare(Path(temporary), cases())
    with atomic_write(options.output / "shared_steps.md") as file:
        file.write_text(page(differences), encoding="utf-8")
    print(page(differences))
    return int(any(too_different(case, differences[case.name]) for case in cases()))


if __name__ == "__main__":
    sys.exit(main())
