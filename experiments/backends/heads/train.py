"""Train the regressor of procedural heads that comes with the package, measure it, and describe it.

`python -m memcomp.experiments.backends.heads.train [--output FOLDER] [--publish]`

Recipes describe hosts; this needs no more than `Settings`. The same command goes on where it was interrupted, and gives
the same weights, to the bit on the same machine and torch, with or without an interruption.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from memcomp.experiments.backends.heads.measure import measure
from memcomp.experiments.backends.heads.network import SIDE, HeadsNetwork
from memcomp.experiments.backends.heads.reader import NAME, HeadsReader
from memcomp.experiments.backends.heads.samples import Samples, draw_batch, read_heads
from memcomp.experiments.checkpoints.shipped import weights_folder
from memcomp.experiments.data.heads import RENDERER_VERSION
from memcomp.experiments.data.heads_set import HeadsSet
from memcomp.experiments.data.pairs import seeded
from memcomp.experiments.errors import UserError
from memcomp.experiments.files import atomic_write, sha256, writable_folder
from memcomp.experiments.interruption import interruption
from memcomp.experiments.output.tables import write_json

COMMAND = "python -m memcomp.experiments.backends.heads.train"
HALF = SIDE / 2  # pixels of half a picture
DEGREE = 0.1  # pixels: what a degree counts in the loss
KEEP = 250  # steps between two checkpoints


@dataclass(frozen=True)
class Settings:
    """Everything that decides the weights. People are of the train split: the test split's are never seen."""

    people: int = 1200
    frames: int = 12  # of each
    rate: float = 0.5  # per second: frames that differ much
    steps: int = 3000
    batch: int = 32
    lr: float = 2e-3  # falls to 0 along half a cosine
    warmup: int = 100
    seed: int = 0


def train(settings: Settings, folder: Path, stop_after: int | None = None) -> HeadsNetwork | None:
    """Train, or go on from `folder/last.safetensors`; None if it was interrupted.

    Args:
        settings: what to train.
        folder: checkpoints go there.
        stop_after: interrupt after this step, as Ctrl-C would.

    Raises:
        UserError: the folder holds a training with other settings.
    """
    last = writable_folder(folder) / "last.safetensors"
    torch.manual_seed(settings.seed)
    network = HeadsNetwork().train().to(memory_format=torch.channels_last)
    adam = torch.optim.Adam(network.parameters(), lr=settings.lr)
    step = _load(last, network, adam, settings) if last.is_file() else 0
    if step == settings.steps:
        return network.eval()
    samples = read_heads(HeadsSet("train", settings.people, settings.frames, SIDE, rate=settings.rate))
    bar = tqdm(total=settings.steps, initial=step, unit="step", desc="training", mininterval=0.5)
    with interruption() as interrupted, bar:
        while step < settings.steps:
            for group in adam.param_groups:
                group["lr"] = settings.lr * rate_factor(step, settings)
            pixels, degrees = train_step(
                network, adam, draw_batch(samples, settings.batch, seeded(settings.seed, "heads", step))
            )
            step += 1
            bar.set_postfix_str(f"landmarks {pixels:.2f} px, angles {degrees:.1f}°", refresh=False)
            bar.update()
            stopping = bool(interrupted) or step == stop_after
            if step % KEEP == 0 or step == settings.steps or stopping:
                _save(last, network, adam, step, settings)
            if stopping and step < settings.steps:
                return None
    return network.eval()


def train_step(network: HeadsNetwork, adam: torch.optim.Adam, samples: Samples) -> tuple[float, float]:
    """Take one step on a batch; returns the mean distance of the landmarks in pixels and the mean error in degrees."""
    pictures, points, angles = samples
    found, turned = network(pictures.contiguous(memory_format=torch.channels_last))
    pixels = HALF * torch.linalg.vector_norm(found - points + 1e-8, dim=-1).mean()
    degrees = (turned - angles).abs().mean()
    adam.zero_grad()
    (pixels + DEGREE * degrees).backward()
    adam.step()
    return pixels.item(), degrees.item()


def rate_factor(step: int, settings: Settings) -> float:
    """Factor of the learning rate in a step, from 0."""
    return min(1.0, (step + 1) / settings.warmup) * 0.5 * (1 + math.cos(math.pi * step / settings.steps))


def write_weights(network: HeadsNetwork, settings: Settings, folder: Path, people: int = 200) -> Path:
    """Write the weights in half precision and, beside them, what is known of them, measured with what was written."""
    path = folder / f"{NAME}.safetensors"
    state = {name: value.half() if value.is_floating_point() else value for name, value in network.state_dict().items()}
    with atomic_write(path) as temporary:
        save_file({name: value.contiguous() for name, value in state.items()}, temporary)
    about = {
        "sha256": sha256(path),
        "command": COMMAND,
        "settings": asdict(settings),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "renderer_version": RENDERER_VERSION,
        "torch": torch.__version__,
    }
    about["errors"] = measure(HeadsReader(path), people)
    write_json(folder / f"{NAME}.json", about)
    return path


def _save(path: Path, network: HeadsNetwork, adam: torch.optim.Adam, step: int, settings: Settings) -> None:
    tensors = {f"model.{name}": value for name, value in network.state_dict().items()}
    for number, state in adam.state_dict()["state"].items():
        tensors |= {f"adam.{number}.{name}": value for name, value in state.items()}
    with atomic_write(path) as temporary:
        plain = {name: value.contiguous() for name, value in tensors.items()}  # not channels last
        save_file(plain, temporary, {"settings": json.dumps(asdict(settings)), "step": str(step)})


def _load(path: Path, network: HeadsNetwork, adam: torch.optim.Adam, settings: Settings) -> int:
    """Take up what `_save` wrote; returns the step."""
    try:
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
        earlier, step = json.loads(metadata["settings"]), int(metadata["step"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise UserError(f"{path}: expected a checkpoint of `{COMMAND}` ({error})") from None
    if earlier != asdict(settings):
        raise UserError(f"{path}: was trained with {earlier}, expected {asdict(settings)}; name another --output")
    network.load_state_dict(_part(tensors, "model."))
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in _part(tensors, "adam.").items():
        number, _, kind = name.partition(".")
        state.setdefault(int(number), {})[kind] = value
    adam.load_state_dict({"state": state, "param_groups": adam.state_dict()["param_groups"]})
    return step


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def main() -> None:
    """Train, measure, and with --publish replace the package's weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/heads_reader"), help="folder (default: %(default)s)")
    parser.add_argument("--publish", action="store_true", help="copy weights and description into the package")
    args = parser.parse_args()
    torch.set_num_threads(1)  # sums of several threads differ from machine to machine
    settings = Settings()
    network = train(settings, args.output)
    if network is None:
        raise UserError(f"interrupted; the same command goes on from {args.output / 'last.safetensors'}")
    path = write_weights(network, settings, args.output)
    print(HeadsReader(path).about_landmarks(SIDE), HeadsReader(path).about_pose(SIDE), sep="\n")
    if args.publish:
        for suffix in (".safetensors", ".json"):
            with atomic_write(weights_folder() / f"{NAME}{suffix}") as temporary:
                shutil.copyfile(path.with_suffix(suffix), temporary)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
