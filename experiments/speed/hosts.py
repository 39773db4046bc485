"""`memcomp speed hosts`: every recipe on one device.

For each recipe: whether attaching a memory at its identity start leaves the host's picture as it is (in float32, under
bf16 and fp16 autocast, in channels_last), how far the compiled host is from the eager one, and a few training steps
with their time and peak memory. Rows are written as they come, so an interrupted run keeps what it has.

Bf16 and fp16 are for accelerators. Most CPUs have no fast convolution in them, and the memory's of 512 channels then
take a hundred times as long as in float32, minutes a picture. So on a CPU they are measured only if asked for
(`--half`); otherwise their numbers are null in the row, whose `half` says why.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from memcomp import CompensationConfig
from memcomp.adapters import Host, attach
from memcomp.experiments.checkpoints.build import build_host
from memcomp.experiments.errors import UserError
from memcomp.experiments.files import atomic_write, writable_folder
from memcomp.experiments.processes import resolve_device
from memcomp.experiments.recipe.load import load_recipe
from memcomp.experiments.recipe.packaged import recipe_names
from memcomp.experiments.recipe.sections import Recipe
from memcomp.experiments.speed.options import HostsOptions
from memcomp.experiments.training.loop import train

WAYS = ("float32", "bf16", "fp16", "channels_last")
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
NO_HALF = "bf16 and fp16 not measured: a CPU takes minutes for them; --half measures them nevertheless"


def time_hosts(options: HostsOptions) -> None:
    """Measure, print and write one row for each recipe."""
    device = resolve_device(options.device)
    torch.backends.cudnn.deterministic = True  # two runs of one network are to be equal
    writable_folder(options.output)
    rows: list[dict[str, Any]] = []
    for name in options.recipes or [name for name in recipe_names() if "/" not in name]:
        row: dict[str, Any] = {"recipe": name, "device": _device_name(device), "torch": torch.__version__}
        row |= {"size": options.size, "batch": options.batch}
        started = time.perf_counter()
        try:
            recipe = load_recipe(name, [*_overrides(options), *options.overrides])
            row |= parity(recipe, device, options.half) if recipe.stage is None else {}
            row |= {} if not options.compile or recipe.stage is not None else compiled(recipe, device)
            row |= steps(recipe, device)
        except (UserError, RuntimeError, ValueError) as error:  # one recipe that fails does not hide the others
            row["failed"] = " ".join(str(error).split())[:500]
        row["seconds"] = round(time.perf_counter() - started, 1)
        print(json.dumps(row), flush=True)
        rows.append(row)
        with atomic_write(options.output / "hosts.json") as temporary:
            temporary.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def parity(recipe: Recipe, device: torch.device, half: bool = False) -> dict[str, float | str | None]:
    """Way → largest difference that attaching at the identity start makes to the picture, whose range is [0, 1].

    Also how far autocast alone takes the picture from float32. On a CPU what is about bf16 and fp16 is None, and
    `half` the reason, unless it is asked for.
    """
    ways = [way for way in WAYS if half or device.type != "cpu" or way not in HALF]
    host = build_host(dataclasses.replace(recipe, memory=None, freeze_host=False)).to(device).eval()
    source, driving = _pictures(recipe, device)
    before = {way: _picture(host, source, driving, way) for way in ways}
    attach(host, CompensationConfig.paper(start="identity"))
    after = {way: _picture(host, source, driving, way) for way in ways}
    row: dict[str, float | str | None] = {}
    row |= {f"attach_{way}": _distance(before[way], after[way]) if way in ways else None for way in WAYS}
    row |= {f"autocast_{way}": _distance(before["float32"], before[way]) if way in ways else None for way in HALF}
    return row | ({} if len(ways) == len(WAYS) else {"half": NO_HALF})


def compiled(recipe: Recipe, device: torch.device) -> dict[str, float]:
    """How far the compiled host, with its memory, is from the eager one, and the seconds that the first call takes."""
    host = build_host(recipe).to(device).eval()
    source, driving = _pictures(recipe, device)
    eager = _picture(host, source, driving, "float32")
    torch._dynamo.reset()
    start = time.perf_counter()
    with torch.no_grad():
        picture = torch.compile(host)(source, driving).prediction
    return {"compile": _distance(eager, picture), "compile_seconds": round(time.perf_counter() - start, 1)}


def steps(recipe: Recipe, device: torch.device) -> dict[str, float]:
    """Train; losses on held-out pairs, milliseconds of a step (first 5 left out), peak memory on a GPU in MB."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        result = train(recipe, folder, progress=False)
        if not result.finished:  # by a signal, which is meant for all of it
            raise KeyboardInterrupt
        lines = (Path(folder) / "log.csv").read_text(encoding="utf-8").splitlines()
    column = lines[0].split(",").index("images_per_second")
    rates = [float(value) for line in lines[7:] if (value := line.split(",")[column])]
    row = {"loss_before": result.held_out_start, "loss_after": result.held_out_end, "steps": result.step}
    if rates:
        row["ms_per_step"] = round(1000 * recipe.optim.batch_size / rates[-1], 1)
    if device.type == "cuda":
        row["peak_mb"] = round(torch.cuda.max_memory_allocated() / 2**20)
    return row


def _overrides(options: HostsOptions) -> list[str]:
    few = ["data.kind=heads", "data.identities=8", "data.frames=8", "data.repeats=1", "data.workers=0"]
    rare = [f"log.{key}=100000" for key in ("sample_every", "checkpoint_every", "held_out_every")]
    rare += ["log.held_out_pairs=4"]
    times = [f"optim.steps={options.steps}", "optim.epochs=null", f"optim.batch_size={options.batch}"]
    return [f"size={options.size}", f"device={options.device}", "init=null", *few, *times, *rare, "log.every=1"]


def _pictures(recipe: Recipe, device: torch.device) -> tuple[Tensor, Tensor]:
    """Two smooth pictures of one batch."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.rand(2, 2, 3, 8, 8, generator=generator)
    size = (recipe.size, recipe.size)
    source, driving = (torch.nn.functional.interpolate(part, size, mode="bicubic").clamp(0, 1) for part in noise)
    return source.to(device), driving.to(device)


def _picture(host: Host, source: Tensor, driving: Tensor, way: str) -> Tensor:
    with torch.no_grad(), _way(source.device, way):
        if way != "channels_last":
            return host(source, driving).prediction
        host.lay_out(torch.channels_last)
        try:
            form = torch.channels_last
            return host(source.to(memory_format=form), driving.to(memory_format=form)).prediction
        finally:
            host.lay_out(torch.contiguous_format)


@contextlib.contextmanager
def _way(device: torch.device, way: str) -> Iterator[None]:
    with torch.autocast(device.type, HALF[way]) if way in HALF else contextlib.nullcontext():
        yield


def _distance(a: Tensor, b: Tensor) -> float:
    return (a.cpu().double() - b.cpu().double()).abs().max().item()


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
