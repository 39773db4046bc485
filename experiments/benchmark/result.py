"""What a benchmark found: for each kind of pairs and row, the cells of every column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch

from memcomp.experiments.benchmark.measure import Costs, Measured
from memcomp.experiments.benchmark.runs import Row
from memcomp.experiments.evaluation.cells import Cell, cell_of
from memcomp.experiments.evaluation.options import COPY, MeasureOptions, PairOptions
from memcomp.experiments.evaluation.pair_lists import ListReport
from memcomp.experiments.evaluation.panel import Panel
from memcomp.experiments.evaluation.scores import Pair, Scores
from memcomp.experiments.metrics.registry import in_order
from memcomp.experiments.recipe.sections import Recipe


@dataclass(frozen=True)
class BenchmarkOptions:
    """What `memcomp benchmark` is asked for."""

    runs: tuple[str, ...]
    """RUN or NAME=RUN, NAME that of its row."""
    output: Path
    changes: tuple[str, ...] = ()
    """`key=value` words that change the pairs' recipe."""
    baseline: str | None = None
    """Name of a row, or number of a run from 1; None = the first run's."""
    pairs: PairOptions = field(default_factory=PairOptions)
    measuring: MeasureOptions = field(default_factory=MeasureOptions)
    published: bool = False
    """Add the rows of the paper's tables."""
    repeats: int = 7
    """Timed frames of each row; 0 = no times."""
    device: str = "auto"
    show: str | None = None
    """Name of the row whose clips and memory the page shows; None = a row with a memory."""


@dataclass(frozen=True)
class Benchmark:
    """Everything that was measured, and what it was measured on."""

    options: BenchmarkOptions
    rows: Sequence[Row]
    baseline: str
    """Name of the row that the others are compared with."""
    recipe: Recipe
    """The recipe whose data the pairs are of."""
    pairs: Mapping[str, Sequence[Pair]]
    """Kind → pairs."""
    measured: Measured
    costs: Costs
    panel: Panel
    device: torch.device
    left_out: Mapping[str, str]
    """Run as given → why it was not measured."""
    lists: ListReport
    """What became of the rows of lists of pairs."""

    @property
    def kinds(self) -> list[str]:
        """Kinds of pairs that were measured."""
        return list(self.measured[COPY])

    def scores(self, kind: str) -> dict[str, list[Scores]]:
        """Row → the scores of each of its runs; copying the source comes first."""
        found = {COPY: [self.measured[COPY][kind]]}
        return found | {row.name: [self.measured[run.sha256][kind] for run in row.runs] for row in self.rows}

    def row(self, name: str) -> Row | None:
        """The row of this name; None for copying the source."""
        return next((row for row in self.rows if row.name == name), None)

    def columns(self, kind: str, protocol: str = "") -> list[str]:
        """Columns that some run has, of one protocol or of all; those under a mask last."""
        scores = [one for many in self.scores(kind).values() for one in many]
        names = dict.fromkeys(name for one in scores for name in one.columns if name.startswith(protocol))
        return in_order(names)

    @cached_property
    def cells(self) -> dict[str, dict[str, dict[str, Cell]]]:
        """Kind → row → column → cell; all but the baseline and copying the source with the difference to it."""
        return {
            kind: {
                name: {column: self._cell(kind, name, column) for column in self.columns(kind)}
                for name in self.scores(kind)
            }
            for kind in self.kinds
        }

    def _cell(self, kind: str, name: str, column: str) -> Cell:
        scores, row, base = self.scores(kind), self.row(name), self.row(self.baseline)
        if row is None or base is None or name == self.baseline:
            return cell_of(column, scores[name])
        return cell_of(column, scores[name], scores[self.baseline], paired=row.seeds == base.seeds)
