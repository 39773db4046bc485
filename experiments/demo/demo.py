"""`memcomp demo`: give a trained host a memory, train it on with and without, and measure both.

1. a small host that already animates procedural heads (shipped, or trained here with --from-scratch: first to move
   heads, then to draw their details);
2. the memory is attached with the identity start, so that at step 0 both models are the same host;
3. host + memory and, as control, the host alone are trained for the same steps from the same seed, side by side;
4. both are measured on people that neither has seen; the table shows what came out, whichever row wins.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memcomp.experiments.training.side_by_side import Job

MOTION_RECIPE, HOST_RECIPE, MEMORY_RECIPE = "demo/fomm", "demo/fomm_detail", "demo/fomm_mcnet"
STEPS = 350  # of both trainings together with the rest under five minutes on two cores


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `memcomp demo`."""
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="keys to change in all the demo's recipes")
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), help="folder (default: %(default)s)")
    parser.add_argument("--from-scratch", action="store_true", help="train the host as well: much longer")
    parser.add_argument("--steps", type=int, default=STEPS, help="of training with and without (default: %(default)s)")
    parser.add_argument("--host-steps", type=int, help="with --from-scratch: of the host (default: its recipe's)")
    parser.add_argument("--pairs", type=int, default=100, help="test pairs of each kind (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the training (default: %(default)s)")


