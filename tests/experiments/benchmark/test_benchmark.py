"""`memcomp benchmark`: its numbers are those of the runs it names, whatever else was given or interrupted."""

import csv
import dataclasses
import json
import os
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from memcomp.experiments.benchmark import measure as benchmark_measure
from memcomp.experiments.benchmark.measure import formula_files
from memcomp.experiments.benchmark.published import MARK, published, published_rows
from memcomp.experiments.benchmark.runs import read_runs, rows_of
from memcomp.experiments.checkpoints.build import build_host
from memcomp.experiments.checkpoints.run_file import save_run
from memcomp.experiments.checkpoints.trained import load_host
from memcomp.experiments.cli import main
from memcomp.experiments.cost import cost, milliseconds
from memcomp.experiments.errors import UserError
from memcomp.experiments.evaluation import scores as evaluation_scores
from memcomp.experiments.evaluation.options import COPY, CROSS, SAME
from memcomp.experiments.metrics.aggregate import mean, paired_difference, seeds_difference
from memcomp.experiments.recipe.load import with_overrides


def write_run(folder, recipe, seed, *, memory=True, step=3, words=()):
    """A checkpoint of an untrained host, its weights drawn from the seed."""
    recipe = dataclasses.replace(recipe, seed=seed, memory=recipe.memory if memory else None)
    loss = dataclasses.replace(recipe.loss, consistency=float(memory))
    recipe = with_overrides(dataclasses.replace(recipe, loss=loss), list(words), "test")
    host = build_host(recipe)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in host.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    save_run(folder / "model.safetensors", recipe, host, step)
    return folder


@pytest.fixture(scope="module")
def runs(small_recipe, tmp_path_factory):
    """Folders of two seeds of a host and of the same host with a memory."""
    root = tmp_path_factory.mktemp("runs")
    return SimpleNamespace(
        root=root,
        host=[write_run(root / f"host{seed}", small_recipe, seed, memory=False) for seed in (1, 2)],
        memory=[write_run(root / f"memory{seed}", small_recipe, seed) for seed in (1, 2)],
    )


def benchmark(folder, *words):
    """Exit code 0, and benchmark.json."""
    assert main(["benchmark", *map(str, words), "--repeats", "0", "--output", str(folder)]) == 0
    return json.loads((folder / "benchmark.json").read_text())


@pytest.fixture(scope="module")
def finished(runs, tmp_path_factory):
    """A benchmark of all four, of a folder without checkpoint and of a damaged one."""
    folder = tmp_path_factory.mktemp("benchmark")
    (runs.root / "empty").mkdir()
    damaged = runs.root / "damaged.safetensors"
    damaged.write_bytes((runs.host[0] / "model.safetensors").read_bytes()[:1000])
    words = [*runs.memory, *runs.host, runs.root / "empty", damaged, "--pairs", 4, "--published", "--baseline", "fomm"]
    return SimpleNamespace(folder=folder, content=benchmark(folder, *words), words=words)


def values_of(folder, kind, column):
    """Label of a run → its values in the CSV, in order."""
    found = {}
    with (folder / "pairs.csv").open() as file:
        for row in csv.DictReader(file):
            if row["kind"] == kind:
                found.setdefault(row["model"], []).append(float(row[column]) if row[column] else None)
    return found


def test_seeds_are_one_row_and_differences_are_those_of_the_raw_values(finished):
    content = finished.content
    assert [row["name"] for row in content["rows"]] == ["fomm + memory", "fomm"]
    assert [[run["seed"] for run in row["runs"]] for row in content["rows"]] == [[1, 2], [1, 2]]
    for kind in (SAME, CROSS):
        masked = ("standard.psnr.disoccluded",) if kind == CROSS else ()
        for column in ("standard.l1", "paper.ssim", *masked):
            values = values_of(finished.folder, kind, column)
            assert list(values) == [COPY, *(f"{n} (seed {s})" for n in ("fomm + memory", "fomm") for s in (1, 2))]
            one, other = ([values[f"{n} (seed {s})"] for s in (1, 2)] for n in ("fomm + memory", "fomm"))
            stated = content["results"][kind]["fomm + memory"][column]
            means = [mean(values).value for values in one]
            assert stated["value"] == pytest.approx(np.mean(means))
            assert stated["deviation_of_seeds"] == pytest.approx(np.std(means, ddof=1))
            assert content["differences"][kind]["fomm + memory"][column] == vars(
                seeds_difference(one, other, paired=True)
            )
        assert list(content["differences"][kind]) == ["fomm + memory"]


