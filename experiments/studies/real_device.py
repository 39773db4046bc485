"""What a training step takes of a GPU that is there: `python -m memcomp.experiments.studies.real_device`.

For every recipe, at its published widths, size and batch, and each precision: seconds of a step, the most memory that
its tensors take, beside what `faked_device` computed without a GPU, and how often the host waits for the device in a
step that is not logged, as PyTorch tells it of its calls to CUDA. It is the training's own code; the pictures are
noise, and networks whose weights must be fetched are random. The same command goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from memcomp.experiments.data.batching import collate
from memcomp.experiments.errors import UserError
from memcomp.experiments.files import atomic_write
from memcomp.experiments.output.tables import markdown, versions, versions_line, write_json
from memcomp.experiments.processes import Processes, resolve_device
from memcomp.experiments.recipe.load import load_recipe
from memcomp.experiments.recipe.packaged import recipe_names
from memcomp.experiments.recipe.sections import Recipe
from memcomp.experiments.studies.faked_device import GIB, WITHOUT_FILES
from memcomp.experiments.studies.faked_step import without_files
from memcomp.experiments.training import loop as training_loop
from memcomp.experiments.training import setup as training_setup
from memcomp.experiments.training.precision import products_of

WARM = 4  # steps before the measured ones: optimisers' states, choice of kernels
COMPUTED = Path(__file__).parent.parent / "results" / "faked_device.json"
HEADER = (
    "device",
    "recipe",
    "batch",
    "precision",
    "s a step",
    "images/s",
    "peak GiB",
    "computed GiB",
    "waits",
    "undone",
)


def measure(recipe: Recipe, steps: int) -> dict[str, Any]:
    """Train a few steps on noise.

    Args:
        recipe: of the training; its precision is what is measured.
        steps: that are measured, after `WARM` others.

    Returns:
        seconds of a step; peak, bytes of tensors at most; waits of all measured steps, as PyTorch tells them; undone,
        how many steps were for their gradients.
    """
    with tempfile.TemporaryDirectory() as folder, without_files(recipe):
        device = resolve_device(recipe.device)
        run = training_setup.Training(recipe, Path(folder) / "run", Processes(0, 1, device), resume=False)
        run.start = 50  # many epochs of one pair: what a host begins later has begun
        pair = training_setup.training_pairs(recipe)[0]
        draw = torch.Generator().manual_seed(0)
        noise = {
            name: torch.rand(pair[name].shape, generator=draw).mul(1 if pair[name].is_floating_point() else 255)
            for name in ("source", "driving")
        }
        pair |= {name: value.to(pair[name].dtype) for name, value in noise.items()}
        batch = collate([pair] * recipe.optim.batch_size)
        if device.type == "cuda":
            batch |= {name: batch[name].pin_memory() for name in noise}
        found: dict[str, Any] = {}

        def batches() -> Iterator[Any]:
            yield from [batch] * WARM
            _begin(device)
            start = time.perf_counter()
            yield from [batch] * steps
            _settle(device)
            found["seconds"] = (time.perf_counter() - start) / steps
            if device.type == "cuda":
                found["peak"] = torch.cuda.max_memory_allocated(device)

        run.batches = batches()  # type: ignore[assignment]
        with warnings.catch_warnings(record=True) as told, products_of(run.precision):
            warnings.simplefilter("always")
            training_loop.loop(run, None, progress=False)
        found["waits"] = sum("synchronizing CUDA operation" in str(one.message) for one in told)
        found["undone"] = run.info["skipped_steps"]
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return found


def _begin(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        torch.cuda.set_sync_debug_mode("warn")


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize(device)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """What was measured, in Markdown, beside what was computed of it."""
    computed = json.loads(COMPUTED.read_text())["rows"]
    lines = []
    for row in rows:
        named = [row["device"], row["recipe"] + "".join(f", {change}" for change in row["changes"]), str(row["batch"])]
        if "failed" in row:
            lines.append([*named, row["precision"], row["failed"], *[""] * 5])
            continue
        ways = computed.get(row["recipe"], {}).get("ways", ())
        product = "bf16" if row["precision"] == "bf16" else "tf32"
        thought = [way["peak"] for way in ways if way["precision"] == product and way["accumulate"] == 1]
        lines.append(
            [
                *named,
                row["precision"],
                f"{row['seconds']:.3f}",
                f"{row['batch'] / row['seconds']:.1f}",
                f"{row['peak'] / GIB:.1f}" if "peak" in row else "-",
                f"{thought[0] / GIB:.1f}" if thought and not row["changes"] else "-",
                str(row["waits"]),
                str(row["undone"]),
            ]
        )
    return markdown(HEADER, lines)


def main() -> int:
    """Measure what is not measured yet; returns 1 if a recipe could not take its steps."""
    parser = argparse.ArgumentParser(description="Take every recipe's training steps on this machine's device.")
    parser.add_argument("words", nargs="*", metavar="RECIPE or KEY=VALUE", help="default: all that are not demo/")
    parser.add_argument("--precisions", nargs="+", default=["tf32", "bf16"])
    parser.add_argument("--steps", type=int, default=8, metavar="N", help="measured of each (default: %(default)s)")
    parser.add_argument("--output", type=Path, required=True, help="folder of steps.md and real_device.json")
    options = parser.parse_args()
    if options.steps < 1:
        parser.error("--steps: expected 1 or more")
    changes = [word for word in options.words if "=" in word]
    names = [word for word in options.words if "=" not in word] or [name for name in recipe_names() if "/" not in name]
    kept = options.output / "real_device.json"
    content = json.loads(kept.read_text()) if kept.is_file() else {"rows": []}
    rows: list[dict[str, Any]] = content["rows"]
    here = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    try:
        for name in names:
            for precision in options.precisions:
                row: dict[str, Any] = {"device": here, "recipe": name, "precision": precision, "changes": changes}
                row |= {"steps": options.steps}
                if any(row.items() <= one.items() and "failed" not in one for one in rows):
                    continue
                rows[:] = [one for one in rows if not row.items() <= one.items()]  # what failed is tried again
                few = ["optim.epochs=null", f"optim.steps={50 + WARM + options.steps}", "data.workers=0", "init=null"]
                words = [*few, f"precision={precision}", *WITHOUT_FILES.get(name, []), *changes]
                recipe = load_recipe(name, words)
                row |= {"batch": recipe.optim.batch_size, "size": recipe.size}
                try:
                    row |= measure(recipe, options.steps)
                except (RuntimeError, TypeError, ValueError) as error:
                    row["failed"] = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
                rows.append(row)
                write_json(kept, content | versions())
                print(json.dumps(row), flush=True)
    except UserError as error:
        print(f"real_device: {error}", file=sys.stderr)
        return 2
    with atomic_write(options.output / "steps.md") as file:
        file.write_text(f"# Training steps on a device\n\n{table(rows)}\n\n{versions_line()}\n", encoding="utf-8")
    return int(any("failed" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
