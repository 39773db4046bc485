"""One number of a table, made in one place: a mean over pairs and seeds, and its difference to the baseline's.

`Cell.text` and `Cell.difference_text` render it as Markdown, `Cell.to_json` as JSON, `report/tables.py` as HTML.
"""

from __future__ import annotations

import functools
import operator
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from memcomp.experiments.evaluation.scores import Scores
from memcomp.experiments.metrics.aggregate import Difference, Verdict, mean, seeds_difference
from memcomp.experiments.metrics.registry import metric_of


@dataclass(frozen=True)
class Cell:
    """One model under one column."""

    column: str
    """Such as "standard.ssim.disoccluded"."""
    value: float | None = None
    """Mean over seeds of the means over pairs; None if some seed has no pair with a value."""
    spread: float | None = None
    """Standard deviation of the seeds' means; None with one seed."""
    pairs: int = 0
    """How many pairs are in the mean; the fewest of any seed."""
    left_out: int = 0
    """How many pairs are left out of it; the most of any seed."""
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Why pairs have no value, where that is known → how many."""
    difference: Difference | None = None
    """How much larger the value is than the baseline's."""

    @property
    def verdict(self) -> Verdict:
        """Whether the difference is for the better; "unclear" without one."""
        higher = metric_of(self.column).higher_is_better
        return "unclear" if self.difference is None else self.difference.verdict(higher_is_better=higher)

    @property
    def mean_text(self) -> str:
        """The mean alone; what is missing, if that is known; or nothing."""
        if self.value is None:
            return f"n/a ({', '.join(self.skipped)})" if self.skipped else ""
        return f"{self.value:.{self._digits}f}"

    @property
    def spread_text(self) -> str:
        """How far seeds are apart: "± 0.0012", or nothing with one seed."""
        return "" if self.value is None or self.spread is None else f"± {self.spread:.{self._digits}f}"

    @property
    def ends_text(self) -> str:
        """Ends of the difference's 95 % interval: "[+0.0003, +0.0021]"."""
        d = self.difference
        return "" if d is None else f"[{d.low:+.{self._digits}f}, {d.high:+.{self._digits}f}]"

    @property
    def shift_text(self) -> str:
        """The difference alone: "+0.0012"."""
        return "" if self.difference is None else f"{self.difference.value:+.{self._digits}f}"

    def text(self) -> str:
        """The mean in a Markdown table: "0.0312 ± 0.0012 (n 99)", n only where pairs are left out."""
        few = f"(n {self.pairs})" if self.value is not None and self.left_out else ""
        return " ".join(filter(None, (self.mean_text, self.spread_text, few)))

    def difference_text(self) -> str:
        """The difference in a Markdown table: "+0.0012 [+0.0003, +0.0021] (n 99) **worse**"."""
        if self.difference is None:
            return ""
        few = f"(n {self.difference.pairs})" if self.difference.pairs < self.pairs + self.left_out else ""
        verdict = "" if self.verdict == "unclear" else f"**{self.verdict}**"
        return " ".join(filter(None, (self.shift_text, self.ends_text, few, verdict)))

    def to_json(self) -> dict[str, Any]:
        """The mean as benchmark.json has it; the differences stand by themselves there."""
        return {
            "value": self.value,
            "deviation_of_seeds": self.spread,
            "pairs": self.pairs,
            "left_out": self.left_out,
            "skipped": dict(self.skipped),
        }

    @classmethod
    def from_json(cls, column: str, found: Mapping[str, Any] | None, delta: Mapping[str, Any] | None) -> Cell:
        """The cell of benchmark.json's mean and difference, either of which may be missing."""
        difference = None if delta is None else Difference(**delta)
        if found is None:
            return cls(column, difference=difference)
        counts = found["pairs"], found["left_out"], found["skipped"]
        return cls(column, found["value"], found["deviation_of_seeds"], *counts, difference)

    @property
    def _digits(self) -> int:
        return metric_of(self.column).digits


def cell_of(column: str, seeds: Sequence[Scores], base: Sequence[Scores] = (), *, paired: bool = True) -> Cell:
    """The cell of a model that was trained from one seed or several.

    Args:
        column: such as "standard.l1".
        seeds: scores of each, on the same pairs.
        base: those of the baseline; none = no difference.
        paired: seed i of both belong together; see `seeds_difference`.
    """
    columns = [scores.column(column) for scores in seeds]
    means = [mean(values) for values in columns]
    reasons = [scores.reasons().get(column.split(".")[1], Counter()) for scores in seeds]
    values = [found.value for found in means if found.value is not None]
    if len(values) < len(means):
        values = []
    return Cell(
        column,
        value=statistics.fmean(values) if values else None,
        spread=statistics.stdev(values) if len(values) > 1 else None,
        pairs=min(found.pairs for found in means),
        left_out=max(found.left_out for found in means),
        skipped=dict(functools.reduce(operator.or_, reasons)),
        difference=seeds_difference(columns, [s.column(column) for s in base], paired=paired) if base else None,
    )