def test_the_report_says_what_it_rests_on(finished, runs):
    text = (finished.folder / "report.md").read_text()
    assert "2 runs left out:" in text and f"- {runs.root}/empty: expected" in text
    assert "damaged.safetensors: expected a checkpoint" in text
    assert set(finished.content["left_out"]) == {str(runs.root / "empty"), str(runs.root / "damaged.safetensors")}
    assert "pairs and seeds" in text and "are not counted" in text and "scikit-image " in text
    standard, paper = text.split("| paper protocol, same identity")
    assert f"MCNet, VoxCeleb1 ({MARK})" in paper and "VoxCeleb1" not in standard
    row = next(line for line in paper.splitlines() if line.startswith("| MCNet, VoxCeleb1"))
    assert {"31.94", "0.825", "0.174", "0.0331", "1.203", "0.106"} <= {cell.strip() for cell in row.split("|")}
    memory, host = finished.content["rows"]
    assert memory["memory_parameters"] > 0 == host["memory_parameters"]
    assert memory["host_parameters"] == host["host_parameters"] and memory["gflop"] > host["gflop"] > 0


def test_what_was_measured_is_not_measured_again(finished, runs, monkeypatch, tmp_path):
    calls = []
    real = evaluation_scores.score
    monkeypatch.setattr(evaluation_scores, "score", lambda models, *a, **k: calls.append(1) or real(models, *a, **k))
    before = (finished.folder / "pairs.csv").read_bytes()
    assert benchmark(finished.folder, *finished.words) == finished.content
    assert not calls and (finished.folder / "pairs.csv").read_bytes() == before
    kept = sorted((finished.folder / "measured").glob("*/*.json"))
    assert len(kept) == 5
    kept[0].write_text("{damaged")
    assert benchmark(finished.folder, *finished.words) == finished.content
    assert len(calls) == 2 and (finished.folder / "pairs.csv").read_bytes() == before  # two kinds of one run
    benchmark(finished.folder, *runs.host, "--pairs", 3)
    assert len(calls) == 2 + 6


def test_a_number_names_the_baseline_and_one_seed_is_said_to_be_one(runs, tmp_path):
    content = benchmark(tmp_path, runs.host[0], runs.memory[0], "--pairs", 3, "--baseline", 2)
    assert content["baseline"] == "fomm + memory" and content["published"] is None
    assert "one seed each" in (tmp_path / "report.md").read_text()
    values = values_of(tmp_path, SAME, "standard.l1")
    expected = paired_difference(values["fomm (seed 1)"], values["fomm + memory (seed 1)"])
    assert content["differences"][SAME]["fomm"]["standard.l1"] == vars(expected)


def test_runs_that_predict_nonsense_are_named_and_the_rest_is_reported(
    runs, small_recipe, tmp_path, capsys, monkeypatch
):
    write_run(tmp_path / "broken", small_recipe, 5, memory=False)

    def load_broken(path, device):
        host, recipe = load_host(path, device)
        if path == str(tmp_path / "broken"):
            host.generator.final.register_forward_hook(lambda module, args, output: output * float("nan"))
        return host, recipe

    monkeypatch.setattr(benchmark_measure, "load_host", load_broken)
    content = benchmark(tmp_path / "out", runs.memory[0], tmp_path / "broken", "--pairs", 2)
    assert [row["name"] for row in content["rows"]] == ["fomm + memory"]
    assert "predicts values that are not finite" in content["left_out"][str(tmp_path / "broken")]
    words = ["--pairs", "2", "--output", str(tmp_path / "out")]
    content = benchmark(tmp_path / "out", tmp_path / "nothing", runs.memory[0], "--pairs", 2)
    assert content["left_out"][str(tmp_path / "nothing")].endswith("the baseline is 'fomm + memory' instead")
    assert main(["benchmark", str(tmp_path / "broken"), str(runs.memory[0]), *words]) == 2
    assert "the baseline cannot be measured" in capsys.readouterr().err


