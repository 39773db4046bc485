"""Hours that are computed: the operations are those that torch counts, the arithmetic is the one written out."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from memcomp.experiments.checkpoints.build import build_host
from memcomp.experiments.recipe.load import with_overrides
from memcomp.experiments.studies import step_cost
from memcomp.experiments.training.loss import Objective


def test_the_step_of_a_host_is_counted_as_torch_counts_one_with_values(small_recipe):
    recipe = with_overrides(small_recipe, ["memory=null", "loss.consistency=0"], "test")
    host, objective = build_host(recipe), Objective(recipe.loss)
    with FlopCounterMode(display=False) as counter:
        objective(host, *torch.rand(2, 2, 3, 32, 32), torch.Generator().manual_seed(0), epoch=0.0)[0].backward()
    assert step_cost.step_flop(recipe, 2) == counter.get_total_flops() > 0
    assert step_cost.step_flop(small_recipe, 2) > counter.get_total_flops()  # with a memory


def test_products_that_are_added_in_place_count():
    with step_cost.Counted() as counted:
        torch.zeros(2, 3, 5).baddbmm_(torch.rand(2, 3, 4), torch.rand(2, 4, 5))
        torch.mm(torch.rand(3, 4), torch.rand(4, 5), out=torch.empty(3, 5))
    assert counted.flop == 2 * (2 * 3 * 4 * 5) + 2 * (3 * 4 * 5)


def test_the_arithmetic(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(step_cost, "step_flop", lambda recipe: 2e12)  # of two pairs
    step_cost.main(["fomm", "dagan_mcnet", "--output", str(tmp_path)])
    told = json.loads((tmp_path / "step_cost.json").read_text())
    fomm, dagan = told["recipes"]
    assert told["measured"] is False and (fomm["batch"], dagan["batch"]) == (40, 48)
    assert fomm["tflop"] == pytest.approx(40) and fomm["steps"] == 100 * 424 * 75 / 40
    assert fomm["hours"] == pytest.approx(100 * 424 * 75 / (156 * 0.3) / 3600)
    page = (tmp_path / "step_cost.md").read_text()
    assert "Computed, not measured" in page and page.strip() in capsys.readouterr().out
