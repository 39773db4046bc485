"""The demo's first part: what completes warped features when the motion is exact, measured anew on unseen people.

The hosts are those of the study (experiments/studies/EVIDENCE.md, seed 1), trained from scratch for it and shipped.
They are no animators: `true_motion` is told where every pixel comes from, which only drawn heads can tell. So the
rows differ in nothing but what fills the places that the source does not show.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from memcomp.experiments.checkpoints.shipped import shipped
from memcomp.experiments.checkpoints.trained import load_host
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

HOSTS = {
    "host": "true_motion_host",
    "host, one block deeper": "true_motion_deeper",
    "host + memory (paper)": "true_motion_paper",
    "host + memory read by place": "true_motion_placed",
}
HOST, CONTROL, _, PLACED = HOSTS
METRICS = ("l1", "ssim")
SHOWN = 6  # people in the strip
PEOPLE_SEED = 2  # nobody of the training (0), of the choice (1), or of the study's end (0, split test)
NOTE = (
    "The motion is given, exactly; trained for {steps} steps (seed {seed}), measured on {pairs} pairs of unseen "
    "people. laboratory.png: {rule}."
)


def laboratory(folder: Path, count: int) -> tuple[str, dict[str, Any]]:
    """Measure the shipped laboratory hosts, and draw what each makes of the pairs that hide most.

    Args:
        folder: `laboratory.png` and `laboratory_pairs.csv` are written into it.
        count: pairs, spread evenly over how much is hidden.

    Returns:
        the tables, and the same as plain values.

    Raises:
        UserError: a shipped host is missing or damaged.
    """
    models = {}
    for title, name in HOSTS.items():
        path, about = shipped(name, "demo's laboratory hosts")
        host, recipe = load_host(path)
        models[title] = Model(host, recipe.data.channels)
    pairs = spread_pairs(recipe, PEOPLE_SEED, count)
    results = measure(models, {SAME: pairs}, Panel(METRICS), lambda kind: True, batch=16)
    write_pairs(folder / "laboratory_pairs.csv", results)
    rule = hidden_strip(folder / "laboratory.png", pairs, models, SHOWN)
    against = {other: differences(results, PLACED, other) for other in (HOST, CONTROL)}
    tables = [difference_table(deltas, f"{PLACED} minus {other}") for other, deltas in against.items()]
    note = NOTE.format(steps=about["steps"], seed=about["seed"], pairs=len(pairs), rule=rule)
    content = {
        "results": results_json(results),
        "differences": {other: differences_json(deltas) for other, deltas in against.items()},
    }
    return "\n\n".join([score_table(results, "standard"), *tables, note]), content
