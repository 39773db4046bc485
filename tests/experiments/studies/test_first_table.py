"""The first table on a host of a few weights: four rows of two seeds, resumed after an interruption."""

import json

import pytest

from memcomp import CompensationConfig
from memcomp.experiments.checkpoints.trained import read_trained
from memcomp.experiments.cli import main
from memcomp.experiments.errors import UserError
from memcomp.experiments.studies import first_table

SIZE = {"memory_channels": 4, "memory_size": [2, 2], "identity_hidden": 4}
WORDS = (
    "device=cpu",
    "threads=1",
    "size=32",
    "host.model.common_params.num_kp=4",
    "host.model.kp_detector_params={block_expansion: 4, max_features: 96, num_blocks: 2, scale_factor: 0.5,"
    " temperature: 0.1, single_jacobian_map: true}",
    "host.model.generator_params={block_expansion: 4, max_features: 8, num_down_blocks: 1, num_bottleneck_blocks: 1,"
    " estimate_occlusion_map: true,"
    " dense_motion_params: {block_expansion: 4, max_features: 128, num_blocks: 2, scale_factor: 0.5}}",
    "loss.perceptual=null",
    "data.identities=3",
    "data.frames=4",
    "optim.batch_size=2",
    "optim.warmup=0",
    "log.every=1",
    "log.held_out_pairs=2",
)


@pytest.fixture
def tiny(monkeypatch, head_cache, tmp_path):
    """Trainings run in this process; the fourth is interrupted once. Returns the outputs of those that ran."""
    done = []

    def train(jobs, steps):
        for job in jobs:
            if len(done) == 3:
                done.append(None)
                raise KeyboardInterrupt
            assert main(job.command()[3:]) == 0
            done.append(job.output.name)

    monkeypatch.setattr(first_table, "train_side_by_side", train)
    memory = tmp_path / "memory.yaml"
    size = "memory_channels: 4, memory_size: [2, 2], kernels: 2, identity_hidden: 4"
    memory.write_text(f"base: demo/fomm_mcnet\nmemory: {{{size}}}\n")
    plan = first_table.Plan("demo/fomm", str(memory), (*WORDS, f"data.cache={head_cache}"))
    monkeypatch.setattr(first_table, "SMALL_PLANS", {"fomm": plan, "tpsm": plan})
    monkeypatch.setattr("memcomp.experiments.data.sources.HELD_OUT_PEOPLE", 2)
    return done


def test_every_row_starts_from_the_same_host_and_is_measured(tiny, tmp_path, capsys):
    words = ["--hosts", "fomm", "--host-steps", "2", "--steps", "2", "--seeds", "1", "2", "--pairs", "2"]
    words += ["--parallel", "2", "--output", str(tmp_path)]
    with pytest.raises(KeyboardInterrupt):
        first_table.main(words)
    first_table.main(words)
    runs = [f"{variant}_seed{seed}" for variant in ("host", "wide", "mcm", "iicm_mcm", "placed") for seed in (1, 2)]
    assert [name for name in tiny if name] == ["host", *runs]  # nothing twice
    content = json.loads((tmp_path / "fomm" / "benchmark" / "benchmark.json").read_text())
    assert [(row["name"], len(row["runs"])) for row in content["rows"]] == [
        ("fomm before", 1),
        ("fomm", 2),
        ("fomm, widened", 2),
        ("fomm + MCM", 2),
        ("fomm + IICM + MCM", 2),
        ("fomm + memory read by place", 2),
    ]
    before, alone, wide, _, both, _ = [row["host_parameters"] + row["memory_parameters"] for row in content["rows"]]
    assert before == alone < both <= wide
    assert content["baseline"] == "fomm"
    assert {"paper.psnr_peak2", "standard.akd"} <= content["results"]["cross identity"]["fomm"].keys()
    assert (tmp_path / "fomm" / "inspect" / "inspect.json").is_file()
    recipes = [read_trained(tmp_path / "fomm" / name).recipe for name in runs]
    assert {recipe.init for recipe in recipes} == {str(tmp_path / "fomm" / "host")}
    assert [recipe.seed for recipe in recipes] == [1, 2] * 5
    assert {(recipe.optim.steps, recipe.optim.schedule) for recipe in recipes} == {(2, "cosine_tail")}
    assert [recipe.memory is not None for recipe in recipes] == [False] * 4 + [True] * 6
    placed = recipes[-1].memory
    assert (placed.preset, placed.config.memory_channels, placed.config.start) == ("placed", 4, "residual")
    assert placed.config.to_dict() == CompensationConfig.placed(**SIZE).to_dict() and placed.scales == "all"


def test_a_host_that_learned_its_occlusion():
    plan = first_table.SMALL_PLANS["fomm_taught"]
    rows = {row: first_table.row_words(plan, row, ("optim.steps=2",), "x", 1) for row in first_table.VARIANTS}
    found = {row: first_table.load_recipe(plan.memory, words) for row, words in rows.items()}
    assert [recipe.loss.visibility > 0 for recipe in found.values()] == [True] * 5
    assert found["host"].host == found["mcm"].host == found["placed"].host
    assert found["wide"].capacity == "parameters" and found["host"].memory is None
    assert found["placed"].memory.config.memory_size == (8, 8)
    words = first_table.row_words(first_table.SMALL_PLANS["fomm"], "iicm_mcm", ("optim.steps=2",), "x", 1)
    package = first_table.load_recipe("demo/fomm_mcnet", words)
    assert (found["iicm_mcm"].memory, found["iicm_mcm"].optim) == (package.memory, package.optim)
    words = first_table.row_words(plan, "placed", ("optim.steps=2", "memory.kernels=2"), "x", 1)
    assert first_table.load_recipe(plan.memory, words).memory.config.kernels == 2


def test_full_has_no_such_host(tmp_path):
    with pytest.raises(UserError, match="--hosts: expected some of fomm, tpsm beside --full"):
        first_table.main(["--full", "--hosts", "fomm_taught", "--output", str(tmp_path)])


@pytest.mark.parametrize("option", ["--steps", "--pairs", "--parallel", "--host-steps"])
def test_numbers_below_one_are_refused(option, tmp_path):
    with pytest.raises(UserError, match=f"{option}: expected 1 or more, got 0"):
        first_table.main([option, "0", "--output", str(tmp_path)])


def test_the_published_widths_fit_heads_of_128_px():
    for plan in first_table.FULL_PLANS.values():
        for variant in first_table.VARIANTS:
            words = first_table.row_words(plan, variant, ("optim.steps=2",), "x", 1)
            recipe = first_table.load_recipe(plan.memory, words)
            assert (recipe.size, recipe.data.kind, recipe.optim.schedule) == (128, "heads", "cosine_tail")
            assert recipe.memory is None or recipe.memory.config.memory_channels == 512