def test_real_clips_and_what_changes_when_a_clip_does(runs, clips_root, tmp_path):
    words = [runs.host[0], runs.memory[0], "--pairs", 3, "--set", "data.kind=clips", "--set", f"data.root={clips_root}"]
    content = benchmark(tmp_path, *words)
    assert content["pairs"] == {SAME: 3} and not any("disoccluded" in c for c in content["results"][SAME]["fomm"])
    assert "pairs of the baseline's data with data.kind=clips" in (tmp_path / "report.md").read_text()
    clip = clips_root / "test" / "b_1.mp4"
    before = list((tmp_path / "measured").iterdir())
    both = benchmark(tmp_path, *words, "--metrics", "l1,aucon")
    assert both["pairs"] == {SAME: 3, CROSS: 3} and both["results"][CROSS]["fomm"]["paper.aucon"]["value"] is None
    assert "n/a (needs" in (tmp_path / "report.md").read_text()
    os.utime(clip, ns=(0, clip.stat().st_mtime_ns + 10**9))
    benchmark(tmp_path, *words)
    assert len(before) == 1 and len(list((tmp_path / "measured").iterdir())) == 3


def test_what_numbers_come_from_is_in_the_key_of_what_is_kept():
    names = [file.name for file in formula_files()]
    assert names == sorted(names) and {"ssim.py", "registry.py", "aggregate.py", "panel.py", "scores.py"} <= set(names)


