"""Batch statistics of a trained host, settled: `python -m memcomp.experiments.studies.settled RUN...`.

While a host trains, its batch norms keep a running average of what the last ten batches or so were like, and the last
steps decide what it is measured with. With eight pairs in a batch that alone moves a small host's L1 by several
percent from step to step. Here weights stay, and the statistics are those of many batches. (`optim.ema` averages them,
and the weights, while training.)
"""

from __future__ import annotations

import argparse
import copy
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader
from tqdm import tqdm

from memcomp.adapters import Host
from memcomp.adapters.folder import WEIGHTS
from memcomp.experiments.checkpoints.build import build_host, load_weights
from memcomp.experiments.checkpoints.trained import RECIPE, read_trained, save_trained
from memcomp.experiments.data.batching import StepBatches, collate, on_device
from memcomp.experiments.data.sources import training_pairs
from memcomp.experiments.errors import UserError
from memcomp.experiments.files import writable_folder
from memcomp.experiments.processes import resolve_device
from memcomp.experiments.recipe.sections import Recipe
from memcomp.experiments.studies.first_table import as_command

BATCHES = 100


def settle(host: Host, recipe: Recipe, step: int, batches: int = BATCHES) -> None:
    """Replace the running statistics of the batch norms that train by plain means over further batches.

    Only they are in training mode meanwhile. What is frozen keeps its own, which `torch.optim.swa_utils.update_bn`
    would forget.

    Args:
        host: trained, on the device that is to do it; changed in place, and left in eval mode.
        recipe: that trained it; its pairs and batch size.
        step: that was trained last: the batches are those that would have come next.
        batches: how many.
    """
    norms = [m for m in host.train().modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    before = [(norm.momentum, copy.deepcopy(norm.state_dict())) for norm in norms]
    host.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.training, norm.momentum = True, None  # None: the mean of all batches
    following = StepBatches(step, step + batches, recipe.optim.batch_size)
    loader = DataLoader(training_pairs(recipe), batch_sampler=following, collate_fn=collate)
    device = next(host.parameters()).device
    with torch.no_grad():
        for batch in tqdm(loader, desc="settling", unit="batch"):
            host.reconstruct(*(each[:, : recipe.data.channels] for each in on_device(batch, device)))
    for norm, (momentum, state) in zip(norms, before, strict=True):
        norm.training, norm.momentum = False, momentum
        if not norm.num_batches_tracked:  # of a part that does not reconstruct
            norm.load_state_dict(state)


def settled(run: Path, batches: int = BATCHES) -> Path:
    """Write a finished run's host with settled statistics into the run's folder `settled`, unless they are there.

    Returns:
        the folder, which can be measured as the run's own.

    Raises:
        UserError: no such run, one without a recipe, or one of a further stage.
    """
    folder, trained = run / "settled", read_trained(run)
    recipe, info = trained.recipe, trained.info | {"settled": batches}
    if recipe is None or recipe.stage is not None:
        raise UserError(f"{run}: expected the folder of a training of pictures, with its {RECIPE}")
    if (folder / WEIGHTS).is_file() and read_trained(folder).info == info:
        return folder
    host = build_host(recipe)  # what the recipe froze is frozen
    load_weights(host, trained.weights, str(run))
    host.to(resolve_device(recipe.device))
    settle(host, recipe, trained.step, batches)
    shutil.copyfile(run / RECIPE, writable_folder(folder) / RECIPE)
    save_trained(folder, host.cpu(), recipe, trained.step, info)
    return folder


def main(arguments: Sequence[str] | None = None) -> None:
    """Settle the runs that are named."""
    parser = argparse.ArgumentParser(prog="settled", description="Batch statistics of trained hosts over many batches.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a finished training")
    parser.add_argument("--batches", type=int, default=BATCHES, metavar="N", help="(default: %(default)s)")
    args = parser.parse_args(arguments)
    if args.batches < 1:
        raise UserError(f"--batches: expected 1 or more, got {args.batches}")
    for run in args.runs:
        print(settled(run, args.batches))


if __name__ == "__main__":
    torch.set_num_threads(1)
    as_command(main, "settled")
