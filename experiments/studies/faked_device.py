"""What a training step needs of a GPU, found without one: `python -m memcomp.experiments.studies.faked_device`.

For every recipe, at its published widths, size and batch, and each precision: is a tensor on a wrong device, how many
bytes do the tensors of a whole step take at most, and how often does the host wait for the device in a step that is not
logged. It is the training's own code on tensors that have a device and no values (`faked_step`).

PyTorch asks CUDA's libraries a few things even then: how many devices there are, whether a stream is being captured. A
stub answers; a C compiler makes it when the command starts, for Linux. The same command goes on where it was
interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from memcomp.experiments.errors import UserError
from memcomp.experiments.files import atomic_write
from memcomp.experiments.output.tables import markdown, versions, versions_line, write_json
from memcomp.experiments.recipe.packaged import recipe_names

Job = tuple[str, list[str], list[tuple[str, int]], int]
GIB = 2**30
WAYS = {"float32, tf32": ("tf32", 1), "bf16": ("bf16", 1), "tf32 in two parts": ("tf32", 2)}
LARGE = 40 * GIB  # the batch of a step that takes more is measured in two parts, too
# what replaces files that must be fetched; the weights' values play no part
WITHOUT_FILES = {"dagan": ["host.model.depth={num_layers: 50}"], "dagan_mcnet": ["host.model.depth={num_layers: 50}"]}
STUB = """
int cudaGetDeviceCount(int *count) { *count = 1; return 0; }
int cudaGetDevice(int *device) { *device = 0; return 0; }
int cudaSetDevice(int device) { return 0; }
int cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { *least = *greatest = 0; return 0; }
int cudaStreamIsCapturing(void *stream, int *status) { *status = 0; return 0; }
int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) { *flags = 0; *active = 0; return 0; }
"""
ABOUT = """# A training step on a CUDA device that is only faked

Made by `python -m memcomp.experiments.studies.faked_device`: {sizes}, one GPU, the recipes' own batches.