def test_wrong_arguments(runs, small_recipe, tmp_path, capsys):
    small = write_run(tmp_path / "small", dataclasses.replace(small_recipe, size=48), 0)
    one = str(runs.host[0])
    cases = [
        ([one, small], f"expected runs of one picture size, got {one}: 32×32, {small}: 48×48"),
        ([tmp_path / "none"], "expected a run that can be measured"),
        ([one, "--baseline", "x"], "--baseline x: expected one of 'fomm', or a number from 1 to 1"),
        ([one, tmp_path, "--baseline", "2"], f"--baseline 2: {tmp_path} cannot be measured"),
        ([f"a={one}", f"a={runs.memory[0]}"], "both called a: expected to differ only in their seed, loss.consistency"),
        ([one, "--set", "data.rates=3"], "did you mean 'data.rate'"),
        ([one, "--repeats", "-1"], "--repeats: expected 0 or more, got -1"),
    ]
    for words, message in cases:
        assert main(["benchmark", *map(str, words), "--output", str(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_rows_are_named_by_what_sets_them_apart(runs, small_recipe, tmp_path):
    mcm = write_run(tmp_path / "mcm", small_recipe, 1, words=["memory.identity_conditioning=false"])
    further = write_run(tmp_path / "further", small_recipe, 1, memory=False, step=9)
    found, failed = read_runs(list(map(str, [*runs.host, mcm, further, runs.host[1], f"mine={runs.memory[0]}"])))
    rows = rows_of(found)
    assert [row.name for row in rows] == [
        f"fomm [{runs.host[0]}]",
        "fomm + memory without IICM",
        f"fomm [{further}]",
        "mine",
    ]
    assert rows[0].seeds == [1, 2] and failed == {str(runs.host[1]): f"the same checkpoint as {runs.host[1]}"}
    twice = rows_of([found[0], dataclasses.replace(found[0], sha256="other")])
    assert twice[0].labels() == ["fomm (seed 1)", "fomm (seed 1) #2"]
    converted = [dataclasses.replace(run, step=0, sha256=run.path) for run in (found[0], found[0], found[2])]
    converted[1] = dataclasses.replace(converted[1], sha256="other")
    names = [row.name for row in rows_of(converted)]  # how they were trained is not known
    assert len(names) == 3 and names[2] == "fomm + memory without IICM"
    with pytest.raises(UserError, match="step is 3 and 9"):
        rows_of([dataclasses.replace(run, name="a") for run in (found[0], found[3])])


def test_one_seed_is_the_bootstrap_over_pairs():
    generator = np.random.default_rng(0)
    one, other = generator.normal(size=(2, 30)).tolist()
    assert seeds_difference([one], [other], paired=True) == paired_difference(one, other)
    one[3], other[5] = None, float("inf")
    assert seeds_difference([one], [other], paired=False).pairs == 28
    assert seeds_difference([one, one], [other, other], paired=False).pairs == 28
    assert seeds_difference([[1.0, None]] * 2, [[2.0, 3.0]] * 2, paired=True) is None


def test_the_interval_covers_the_seeds():
    generator = np.random.default_rng(1)
    seeds = generator.normal(size=(40, 1)) * np.ones((1, 10))  # pairs do not differ: only the seeds count
    found = seeds_difference(seeds.tolist(), np.zeros((40, 10)).tolist(), paired=True)
    half = 1.96 * seeds[:, 0].std(ddof=1) / np.sqrt(40)
    assert found.value == pytest.approx(seeds.mean())
    assert found.high - found.low == pytest.approx(2 * half, rel=0.06)
    base = (seeds - 3).tolist()
    paired = seeds_difference(seeds.tolist(), base, paired=True)
    apart = seeds_difference(seeds.tolist(), base, paired=False)
    assert (paired.low, paired.high) == (pytest.approx(3), pytest.approx(3))
    assert apart.value == pytest.approx(3) and apart.high - apart.low == pytest.approx(2**1.5 * half, rel=0.06)
    pairs = generator.normal(size=(1, 50)) * np.ones((4, 1))  # seeds do not differ
    same = seeds_difference(pairs.tolist(), np.zeros((4, 50)).tolist(), paired=True)
    single = paired_difference(pairs[0].tolist(), [0.0] * 50)
    assert same.high - same.low == pytest.approx(single.high - single.low, rel=0.06)


@pytest.mark.parametrize(
    ("first", "second", "paired"), [([], [[1.0]], False), ([[1.0, 2.0]], [[1.0]], False), ([[1.0]], [[1.0]] * 2, True)]
)
def test_seeds_that_do_not_fit_are_refused(first, second, paired):
    with pytest.raises(ValueError, match="one list of values per seed"):
        seeds_difference(first, second, paired=paired)


class Counted(nn.Module):
    """A host of one convolution with a memory of one number."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.discriminator = nn.Linear(100, 100)
        self.memory_compensation = nn.Linear(4, 5, bias=False)

    def keypoints(self, image):
        return image.mean()

    def generate(self, source, kp_source, kp_driving):
        assert kp_source.shape == ()
        return self.memory_compensation.weight.flatten()[:4] @ self.conv(source).mean((0, 2, 3))


def test_only_what_a_frame_uses_is_counted():
    host = Counted()
    found = cost(host, 8)
    assert found.host_parameters == 3 * 4 * 9 and found.memory_parameters == 20
    assert found.gflop * 1e9 == pytest.approx(2 * 4 * 27 * 64, abs=10)  # the dot product of four is less
    assert all(parameter.requires_grad for parameter in host.parameters())


def test_the_memory_s_operations_are_counted(small_host):
    found = cost(small_host, 32)
    assert found.memory_parameters == sum(p.numel() for p in small_host.memory.parameters())
    assert found.host_parameters == sum(p.numel() for p in small_host.parameters()) - found.memory_parameters


def test_times_are_medians_taken_in_turns():
    order = []

    def slow():
        order.append("slow")
        time.sleep(0.05 if len(order) < 4 else 0.004)  # the first calls do not count

    found = milliseconds({"slow": slow, "fast": lambda: order.append("fast")}, torch.device("cpu"), 3)
    assert order == ["slow", "fast"] * 4
    assert found["slow"] > 3.5 and found["fast"] < found["slow"]


def test_published_tables_are_whole():
    tables = published()["tables"]
    assert [(table["table"], table["data"], len(table["rows"])) for table in tables] == [
        ("Table 1 (a)", "VoxCeleb1", 9),
        ("Table 1 (b)", "VoxCeleb1", 6),
        ("Table 1 (b)", "CelebV", 9),
        ("Table 2", "VoxCeleb1", 8),
    ]
    assert all(
        text is None or 0 < float(text) < 100 for t in tables for row in t["rows"].values() for text in row.values()
    )
    same, cross = dict(published_rows(SAME)), dict(published_rows(CROSS))
    assert len(same) == 9 + 8 - 3 and len(cross) == 15  # FOMM, TPSN and MCNet stand in both tables
    assert same[f"X2face, VoxCeleb1 ({MARK})"] == {
        "ssim": "0.719",
        "psnr": "22.54",
        "l1": "0.0780",
        "akd": "7.687",
        "aed": "0.405",
    }
    assert cross[f"MCNet, CelebV ({MARK})"] == {"aucon": "0.885", "prmse": "2.10"}
