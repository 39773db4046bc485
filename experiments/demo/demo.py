"""Show what a memory is good for, then give a trained host one, train it on with and without, and measure both.

0. hosts of the study, measured anew (`memcomp.experiments.demo.laboratory`): those that are told the exact motion, and
   those that find it;
1. a small host that already animates procedural heads (shipped, or trained here with --from-scratch: first to move
   heads, then to draw their details);
2. the memory is attached with the identity start, so that at step 0 both models are the same host;
3. host + memory and, as control, the host alone are trained for the same steps from the same seed, side by side;
4. both are measured on people that neither has seen; the table shows what came out, whichever row wins.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memcomp.adapters import Host
from memcomp.experiments.checkpoints.shipped import shipped_host
from memcomp.experiments.checkpoints.trained import load_host
from memcomp.experiments.data.sources import held_out_pairs, training_pairs
from memcomp.experiments.demo.figures import write_pictures
from memcomp.experiments.demo.laboratory import LABORATORY, WHOLE, measured, unseen
from memcomp.experiments.errors import UserError
from memcomp.experiments.evaluation.options import COPY, CROSS, SAME, PairOptions
from memcomp.experiments.evaluation.pairs import evaluation_pairs, has_truth, heads_size
from memcomp.experiments.evaluation.panel import Panel
from memcomp.experiments.evaluation.scores import Model, Results, measure
from memcomp.experiments.evaluation.tables import (
    Differences,
    difference_table,
    differences,
    differences_json,
    results_json,
    score_table,
    write_pairs,
)
from memcomp.experiments.files import atomic_write, writable_folder
from memcomp.experiments.metrics.registry import DEFAULT
from memcomp.experiments.output.tables import versions, versions_line, write_json
from memcomp.experiments.recipe.load import load_recipe
from memcomp.experiments.recipe.sections import Recipe
from memcomp.experiments.training.side_by_side import Job, train_side_by_side

MOTION_RECIPE, HOST_RECIPE, MEMORY_RECIPE = "demo/fomm", "demo/fomm_detail", "demo/fomm_mcnet"
PARTS = (LABORATORY, WHOLE)  # measured anew
METRICS = (*DEFAULT, "akd", "prmse")


@dataclass(frozen=True)
class DemoOptions:
    """What `memcomp demo` is asked for."""

    output: Path
    steps: int
    """Steps of training with and without the memory."""
    overrides: tuple[str, ...] = ()
    """`key=value` words that change all the demo's recipes."""
    from_scratch: bool = False
    """Train the host as well."""
    host_steps: int | None = None
    """Steps of each of its two trainings; None = their recipes'."""
    pairs: int = 100
    """Test pairs of each kind."""
    seed: int = 1
    """Seed of the training."""


def demo(options: DemoOptions) -> None:
    """Train, measure, print the tables, and write them with videos and pictures to the output folder.

    Raises:
        UserError: the shipped host is missing, or the folder holds a demo with other settings.
    """
    clock = Stopwatch()
    recipe = load_recipe(HOST_RECIPE, [*options.overrides, f"seed={options.seed}"])
    if not options.from_scratch:
        shipped_host()  # if it is missing, say so before anything takes time
    folder = writable_folder(options.output)
    remember_settings(folder / "demo.json", options)
    before, content = dict[str, str](), dict[str, Any]()
    if not options.from_scratch:
        with clock.stage("people that nobody has seen"):
            pairs = unseen(options.pairs)
        for shown in PARTS:
            with clock.stage(shown.title):
                before[shown.name], content[shown.name] = measured(shown, pairs, folder)
    left_out = "left out: --from-scratch shows nothing that was trained before"
    given = "\n\n".join(f"{part.title}:\n\n{before.get(part.name, left_out)}" for part in PARTS)
    print(f"\n{given}\n")
    try:
        with clock.stage("the heads to train on"):
            render_heads(options.overrides)
        with clock.stage("the host"):
            init, origin = find_host(options, folder)
        print(f"host: {origin}")
        jobs = training_jobs(folder, init, options)
        with clock.stage(f"training, {options.steps} steps with and without memory"):
            train_side_by_side(jobs, options.steps)
    except KeyboardInterrupt:
        print(f"\ninterrupted; the same command goes on from the last checkpoints in {folder}")
        raise

    start, alone, memory = (load_host(path)[0] for path in (init, jobs[0].output, jobs[1].output))
    names = [f"host alone, +{options.steps} steps", f"host + memory, +{options.steps} steps"]
    with clock.stage("evaluation"):
        hosts = dict(zip(["the host before", *names], (start, alone, memory), strict=True))
        panel = Panel(METRICS, heads=heads_size(recipe))
        results = measure_hosts(hosts, recipe, panel, options.pairs)
    deltas = differences(results, names[1], names[0])
    with clock.stage("pictures"):
        write_pairs(folder / "pairs.csv", results)
        write_pictures(folder, recipe, {"host": alone, "host + memory": memory}, jobs, deltas)
    text = [f"A memory of your own, for a host that comes with the package, {options.steps} steps now:"]
    text += [score_table(results, "standard"), score_table(results, "paper")]
    text += [difference_table(deltas, "host + memory minus host alone"), *panel.about, versions_line()]
    write_summary(folder, options, origin, results, deltas, clock, [given, *text], content)
    print("\n" + "\n\n".join([*text, str(clock), f"in {folder}: " + ", ".join(OUTPUTS)]))


