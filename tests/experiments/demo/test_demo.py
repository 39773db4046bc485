"""`memcomp demo` and `memcomp compare` on a host of a few weights; the shipped host; trainings side by side."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import imageio.v3 as iio
import numpy as np
import pytest
from safetensors.torch import load_file

from memcomp.experiments.benchmark import compare
from memcomp.experiments.checkpoints import shipped
from memcomp.experiments.checkpoints.publish import publish
from memcomp.experiments.checkpoints.run_file import load_run
from memcomp.experiments.cli import main
from memcomp.experiments.demo import demo
from memcomp.experiments.demo import figures as demo_pictures
from memcomp.experiments.errors import UserError
from memcomp.experiments.training.side_by_side import Job, train_side_by_side

WORDS = [
    "device=cpu",
    "threads=1",
    "size=32",
    "host.model.common_params.num_kp=4",
    "host.model.kp_detector_params.block_expansion=4",
    "host.model.kp_detector_params.num_blocks=2",
    "host.model.generator_params.block_expansion=4",
    "host.model.generator_params.max_features=8",
    "host.model.generator_params.num_bottleneck_blocks=1",
    "host.model.generator_params.dense_motion_params.block_expansion=4",
    "host.model.generator_params.dense_motion_params.num_blocks=2",
    "data.identities=3",
    "data.frames=4",
    "optim.batch_size=2",
    "log.every=1",
    "log.held_out_pairs=2",
]


@pytest.fixture
def quick(monkeypatch, head_cache):
    """Trainings run in this process, one after the other; few people, short videos. Returns the recipes' overrides."""
    commands = []

    def train(jobs, steps):
        for job in jobs:
            commands.append(job.command()[3:])
            assert main(commands[-1]) == 0

    for module in (demo, compare):
        monkeypatch.setattr(module, "train_side_by_side", train)
    monkeypatch.setattr("os.cpu_count", lambda: 0)  # heads are rendered in this process
    monkeypatch.setattr("memcomp.experiments.data.sources.HELD_OUT_PEOPLE", 2)
    monkeypatch.setattr("memcomp.experiments.evaluation.pairs.PEOPLE", 6)
    monkeypatch.setattr(demo_pictures, "FRAMES", 5)
    return [*WORDS, f"data.cache={head_cache}"], commands


@pytest.fixture
def ready(quick, monkeypatch, tmp_path, head_cache):
    """A host, trained for two steps, in place of the shipped one."""
    words, _ = quick
    run = tmp_path / "host_run"
    monkeypatch.setattr("memcomp.experiments.data.sources.cache_folder", lambda given: given or head_cache)
    monkeypatch.setattr("memcomp.experiments.evaluation.pairs.cache_folder", lambda given: given or head_cache)
    words = [word for word in words if not word.startswith("data.cache")]
    assert main(["train", "demo/fomm", *words, "optim.steps=2", "--output", str(run)]) == 0
    assert main(["evaluate", str(run), "--pairs", "2", "--output", str(tmp_path / "measured")]) == 0
    weights = tmp_path / "weights"
    publish(run, tmp_path / "measured" / "metrics.json", "memcomp train demo/fomm", weights)
    for pattern in ("heads_reader.*", "true_motion_*", "whole_*"):
        for file in shipped.weights_folder().glob(pattern):
            shutil.copy(file, weights)
    monkeypatch.setattr(shipped, "weights_folder", lambda: weights)
    return run, weights


