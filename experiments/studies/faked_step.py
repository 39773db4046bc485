"""One process's trainings on a CUDA device that is only faked: their memory, and what their host waits for.

Started by `faked_device`, with a stub of the driver in front of CUDA's libraries. Tensors have shapes, types and a
device, and no values (PyTorch's FakeTensorMode), so that a step at published widths takes seconds and next to no
memory. What PyTorch would refuse on a real device, tensors of another one, is refused here. The training is the real
one: `Training` and `loop`; what is replaced are the clips, files of weights that must be fetched, and the driver.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import timm
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.data._utils.pin_memory import pin_memory

from memcomp.experiments.data.batching import collate
from memcomp.experiments.processes import Processes
from memcomp.experiments.recipe.load import load_recipe
from memcomp.experiments.recipe.sections import Recipe
from memcomp.experiments.training import loop as training_loop
from memcomp.experiments.training import perceptual, pose_teacher
from memcomp.experiments.training import setup as training_setup
from memcomp.experiments.training.optimizers import Optimisers
from memcomp.experiments.training.precision import Precision
from memcomp.experiments.training.watch import Watch


class Valueless(FakeTensorMode):
    """PyTorch's mode, which must not believe that it could compute a constant on the device."""

    avoid_device_init = True


@contextmanager
def faked_cuda() -> Iterator[Watch]:
    """Make every tensor one without values, and a CUDA device one that computes nothing.

    Needs the stub of the driver: autograd asks CUDA how many devices there are.
    """
    yes, none = (lambda *a, **k: True), (lambda *a, **k: None)
    replaced: dict[str, Any] = {
        "torch._subclasses.fake_tensor.init_gpu_context": none,
        "torch.cuda._lazy_init": none,
        "torch.cuda.current_device": lambda: 0,
        "torch.cuda.is_bf16_supported": yes,
        "torch._C._select_conv_backend": _cudnn,  # asks for the device's properties
        "torch.cuda.Event": lambda *a, **k: SimpleNamespace(record=none, synchronize=none),
        "torch.random.fork_rng": lambda *a, **k: nullcontext(),
        # a parameter that moves to another device stays the object that a memory refers to, as a real one does
        "torch.utils.weakref": SimpleNamespace(getweakrefs=lambda tensor: []),
    }
    watch = Watch(torch.device("cuda"))
    with ExitStack() as stack:
        for name, value in replaced.items():
            stack.enter_context(mock.patch(name, value))
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))
        stack.enter_context(Valueless(allow_fallback_kernels=False))
        stack.enter_context(watch)
        yield watch


def _cudnn(*args: Any, transposed: bool = False, **kwargs: Any) -> Any:
    """What PyTorch chooses for the convolutions of all hosts but those of one channel each, on a recent GPU."""
    return torch._C._ConvBackend.CudnnTranspose if transposed else torch._C._ConvBackend.Cudnn  # type: ignore[attr-defined]


@contextmanager
def without_files(recipe: Recipe) -> Iterator[None]:
    """Give a training blank clips, and networks of the right shape where weights would have to be fetched."""
    section = recipe.data
    shape = (section.loaded_channels, recipe.size, recipe.size)
    kind = torch.float32 if section.loaded_as_float else torch.uint8
    colours = tuple((name, 1.0) for name in ("brightness", "contrast", "saturation", "hue"))

    class Blank:
        epoch_length = 1

        def __getitem__(self, number: int) -> dict[str, Any]:
            pictures = {name: torch.zeros(shape, dtype=kind) for name in ("source", "driving")}
            return pictures | {"colours": colours, "skipped": [], "converted": ""}

    backbone = lambda name: (timm.create_model(name, pretrained=False), f"{name} (random)")  # noqa: E731
    teacher = lambda file: pose_teacher.Hopenet().requires_grad_(False).eval()  # noqa: E731
    with (
        mock.patch.object(training_setup, "training_pairs", lambda recipe: Blank()),
        mock.patch.object(training_setup, "held_out_pairs", lambda recipe: Blank()),
        mock.patch.object(training_setup, "_open_log", lambda *arguments: None),
        mock.patch.object(perceptual, "_from_hub", backbone),
        mock.patch("memcomp.adapters.dagan.host.DaGAN.check_trainable", lambda host: None),  # a depth network's weights
        mock.patch("memcomp.experiments.training.loss.load_teacher", teacher),
    ):
        yield


def measure(recipe: Recipe, ways: Sequence[tuple[Precision, int]], parted_above: int) -> list[dict[str, Any]]:
    """Train a few steps on the faked device; what those took whose numbers nobody logs.

    Args:
        recipe: of the training.
        ways: for each step that is measured its `precision` and `optim.accumulate`.
        parted_above: bytes; if one of them takes more, the first is measured with the batch in two parts, too.

    Returns:
        For each way: precision, accumulate; peak, bytes of live tensors; kept, those that stay between steps; waits,
        operation → times.

    Raises:
        RuntimeError, TypeError: an operation that a CUDA device would refuse, such as one on tensors of two devices.
    """
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, faked_cuda() as watch, without_files(recipe):
        processes = Processes(0, 1, torch.device("cuda"))
        run = training_setup.Training(recipe, Path(folder) / "run", processes, resume=False)
        _begin(run.optimisers)
        run.start = 50  # many epochs of one pair: what a host begins later, as TPSM its background's motion, has begun
        blank = [training_setup.training_pairs(recipe)[0]] * recipe.optim.batch_size

        def batches() -> Iterator[Any]:
            todo = list(ways)
            for number, (precision, parts) in enumerate(todo, 1):
                run.precision = precision
                run.recipe = replace(recipe, optim=replace(recipe.optim, accumulate=parts))
                batch = pin_memory(collate(blank), "cuda")
                watch.begin()
                kept = watch.live
                yield batch
                row = {"precision": precision, "accumulate": parts, "peak": watch.peak, "kept": kept}
                rows.append(row | {"waits": dict(watch.waits)})
                if number == len(ways) and len(todo) == number and max(row["peak"] for row in rows) > parted_above:
                    todo.append((ways[0][0], 2))

        run.batches = batches()  # type: ignore[assignment]
        training_loop.loop(run, None, progress=False)
    return rows


def _begin(optimisers: Optimisers) -> None:
    """Make what is there after a training's first step: gradients, and the optimisers' states."""
    for part, parameters in optimisers.parameters().items():
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        optimisers.step([part])


def main() -> None:
    """Read a list of [recipe, overrides, ways, bytes] and print a line of JSON for each."""
    for name, overrides, ways, parted_above in json.loads(sys.argv[1]):
        recipe = load_recipe(name, ["optim.epochs=null", "optim.steps=100", "data.workers=0", *overrides])
        row: dict[str, Any] = {"recipe": name, "batch": recipe.optim.batch_size, "size": recipe.size}
        try:
            row["ways"] = measure(recipe, ways, parted_above)
        except (RuntimeError, TypeError, ValueError) as error:
            row["failed"] = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
