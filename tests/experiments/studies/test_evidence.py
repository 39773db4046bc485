"""The study of what a memory is good for, in small: it trains, measures, plots, and goes on where it stopped."""

import argparse
import json
from itertools import pairwise

import pytest

from memcomp.experiments import cli
from memcomp.experiments.errors import UserError
from memcomp.experiments.evaluation import hidden
from memcomp.experiments.evaluation.options import SAME
from memcomp.experiments.recipe.load import load_recipe
from memcomp.experiments.studies import evidence

SMALL = [
    "size=32",
    "data.identities=2",
    "data.frames=4",
    "optim.batch_size=2",
    "log.held_out_pairs=2",
    "log.checkpoint_every=1",
    "device=cpu",
    "threads=1",
    "memory.memory_channels=4",
    "memory.memory_size=[2, 2]",
    "host.model.generator_params.block_expansion=4",
    "host.model.generator_params.max_features=8",
]
GIVEN = {
    ("scratch", "fomm"): "demo/fomm_placed",
    ("scratch", evidence.NEAR): "demo/tpsm_near_placed",
    ("clips", "fomm"): "demo/clips_fomm_placed",
}


def test_it_runs_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setenv("MEMCOMP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hidden, "DRAWN", 12)
    trained = []

    def here(jobs, steps, parallel):  # in this process: what takes long is to start others
        for job in jobs:
            if not (job.output / "model.safetensors").is_file():
                trained.append(job.output.name)
                assert cli.main(job.command()[3:]) == 0

    monkeypatch.setattr(evidence, "train", here)
    monkeypatch.setattr(evidence, "run", lambda words: cli.main(words))
    words = ["--decoders", "fomm", "--rows", "0", "5", "--seeds", "1", "2", "--steps", "2", "--pairs", "6", "--choose"]
    memory = [word for word in SMALL if word.startswith("memory.")]
    host, place = evidence.ROWS["fomm"][0], evidence.ROWS["fomm"][5]
    rows = [host, *evidence.ROWS["fomm"][1:5], evidence.Row(place.name, place.recipe, tuple(memory))]
    monkeypatch.setitem(evidence.ROWS, "fomm", tuple(rows))
    words += ["--output", str(tmp_path / "out"), *(word for word in SMALL if word not in memory)]
    evidence.main(words)
    out = tmp_path / "out" / "fomm" / "chosen"
    content = json.loads((out / "benchmark.json").read_text())
    assert [row["name"] for row in content["rows"]] == [host.name, place.name]
    assert [len(row["runs"]) for row in content["rows"]] == [2, 2]
    columns = content["results"][SAME][place.name]
    assert "standard.l1.disoccluded" in columns and "standard.l1.revealed" in columns
    assert (out / "cost.png").stat().st_size > 1000 and (out / "strips.png").stat().st_size > 1000
    before, count = (out / "pairs.csv").read_text(), len(trained)
    evidence.main(words)
    assert len(trained) == count == 4 and (out / "pairs.csv").read_text() == before  # nothing is trained again


def test_pairs_are_spread_over_how_much_is_hidden(tmp_path, monkeypatch):
    monkeypatch.setattr(hidden, "DRAWN", 150)
    pairs = hidden.spread_pairs(load_recipe("demo/true_motion"), 1, 18)
    shares = [pair.disoccluded.float().mean().item() for pair in pairs]
    ranges = list(pairwise(hidden.EDGES))
    counts = [sum(low < share <= high or share == low == 0 for share in shares) for low, high in ranges]
    assert len(pairs) == sum(counts) and max(counts) <= 3 and sum(count > 0 for count in counts) >= 4


def test_what_the_warp_leaves_is_grey_where_the_source_shows_nothing():
    pairs = hidden.spread_pairs(load_recipe("demo/true_motion"), 1, 2)
    pair = pairs[1]
    source, driving = pair.source[None], pair.driving[None]
    warped, visible = hidden.left_by_warp(source, driving)[0], driving[0, 5] > 0.5
    assert (warped[:, driving[0, 5] == 0] == 0.5).all()
    assert (warped - driving[0, :3]).abs().mean(0)[visible].mean() < 0.05


@pytest.mark.parametrize("decoder", evidence.SCALES)
@pytest.mark.parametrize("kind", evidence.HOSTS)
def test_rows_of_a_whole_host_start_from_it(tmp_path, decoder, kind):
    args = argparse.Namespace(kind=kind, seeds=[1, 2], overrides=["threads=1"], steps=7)
    before = evidence.host_job(decoder, tmp_path, args)
    taught = load_recipe(before.recipe, before.overrides)
    assert (taught.loss.visibility > 0, taught.loss.motion > 0) == (True, kind == "taught")
    of_rows = [job for jobs in evidence.jobs_of(decoder, evidence.WHOLE[kind][decoder], tmp_path, args) for job in jobs]
    recipes = [load_recipe(job.recipe, job.overrides) for job in of_rows]
    assert len({job.output for job in of_rows}) == len(of_rows) == 2 * len(evidence.WHOLE[kind][decoder])
    for recipe in recipes:
        assert recipe.init == str(before.output) and recipe.freeze_motion == (kind == "taught")
        assert recipe.optim.steps == 7 and recipe.data.identities == taught.data.identities
        assert (recipe.loss.motion, recipe.data.correspondence) == (0, kind == "whole")
    controls = {recipe.capacity: recipe.memory.config for recipe in recipes if recipe.capacity}
    memories = [recipe.memory.config for recipe in recipes if recipe.memory is not None and recipe.capacity is None]
    assert set(controls) == {"flops", "parameters"} and all(config == memories[-1] for config in controls.values())
    assert [config.place for config in memories] == [False, False, True, True]  # paper and read by place, two seeds


def test_real_clips_are_learned_and_measured(tmp_path, monkeypatch, clip_writer):
    monkeypatch.setenv("MEMCOMP_CACHE", str(tmp_path / "cache"))
    for number, name in enumerate(("train/a_1", "train/b_1", "test/c_1")):
        clip_writer(tmp_path / f"{name}.mp4", number)
    monkeypatch.setattr(evidence, "train", lambda jobs, steps, parallel: [cli.main(job.command()[3:]) for job in jobs])
    monkeypatch.setattr(evidence, "run", lambda words: cli.main(words))
    small = [word for word in SMALL if not word.startswith(("memory.", "data.", "size="))]
    words = ["--clips", str(tmp_path), "--decoders", "fomm", "--rows", "0", "4", "--seeds", "1", "--steps", "1"]
    evidence.main([*words, "--pairs", "2", "--settled", "--output", str(tmp_path / "out"), "size=64", *small])
    content = json.loads((tmp_path / "out" / "clips_fomm" / "benchmark_settled" / "benchmark.json").read_text())
    rows = {row["name"]: row for row in content["rows"]}
    assert list(rows) == ["host", "+ memory read by place"]
    assert rows["+ memory read by place"]["memory_parameters"] > 0 == rows["host"]["memory_parameters"]
    assert all(content["results"][SAME]["host"][f"standard.{name}"]["value"] > 0 for name in ("l1", "psnr", "ssim"))


def test_every_row_of_the_laboratory_loads(tmp_path):
    args = argparse.Namespace(kind=None, seeds=[1], overrides=[], steps=7)
    levels = {}
    for decoder, rows in evidence.ROWS.items():
        for (job,) in evidence.jobs_of(decoder, rows, tmp_path, args):
            recipe = load_recipe(job.recipe, job.overrides)
            assert recipe.host.model["decoder"] == decoder.partition("_")[0]
            levels[decoder] = recipe.host.model["generator_params"]["num_down_blocks"]
            published = decoder == evidence.PUBLISHED
            assert recipe.size == (256 if published else 64)
            assert recipe.memory is None or recipe.memory.config.memory_size == ((32, 32) if published else (8, 8))
    assert levels == {"fomm": 1, "tpsm_near": 1, "tpsm": 2, "tpsm_far": 3, "fomm_published": 2}


def test_fields_are_of_the_paper_s_memory_and_sizes_of_the_one_read_by_place(tmp_path):
    args = argparse.Namespace(kind="fields", seeds=[1], overrides=[], steps=7)
    jobs = [job for (job,) in evidence.jobs_of("fomm", evidence.FIELDS, tmp_path, args)]
    memories = {job.output.name: load_recipe(job.recipe, job.overrides).memory.config for job in jobs}
    assert len(memories) == len(jobs) and len(set(memories.values())) == len(jobs) - 1  # the teacher's is the paper's
    assert memories["read_by_place_asked_at_16_16_places_seed1"].queries == 16
    assert not memories["paper_seed1"].place and memories["read_by_place_seed1"].place


def test_options_that_do_not_go_together_are_refused(tmp_path):
    wrong = (
        ["--decoders", "tpsm_far", "--scratch"],
        ["--fields", "--decoders", "fomm_published"],
        ["--pairs-file", "x.csv"],
        ["--clips", "c", "--choose"],
        ["--clips", "c", "data.root=d"],
    )
    for words in wrong:
        with pytest.raises(UserError, match=words[0]):
            evidence.main(["--output", str(tmp_path), *words])


@pytest.mark.parametrize(
    ("kind", "decoder"), [(kind, decoder) for kind in ("scratch", "clips") for decoder in evidence.WHOLE[kind]]
)
def test_rows_from_scratch_start_from_nothing(tmp_path, decoder, kind):
    clips = tmp_path if kind == "clips" else None
    args = argparse.Namespace(kind=kind, seeds=[1], overrides=[], steps=7, clips=clips)
    recipes = [
        load_recipe(job.recipe, job.overrides)
        for (job,) in evidence.jobs_of(decoder, evidence.WHOLE[kind][decoder], tmp_path, args)
    ]
    assert all(recipe.init is None and not recipe.freeze_motion for recipe in recipes)
    assert all(recipe.host.name == decoder.partition("_")[0] for recipe in recipes)
    if kind == "clips":
        assert all(recipe.data.root == str(tmp_path) and recipe.size == 128 for recipe in recipes)
    else:
        assert all(recipe.loss.motion == 20 and recipe.data.correspondence for recipe in recipes)
    if given := GIVEN.get((kind, decoder)):  # the recipe that users are given is the row
        recipe = load_recipe(given)
        assert recipes[-1].memory == recipe.memory and recipes[-1].host == recipe.host
        assert recipes[-1].loss == recipe.loss
    assert [recipe.capacity for recipe in recipes] == [None, "flops", "parameters", None, None]
    assert recipes[0].memory is None and recipes[3].memory.config.start == "paper"
    assert [recipe.memory.config.place for recipe in recipes[1:]] == [True, True, False, True]