def test_the_demo_from_the_shipped_host(quick, ready, tmp_path, capsys):
    words, commands = quick
    folder = tmp_path / "demo"
    commands.clear()
    command = ["demo", *words, "--steps", "3", "--pairs", "3", "--output", str(folder)]
    assert main(command) == 0
    printed = capsys.readouterr().out
    metrics = json.loads((folder / "metrics.json").read_text())

    # the two trainings differ in the recipe only, and start from the very same host
    alone, memory = commands
    assert [word for word in alone if word not in memory] == ["demo/fomm_detail", str(folder / "host")]
    assert [word for word in memory if word not in alone] == ["demo/fomm_mcnet", str(folder / "host_memory")]
    assert f"init={ready[1] / 'demo_fomm.safetensors'}" in alone and "optim.steps=3" in alone

    for part, control in (("laboratory", "host, one block deeper"), ("whole", "host, as many operations")):
        assert set(metrics[part]["differences"]) == {"host", control}
        placed = metrics[part]["results"]["same identity"]["host + memory read by place"]
        assert f"{placed['standard.l1']['value']:.4f}" in printed
        assert (folder / f"{part}.png").stat().st_size > 1000 and (folder / f"{part}_pairs.csv").is_file()

    rows = ["copy of the source", "the host before", "host alone, +3 steps", "host + memory, +3 steps"]
    for kind in ("same identity", "cross identity"):
        assert list(metrics["results"][kind]) == rows
        assert all(f"{kind}: {row}" in printed for row in rows)
        means = {row: metrics["results"][kind][row]["standard.l1"]["value"] for row in rows}
        assert f"{means[rows[3]]:.4f}" in printed
        difference = metrics["differences"][kind]["standard.l1"]["value"]
        assert difference == pytest.approx(means[rows[3]] - means[rows[2]])
        assert len(set(means.values())) == 4
        for metric in ("akd", "prmse"):  # without any extra package
            assert all(metrics["results"][kind][row][f"standard.{metric}"]["pairs"] == 3 for row in rows)
    assert printed.count("regressor of procedural heads") == 2  # its error, of landmarks and of pose
    assert "standard protocol" in printed and "paper protocol" in printed and "s in all" in printed
    assert "Versions: python" in printed
    assert (folder / "report.md").read_text().split("\n\n")[1] in printed

    with (folder / "pairs.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2 * 4 * 3
    for name in ("same_identity", "cross_identity"):
        video = iio.imread(folder / f"{name}.mp4", plugin="pyav")
        assert video.shape == (5, 28 + 3 * 192, 4 * 192, 3)
        assert np.abs(video[0].astype(int) - video[1]).mean() > 1  # the heads turn
    for name in ("strips", "losses", "memory", "differences"):
        assert iio.imread(folder / f"{name}.png")[..., :3].std() > 10

    # again: the trainings are done, and the same numbers come out
    commands.clear()
    assert main(command) == 0
    assert all("--resume" in words for words in commands)
    assert json.loads((folder / "metrics.json").read_text())["results"] == metrics["results"]
    assert main([*command[:-1], str(folder), "--seed", "5"]) == 2
    assert "holds a demo with seed=1, not 5" in capsys.readouterr().err


def test_the_demo_from_scratch_trains_the_host_first(quick, monkeypatch, tmp_path):
    words, commands = quick
    monkeypatch.setattr(shipped, "weights_folder", lambda: tmp_path / "nothing")
    seen = {}
    monkeypatch.setattr(demo, "write_pictures", lambda *arguments: seen.update(models=arguments[2]))
    folder = tmp_path / "demo"
    options = ["--from-scratch", "--host-steps", "2", "--steps", "2", "--pairs", "2", "--output", str(folder)]
    assert main(["demo", *options, *words]) == 0
    recipes = ["demo/fomm", "demo/fomm_detail", "demo/fomm_detail", "demo/fomm_mcnet"]
    assert [command[1] for command in commands] == recipes
    motion, host = (folder / f"from_scratch_{name}" / "model.safetensors" for name in ("fomm", "fomm_detail"))
    assert "init=null" in commands[0] and f"init={motion}" in commands[1]
    assert all(f"init={host}" in command for command in commands[2:])
    assert seen["models"]["host + memory"].memory is not None and seen["models"]["host"].memory is None


def test_with_the_identity_start_both_trainings_begin_as_the_host(quick, ready, tmp_path):
    import torch

    from memcomp.experiments.checkpoints.build import build_host, initialise
    from memcomp.experiments.checkpoints.trained import load_host
    from memcomp.experiments.recipe.load import load_recipe

    words, _ = quick
    recipe = load_recipe(demo.MEMORY_RECIPE, words)
    assert (recipe.memory.config.start, recipe.init) == ("identity", "demo")
    host = build_host(recipe)
    initialise(host, str(ready[0]))
    original, _ = load_host(ready[0])
    source, driving = torch.rand(2, 2, 3, 32, 32)
    assert torch.equal(host.eval()(source, driving).prediction, original(source, driving).prediction)


def test_the_two_recipes_differ_in_the_memory_only():
    from memcomp.experiments.recipe.load import load_recipe

    alone, memory = (load_recipe(name).to_dict() for name in (demo.HOST_RECIPE, demo.MEMORY_RECIPE))
    memory["memory"], memory["init"] = alone["memory"], alone["init"]
    memory["loss"]["consistency"] = alone["loss"]["consistency"]
    alone["optim"] |= {key: memory["optim"][key] for key in ("steps", "memory_lr")}  # the demo sets the steps of both
    assert memory == alone


@pytest.mark.parametrize("damage", ["weights", "description", "sha", "content"])
def test_a_missing_or_changed_shipped_host_is_named(ready, damage, tmp_path, capsys):
    weights = ready[1]
    about = json.loads((weights / "demo_fomm.json").read_text())
    assert shipped.shipped_host() == (weights / "demo_fomm.safetensors", about)
    assert about["steps"] == 2 and about["metrics"]["results"]["same identity"]["fomm"]["standard.l1"]["pairs"] == 2
    if damage == "weights":
        (weights / "demo_fomm.safetensors").unlink()
    elif damage == "description":
        (weights / "demo_fomm.json").write_text("{")
    elif damage == "sha":
        (weights / "demo_fomm.json").write_text("{}")
    else:
        data = bytearray((weights / "demo_fomm.safetensors").read_bytes())
        data[-1] ^= 1
        (weights / "demo_fomm.safetensors").write_bytes(data)
    assert main(["demo", "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert (error.startswith("memcomp: error:") and "demo_fomm" in error) or "the demo's host" in error
    assert "--from-scratch" in error and error.count("\n") == 1


def test_a_host_trained_with_paths_of_this_machine_is_not_published(ready, quick, tmp_path):
    words, _ = quick
    run = tmp_path / "other"
    assert main(["train", "demo/fomm", *words, "optim.steps=1", "--output", str(run)]) == 0
    before = (ready[1] / "demo_fomm.json").read_bytes()
    with pytest.raises(UserError, match=r"trained with data.cache="):
        publish(run, tmp_path / "measured" / "metrics.json", "command", ready[1])
    assert (ready[1] / "demo_fomm.json").read_bytes() == before


def test_compare_measures_both_recipes_on_the_same_pairs(quick, tmp_path, capsys):
    words, _ = quick
    folder = tmp_path / "out"
    command = ["compare", "demo/fomm", "demo/fomm_mcnet", *words, "init=null", "optim.steps=2", "--pairs", "3"]
    assert main([*command, "--output", str(folder)]) == 0
    report = (folder / "report.md").read_text()
    assert report.strip() in capsys.readouterr().out and "Versions: python" in report
    metrics = json.loads((folder / "metrics.json").read_text())
    assert list(metrics["results"]["same identity"]) == ["copy of the source", "fomm", "fomm + memory"]
    for label, run in (("fomm", "fomm"), ("fomm + memory", "fomm_memory")):
        with (folder / run / "log.csv").open() as file:
            held_out = [float(row["held_out"]) for row in csv.DictReader(file) if row["held_out"]]
        assert metrics["held_out"][label]["start"] == held_out[0]
        assert metrics["held_out"][label]["end"] == pytest.approx(np.mean(held_out[-20:]))
    assert str(tmp_path) not in report + json.dumps(metrics)
    assert "data.cache" not in metrics["command"] and "optim.steps=2" in metrics["command"]
    assert main(["compare", "demo/fomm", "demo/fomm", "--output", str(folder)]) == 2


def test_trainings_run_at_once_and_go_on_after_a_stop(head_cache, tmp_path):
    words = (*WORDS, f"data.cache={head_cache}", "optim.steps=3")
    jobs = [Job(name, "demo/fomm", (*words, f"seed={i}"), tmp_path / name) for i, name in enumerate("ab")]
    train_side_by_side(jobs, 3)
    assert [job.step() for job in jobs] == [3, 3]
    first, second = (load_file(job.output / "model.safetensors") for job in jobs)
    assert any(not first[key].equal(second[key]) for key in first)
    assert jobs[0].command()[-1] == "--resume"
    assert Job("c", "demo/fomm", (), tmp_path / "c").step() == 0


def test_ctrl_c_ends_both_trainings_with_a_checkpoint(head_cache, tmp_path):
    words = (*WORDS, f"data.cache={head_cache}", "optim.steps=100000", "log.held_out_every=100000")
    jobs = [Job(name, "demo/fomm", words, tmp_path / name) for name in "ab"]
    script = tmp_path / "script.py"
    script.write_text(
        "import signal\n"
        "from pathlib import PosixPath, WindowsPath\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # which a background job starts without
        "from memcomp.experiments.training.side_by_side import Job, train_side_by_side\n"
        f"train_side_by_side({jobs!r}, 100000)\n"
    )
    process = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.PIPE, start_new_session=True)
    deadline = time.monotonic() + 180
    while min(job.step() for job in jobs) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does
    error = process.communicate(timeout=60)[1].decode()
    assert error.rstrip().endswith("KeyboardInterrupt"), error
    for job in jobs:
        assert load_run(job.output / "checkpoints" / "last.safetensors").step >= 2
        assert "stopped after step" in (job.output / "train.txt").read_text()
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # nobody of its group is left


def test_a_training_that_fails_is_shown_with_its_last_line(tmp_path):
    job = Job("broken", "demo/fomm", ("size=x",), tmp_path / "run")
    with pytest.raises(UserError, match=r"broken: training failed, see .*train.txt: memcomp: error: .*size: expected"):
        train_side_by_side([job], 3)


def test_the_package_has_a_shipped_host_that_fits_its_recipe():
    folder = shipped.weights_folder()
    path, about = shipped.shipped_host()
    assert path.parent == folder and path.stat().st_size <= 5e6
    from memcomp.experiments.checkpoints.trained import load_host
    from memcomp.experiments.recipe.load import load_recipe, recipe_from_dict

    _, recipe = load_host(path)
    assert recipe.host == load_recipe(demo.HOST_RECIPE).host and recipe.size == load_recipe(demo.HOST_RECIPE).size
    assert recipe_from_dict(about["recipe"], "its description") == recipe and about["metrics"]["results"]