def run(args: argparse.Namespace) -> None:
    """`memcomp demo`."""
    clock = Stopwatch()
    from tqdm import tqdm

    from memcomp.experiments.checkpoints.run_file import load_host
    from memcomp.experiments.checkpoints.shipped import shipped_host
    from memcomp.experiments.demo.figures import write_pictures
    from memcomp.experiments.errors import UserError
    from memcomp.experiments.evaluation.evaluate import COPY
    from memcomp.experiments.evaluation.pairs import CROSS, SAME, evaluation_pairs, heads_size
    from memcomp.experiments.evaluation.panel import Panel
    from memcomp.experiments.evaluation.scores import copy_source, host_predictor, score
    from memcomp.experiments.files import writable_folder
    from memcomp.experiments.metrics.registry import DEFAULT
    from memcomp.experiments.output.tables import difference_table, differences, score_table, versions_line, write_pairs
    from memcomp.experiments.recipe.load import load_recipe
    from memcomp.experiments.training.side_by_side import train_side_by_side

    for name in ("steps", "pairs", "host_steps"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')}: expected 1 or more, got {value}")
    recipe = load_recipe(HOST_RECIPE, [*args.overrides, f"seed={args.seed}"])
    if not args.from_scratch:
        shipped_host()  # if it is missing, say so before anything takes time
    folder = writable_folder(args.output)
    remember_settings(folder / "demo.json", args)
    try:
        with clock.stage("the heads to train on"):
            render_heads(args.overrides)
        with clock.stage("the host"):
            init, origin = find_host(args, folder)
        print(f"host: {origin}")
        jobs = training_jobs(folder, init, args)
        with clock.stage(f"training, {args.steps} steps with and without memory"):
            train_side_by_side(jobs, args.steps)
    except KeyboardInterrupt:
        print(f"\ninterrupted; the same command goes on from the last checkpoints in {folder}")
        raise

    with clock.stage("evaluation"):
        before, alone, memory = (load_host(path)[0] for path in (init, jobs[0].output, jobs[1].output))
        names = ["the host before", f"host alone, +{args.steps} steps", f"host + memory, +{args.steps} steps"]
        hosts = zip(names, (before, alone, memory), strict=True)
        models = {COPY: copy_source} | {name: host_predictor(host) for name, host in hosts}
        pairs = evaluation_pairs(recipe, [SAME, CROSS], args.pairs, seed=0)
        panel = Panel((*DEFAULT, "akd", "prmse"), heads=heads_size(recipe))
        with tqdm(total=2 * args.pairs, unit="pair", desc="evaluate") as bar:
            results = {kind: score(models, chosen, panel, batch=16, tick=bar.update) for kind, chosen in pairs.items()}
    deltas = differences(results, names[2], names[1])
    with clock.stage("pictures"):
        write_pairs(folder / "pairs.csv", results)
        write_pictures(folder, recipe, {"host": alone, "host + memory": memory}, jobs, deltas)
    text = [score_table(results, "standard"), score_table(results, "paper")]
    text += [difference_table(deltas, "host + memory minus host alone"), *panel.about, versions_line()]
    print("\n" + "\n\n".join(text))
    write_summary(folder, args, origin, results, deltas, clock, text)
    print(f"\n{clock}\n\nin {folder}: " + ", ".join(OUTPUTS))


OUTPUTS = (
    "report.md (the tables above)",
    "metrics.json, pairs.csv (raw values)",
    "same_identity.mp4, cross_identity.mp4 (source | driving | host | host + memory)",
    "strips.png",
    "losses.png",
    "memory.png (M_o)",
    "differences.png",
    "host/, host_memory/ (the two runs)",
)


def remember_settings(path: Path, args: argparse.Namespace) -> None:
    """Write down what is trained here, or check that it is what an earlier, perhaps interrupted, demo trained here.

    Raises:
        UserError: the folder holds a demo with other settings.
    """
    from memcomp.experiments.errors import UserError
    from memcomp.experiments.output.tables import write_json

    settings = {key: getattr(args, key) for key in ("steps", "seed", "from_scratch", "host_steps", "overrides")}
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
    from memcomp.experiments.data.sources import held_out_pairs, training_pairs
    from memcomp.experiments.recipe.load import load_recipe

    recipe = load_recipe(HOST_RECIPE, [*overrides, f"data.workers={os.cpu_count() or 1}"])
    training_pairs(recipe)
    held_out_pairs(recipe)


def find_host(args: argparse.Namespace, folder: Path) -> tuple[Path, str]:
    """The checkpoint to start from, and what to call it: the shipped host, or one trained here."""
    from memcomp.experiments.checkpoints.shipped import shipped_host
    from memcomp.experiments.recipe.load import load_recipe
    from memcomp.experiments.training.side_by_side import Job, train_side_by_side

    if not args.from_scratch:
        path, about = shipped_host()
        return path, f"shipped host ({about['command']})"
    init, total = "null", 0
    for name in (MOTION_RECIPE, HOST_RECIPE):
        steps = args.host_steps or load_recipe(name, args.overrides).optim.steps or 1
        overrides = (*args.overrides, f"init={init}", f"optim.steps={steps}", f"seed={args.seed}")
        job = Job(name, name, overrides, folder / f"from_scratch_{name.rpartition('/')[2]}")
        train_side_by_side([job], steps)
        init, total = str(job.output / "model.safetensors"), total + steps
    return Path(init), f"host from scratch ({total} steps)"


def training_jobs(folder: Path, init: Path, args: argparse.Namespace) -> list[Job]:
    """The two trainings: they differ in the recipe alone, whose only difference is the memory."""
    from memcomp.experiments.training.side_by_side import Job

    common = (*args.overrides, f"init={init}", f"optim.steps={args.steps}", f"seed={args.seed}")
    return [
        Job("host alone   ", HOST_RECIPE, common, folder / "host"),
        Job("host + memory", MEMORY_RECIPE, common, folder / "host_memory"),
    ]


def write_summary(
    folder: Path,
    args: argparse.Namespace,
    origin: str,
    results: Mapping[str, Any],
    deltas: Mapping[str, Any],
    clock: Stopwatch,
    text: list[str],
) -> None:
    """metrics.json and report.md."""
    from memcomp.experiments.files import atomic_write
    from memcomp.experiments.output.tables import differences_json, results_json, versions, write_json

    content = {
        "format": "memcomp-demo-1",
        "host": origin,
        "steps": args.steps,
        "seed": args.seed,
        "pairs": args.pairs,
        "seconds": clock.seconds,
        "versions": versions(),
        "results": results_json(results),
        "differences": differences_json(deltas),
    }
    write_json(folder / "metrics.json", content)
    parts = [f"Demo: {origin}, {args.steps} steps, seed {args.seed}", *text, str(clock)]
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