def measure_hosts(hosts: dict[str, Host], recipe: Recipe, panel: Panel, count: int) -> Results:
    """Scores of the hosts, and of copying the source, on pairs of people that training does not see."""
    models = {COPY: Model()} | {name: Model(host, recipe.data.channels) for name, host in hosts.items()}
    pairs = evaluation_pairs(recipe, [SAME, CROSS], PairOptions(count))
    return measure(models, pairs, panel, lambda kind: has_truth(recipe, kind), batch=16)


OUTPUTS = (
    "report.md (the tables above)",
    "laboratory.png, laboratory_pairs.csv (the motion given)",
    "whole.png, whole_pairs.csv (the motion found)",
    "metrics.json, pairs.csv (raw values)",
    "same_identity.mp4, cross_identity.mp4 (source | driving | host | host + memory)",
    "strips.png",
    "losses.png",
    "memory.png (M_o)",
    "differences.png",
    "host/, host_memory/ (the two runs)",
)


def remember_settings(path: Path, options: DemoOptions) -> None:
    """Write down what is trained here, or check that it is what an earlier, perhaps interrupted, demo trained here.

    Raises:
        UserError: the folder holds a demo with other settings.
    """
    settings = {key: getattr(options, key) for key in ("steps", "seed", "from_scratch", "host_steps")}
    settings["overrides"] = list(options.overrides)
    if path.is_file():
        earlier = json.loads(path.read_text("utf-8"))["settings"]
        for key, value in settings.items():
            if earlier.get(key) != value:
                raise UserError(
                    f"{path.parent}: holds a demo with {key}={earlier.get(key)}, not {value}; "
                    "expected the same settings, another --output, or that folder deleted"
                )
    write_json(path, {"settings": settings})


def render_heads(overrides: Sequence[str]) -> None:
    """Draw the training's people before the two trainings start, which would otherwise both draw them."""
    recipe = load_recipe(HOST_RECIPE, [*overrides, f"data.workers={os.cpu_count() or 1}"])
    training_pairs(recipe)
    held_out_pairs(recipe)


def find_host(options: DemoOptions, folder: Path) -> tuple[Path, str]:
    """The checkpoint to start from, and what to call it: the shipped host, or one trained here."""
    if not options.from_scratch:
        path, about = shipped_host()
        return path, f"shipped host ({about['command']})"
    init, total = "null", 0
    for name in (MOTION_RECIPE, HOST_RECIPE):
        steps = options.host_steps or load_recipe(name, options.overrides).optim.steps or 1
        overrides = (*options.overrides, f"init={init}", f"optim.steps={steps}", f"seed={options.seed}")
        job = Job(name, name, overrides, folder / f"from_scratch_{name.rpartition('/')[2]}")
        train_side_by_side([job], steps)
        init, total = str(job.output / "model.safetensors"), total + steps
    return Path(init), f"host from scratch ({total} steps)"


def training_jobs(folder: Path, init: Path, options: DemoOptions) -> list[Job]:
    """The two trainings: only their recipes differ, and these in the memory alone."""
    common = (*options.overrides, f"init={init}", f"optim.steps={options.steps}", f"seed={options.seed}")
    return [
        Job("host alone   ", HOST_RECIPE, common, folder / "host"),
        Job("host + memory", MEMORY_RECIPE, common, folder / "host_memory"),
    ]


def write_summary(
    folder: Path,
    options: DemoOptions,
    origin: str,
    results: Results,
    deltas: Differences,
    clock: Stopwatch,
    text: list[str],
    before: dict[str, Any],
) -> None:
    """Write metrics.json and report.md."""
    content = {
        "format": "memcomp-demo-1",
        "host": origin,
        "steps": options.steps,
        "seed": options.seed,
        "pairs": options.pairs,
        "seconds": clock.seconds,
        "versions": versions(),
        **before,
        "results": results_json(results),
        "differences": differences_json(deltas),
    }
    write_json(folder / "metrics.json", content)
    parts = [f"Demo: {origin}, {options.steps} steps, seed {options.seed}", *text, str(clock)]
    with atomic_write(folder / "report.md") as temporary:
        temporary.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


class Stopwatch:
    """How long each stage took, and everything since it was made."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a block under a name."""
        print(f"— {name}", flush=True)
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 1)

    def __str__(self) -> str:
        stages = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in self.seconds.items())
        return f"{time.perf_counter() - self.start:.0f} s in all: {stages}"
