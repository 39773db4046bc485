"""The demo's first parts: hosts that the study trained, with and without memory, measured anew on unseen people.

They are those of experiments/studies/EVIDENCE.md, seed 1, trained from scratch for it and shipped. The laboratory's are
no animators: `true_motion` is told where every pixel comes from, which only drawn heads can tell, so that its rows
differ in nothing but what fills the places that the source does not show. The whole hosts find the motion themselves,
as they learned it from the true one, each together with its memory, if it has one, from the first step.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memcomp.experiments.checkpoints.shipped import shipped
from memcomp.experiments.checkpoints.trained import load_host
from memcomp.experiments.data.heads_set import EvalPairs
from memcomp.experiments.evaluation.hidden import hidden_strip, spread_pairs
from memcomp.experiments.evaluation.options import SAME
from memcomp.experiments.evaluation.panel import Panel
from memcomp.experiments.evaluation.scores import Model, measure
from memcomp.experiments.evaluation.tables import (
    difference_table,
    differences,
    differences_json,
    results_json,
    score_table,
    write_pairs,
)
from memcomp.experiments.recipe.load import load_recipe

HOST, DEEPER, WIDER = "host", "host, one block deeper", "host, as many operations"
PAPER, PLACED = "host + memory (paper)", "host + memory read by place"


@dataclass(frozen=True)
class Shown:
    """Shipped hosts that are compared.

    Attributes:
        name: of the part, and of its files.
        hosts: title → name of the shipped weights; the memory read by place is compared with the first two.
        title: of the part.
        note: what the hosts are.
    """

    name: str
    hosts: dict[str, str]
    title: str
    note: str


LABORATORY = Shown(
    "laboratory",
    {HOST: "true_motion_host", DEEPER: "true_motion_deeper", PAPER: "true_motion_paper", PLACED: "true_motion_placed"},
    "The laboratory, which is told the motion",
    "The motion is given, exactly; each was trained for {steps} steps (seed {seed})",
)
WHOLE = Shown(
    "whole",
    {HOST: "whole_host", WIDER: "whole_wider", PLACED: "whole_placed"},
    "The whole pipeline, which finds the motion itself",
    "The host finds the motion, as it learned it from the true one; everything was trained from nothing for {steps} "
    "steps (seed {seed}), host and memory together, and is measured with settled batch statistics; a memory that was "
    "added to a host trained before gained little or nothing, one in TPSM of three levels nothing that holds "
    "(experiments/results/evidence.md)",
)
METRICS = ("l1", "ssim")
STRIP = 6  # people in the strip
PEOPLE_SEED = 2  # nobody of the training (0), of the choice (1), or of the study's end (0, split test)


def unseen(count: int) -> EvalPairs:
    """Pairs of people that nobody has seen, spread evenly over how much is hidden, with their exact motion."""
    return spread_pairs(load_recipe("demo/true_motion"), PEOPLE_SEED, count)


def measured(shown: Shown, pairs: EvalPairs, folder: Path) -> tuple[str, dict[str, Any]]:
    """Measure shipped hosts, and draw what each makes of the pairs that hide most.

    Args:
        shown: which.
        pairs: as `unseen` gives them.
        folder: `<name>.png` and `<name>_pairs.csv` are written into it.

    Returns:
        the tables, and the same as plain values.

    Raises:
        UserError: a shipped host is missing or damaged.
    """
    models = {}
    for title, name in shown.hosts.items():
        path, about = shipped(name, f"demo's host {title!r}")
        host, recipe = load_host(path)
        models[title] = Model(host, recipe.data.channels)
    results = measure(models, {SAME: pairs}, Panel(METRICS), lambda kind: True, batch=16)
    write_pairs(folder / f"{shown.name}_pairs.csv", results)
    rule = hidden_strip(folder / f"{shown.name}.png", pairs, models, STRIP)
    first, second, *_ = shown.hosts
    against = {other: differences(results, PLACED, other) for other in (first, second)}
    tables = [difference_table(deltas, f"{PLACED} minus {other}") for other, deltas in against.items()]
    content = {
        "results": results_json(results),
        "differences": {other: differences_json(deltas) for other, deltas in against.items()},
    }
    note = shown.note.format(steps=about["steps"], seed=about["seed"])
    note = f"{note}; measured on {len(pairs)} pairs of unseen people. {shown.name}.png: {rule}."
    return "\n\n".join([score_table(results, "standard"), *tables, note]), content
