"""Hours of a training, computed: `python -m memcomp.experiments.studies.step_cost [--output DIR] [RECIPE …]`.

Counts the operations of one training step of each recipe at its published widths, on tensors that have shapes and no
values (nothing is computed, so it takes minutes on any machine), and says what they mean in hours of a GPU: by an
arithmetic that `step_cost.md` writes out. Nothing in its hours is measured.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import timm
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from memcomp.experiments.checkpoints.build import build_host
from memcomp.experiments.cost import NOT_COUNTED, Counted
from memcomp.experiments.data.pairs import seeded
from memcomp.experiments.files import atomic_write
from memcomp.experiments.output.tables import markdown, versions_line, write_json
from memcomp.experiments.recipe.load import load_recipe
from memcomp.experiments.recipe.sections import Recipe
from memcomp.experiments.training import loss as losses

RECIPES = (
    *("fomm", "fomm_mcnet", "tpsm", "tpsm_mcnet"),
    *("mcnet_baseline", "mcnet_mcm_nosplit", "mcnet_mcm", "mcnet", "mcnet_release"),
    *("dagan", "dagan_mcnet", "mraa", "mraa_mcnet", "facevid2vid", "facevid2vid_mcnet"),
)
CHANGES = {  # fixed networks whose files others publish: not counted
    "dagan": ("host.model.depth=zeros",),
    "facevid2vid": ("loss.headpose=0", "loss.pose_teacher=null"),
}
PAIRS = 2  # whose step is counted; it grows with their number
GPU, PEAK = "A100", 156.0  # TFLOP/s of tf32 products without sparsity, as its maker says
LATE = 1e6  # an epoch at which all that a host begins later, as TPSM its background's motion, has begun
SHARE = 0.3  # of the peak: an assumption
PEOPLE = 424  # in train/, as VoxCeleb1's metadata list them: hours grow with their number


@dataclass(frozen=True)
class StepCost:
    """What a recipe's training comes to.

    Attributes:
        recipe: its name.
        batch: pairs of a step, of all processes together.
        tflop: 10¹² operations of a step: forward, backward, and what is computed again for the latter.
        steps: for `PEOPLE` people.
        hours: of one GPU, if it reaches `SHARE` of its peak.
    """

    recipe: str
    batch: int
    tflop: float
    steps: int
    hours: float


def step_flop(recipe: Recipe, pairs: int = PAIRS) -> int:
    """Count a training step of `pairs` pairs: the host's, the loss's, and the discriminator's if there is one."""

    def untrained(name: str, weights: str) -> tuple[torch.nn.Module, str]:
        return timm.create_model(name, pretrained=False), name

    with mock.patch("memcomp.experiments.training.loss.load_backbone", untrained):
        host, objective = build_host(recipe), losses.Objective(recipe.loss, recipe.stage)
    with FakeTensorMode(allow_non_fake_inputs=True), Counted() as counted:
        source, driving = torch.empty(2, pairs, recipe.data.loaded_channels, recipe.size, recipe.size)
        loss, _, output = objective(host, source, driving, seeded(0, "step cost", 0), epoch=LATE)
        loss.backward()
        if objective.adversarial and output is not None:
            host.discriminator_loss(output, driving).backward()
    return counted.flop


def step_cost(name: str, changes: Sequence[str] = ()) -> StepCost:
    """Count the step of a recipe, and compute its hours."""
    fixed = CHANGES.get(name.removesuffix("_mcnet"), ())
    recipe = load_recipe(name, [*fixed, *changes])
    batch, epochs = recipe.optim.batch_size, recipe.optim.epochs or 0
    tflop = step_flop(recipe) / 1e12 / PAIRS * batch
    steps = math.ceil(epochs * PEOPLE * recipe.data.repeats / batch)
    return StepCost(name, batch, tflop, steps, steps * tflop / (PEAK * SHARE) / 3600)


def gpus(batch: int) -> int:
    """How many GPUs, eight at most, share a batch evenly."""
    return next(number for number in range(8, 0, -1) if batch % number == 0)


def numbers(cost: Mapping[str, Any]) -> list[str]:
    """The last columns of a recipe's row: operations, steps, hours of one GPU and of several."""
    hours = cost["hours"]
    several = hours / gpus(cost["batch"])
    return [f"{cost['tflop']:.1f}", f"{cost['steps']:,}", f"{hours:.0f}", f"{several:.1f}"]


def page(costs: Sequence[StepCost]) -> str:
    """The table with its arithmetic, in Markdown."""
    header = ["recipe", "pairs of a step", "TFLOP of a step", "steps", f"hours of one {GPU}", f"of up to eight {GPU}s"]
    rows = [[one.recipe, f"{one.batch}", *numbers(vars(one))] for one in costs]
    return f"""# Hours of a training, computed

**Computed, not measured:** nobody has run these trainings here. `python -m memcomp.experiments.studies.step_cost` made
this page. For the {PEOPLE} people that VoxCeleb1's metadata put into `train/` (`memcomp prepare` says
how many it found; hours grow with them):

    steps = epochs × people × data.repeats / optim.batch_size
    hours = steps × TFLOP of a step / (GPUs × {PEAK:g} TFLOP/s × {SHARE:g}) / 3600

{PEAK:g} TFLOP/s is what the maker of the {GPU} gives for TF32 without sparsity, which the recipes compute in; that a
training reaches {SHARE:g} of it is an assumption, and so is that eight GPUs are eight times as fast as one (seven,
where eight cannot share the batch). Yours is `images_per_second` in log.csv:

    hours = steps × optim.batch_size / images_per_second / 3600

The operations are those of forward and backward pass at the recipe's widths, with the perceptual loss, the
discriminator where there is one, and what the memory's attention computes a second time for its gradients; counted on
{PAIRS} pairs by torch's formulas. A multiplication and its addition are two; {NOT_COUNTED}.
Not counted either: DaGAN's depth network and face-vid2vid's teacher of the head pose, which are others' files.

{markdown(header, rows)}

{versions_line()}
"""


def main(words: Sequence[str] | None = None) -> None:
    """Count, print, and write step_cost.md and step_cost.json."""
    parser = argparse.ArgumentParser(prog="python -m memcomp.experiments.studies.step_cost", description=__doc__)
    parser.add_argument("recipes", nargs="*", default=[], metavar="RECIPE", help="default: those of the tables")
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: prints only")
    args = parser.parse_args(words)
    costs = [step_cost(name) for name in args.recipes or RECIPES]
    text = page(costs)
    print(text)
    if args.output:
        with atomic_write(args.output / "step_cost.md") as temporary:
            temporary.write_text(text, encoding="utf-8")
        about = {"gpu": GPU, "peak_tflops": PEAK, "share_of_peak": SHARE, "people": PEOPLE, "measured": False}
        write_json(args.output / "step_cost.json", about | {"recipes": [vars(cost) for cost in costs]})


if __name__ == "__main__":
    main()