**Computed with tensors that have no values (PyTorch's FakeTensorMode); what was compared with
[a real device](real_device.md) stands there.** GiB are the most
that the tensors of one whole step take at one time: host, memory, loss with its networks, backward, optimisers,
discriminator where there is one, and what stays between steps. What a kernel needs for itself, the allocator's unused
blocks, cuDNN's workspaces and the CUDA context (half a GiB and more) come on top. Weights that must be fetched are
random, which changes no size. float32 and tf32 are the same operations, told apart by a switch of the libraries, and
measured once. In two parts: `optim.accumulate=2`, measured where a step takes more than 40 GiB;
batch statistics are those of the parts then. Of a batch shared by several GPUs each takes its share.

A tensor on a wrong device would have ended a step. Waits: how often the host waits for the device in a step that is not
logged (numbers read, copies that block, sizes that depend on values), in any precision. Not counted: that each step,
once it is handed over, waits for the one before it to be done, to learn whether it was undone.

{table}

{result}

{versions}
"""


def compiler() -> str | None:
    """The C compiler of this machine, if it has one that makes what Linux loads."""
    return next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)


def obstacle() -> str | None:
    """Why this machine cannot fake a device, in a line; None if it can."""
    if sys.platform != "linux":
        return "a faked CUDA device needs Linux"
    if compiler() is None:
        return "a faked CUDA device needs a C compiler (cc, gcc or clang), which makes a stub of CUDA's driver"
    import torch

    if not torch.backends.cuda.is_built():
        return f"a faked CUDA device needs a build of torch with CUDA, {torch.__version__} has none"
    return None


def measured(jobs: Sequence[Job]) -> Iterator[dict[str, Any]]:
    """Measure recipes in a process of their own, one after the other.

    Args:
        jobs: recipe, overrides, for each step its precision and `optim.accumulate`, and the bytes above which the
            batch is measured in two parts, too.

    Raises:
        UserError: this machine cannot, or the process ended before it was done.
    """
    if (why := obstacle()) is not None:
        raise UserError(why)
    with tempfile.TemporaryDirectory() as folder:
        stub, source = Path(folder) / "stub.so", Path(folder) / "stub.c"
        source.write_text(STUB)
        soname = "-Wl,-soname,libcuda.so.1"  # by which CUDA's own libraries find it in place of the driver
        subprocess.run([str(compiler()), "-shared", "-fPIC", soname, "-o", str(stub), str(source)], check=True)
        command = [sys.executable, "-m", "memcomp.experiments.studies.faked_step", json.dumps(jobs)]
        environment = os.environ | {"LD_PRELOAD": str(stub)}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            assert process.stdout is not None
            left = list(jobs)
            for line in process.stdout:
                left.pop(0)
                yield json.loads(line)
        if left:
            raise UserError(f"{left[0][0]}: the process that measured it ended with status {process.returncode}")


def job(name: str, overrides: Sequence[str] = ()) -> Job:
    """What is measured of a recipe of the package."""
    ways = [(precision, parts) for precision, parts in WAYS.values() if parts == 1]
    return name, ["init=null", *WITHOUT_FILES.get(name, []), *overrides], ways, LARGE


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Memory and waits of each recipe, in Markdown."""
    header = ["recipe", "batch", *(f"{name}, GiB" for name in WAYS), "stays", "waits"]
    lines = []
    for row in rows:
        peaks = {(way["precision"], way["accumulate"]): f"{way['peak'] / GIB:.1f}" for way in row.get("ways", ())}
        stays = f"{max(way['kept'] for way in row['ways']) / GIB:.1f}" if peaks else "-"
        cells = [peaks.get(way, "-") for way in WAYS.values()]
        lines.append([row["recipe"], str(row["batch"]), *cells, stays, row["failed"] if not peaks else waits(row)])
    return markdown(header, lines)


def waits(row: dict[str, Any]) -> str:
    """The most that the host waits in one step, by operation; 0 if it never does."""
    most: dict[str, int] = {}
    for way in row["ways"]:
        for name, count in way["waits"].items():
            most[name] = max(most.get(name, 0), count)
    return ", ".join(f"{count} {name}" for name, count in sorted(most.items())) or "0"


def page(rows: Sequence[dict[str, Any]]) -> str:
    """The kept page."""
    failed = [row["recipe"] for row in rows if "failed" in row]
    waiting = [row["recipe"] for row in rows if "failed" not in row and waits(row) != "0"]
    result = f"{len(rows)} recipes: {len(failed)} ended on a tensor or operation that a device refuses"
    result += f" ({', '.join(failed)})" if failed else ""
    result += f"; in {len(waiting)} the host waits" + (f" ({', '.join(waiting)})." if waiting else ".")
    left = [name for name in recipe_names() if "/" not in name and all(row["recipe"] != name for row in rows)]
    result += f"\n\nNot measured yet; the same command goes on with them: {', '.join(left)}." if left else ""
    sizes = " and ".join(f"{size} px" for size in sorted({row["size"] for row in rows}))
    return ABOUT.format(sizes=sizes, table=table(rows), result=result, versions=versions_line())


def main() -> int:
    """Measure the recipes that are not measured yet; returns 1 if one could not take its steps, 2 if none could."""
    parser = argparse.ArgumentParser(description="Fake a CUDA device, and take every recipe's training step on it.")
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help="default: all that are not demo/")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/faked_device"), help="folder of faked_device.md, .json"
    )
    options = parser.parse_args()
    names = options.recipes or [name for name in recipe_names() if "/" not in name]
    kept = options.output / "faked_device.json"
    content = json.loads(kept.read_text()) if kept.is_file() else {"rows": {}}
    missing = [name for name in names if name not in content["rows"]]
    try:
        for row in measured([job(name) for name in missing]) if missing else ():
            content["rows"][row["recipe"]] = row
            write_json(kept, content | versions())
            print(json.dumps(row), flush=True)
    except UserError as error:
        print(f"faked_device: {error}", file=sys.stderr)
        return 2
    rows = [content["rows"][name] for name in sorted(content["rows"])]
    with atomic_write(options.output / "faked_device.md") as file:
        file.write_text(page(rows), encoding="utf-8")
    return int(any("failed" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
