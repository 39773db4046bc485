"""`memcomp speed`: measures what it says, and prints it."""

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from memcomp import CompensationConfig, MemoryCompensation
from memcomp.experiments.cli import main
from memcomp.experiments.cost import Counted
from memcomp.experiments.recipe.load import load_recipe
from memcomp.experiments.speed import hosts, loading, training
from memcomp.experiments.speed.compensation import _in_own_process, operations
from memcomp.experiments.speed.options import CHANNELS, MODES, TrainingSpeedOptions

# 512 channels in bf16 take a CPU minutes
SMALL_MEMORY = partial(CompensationConfig.paper, memory_channels=8, memory_size=(4, 4))


def test_prints_a_line_for_each_size_and_mode(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "speed.json"
    arguments = ["--sizes", "64", "--modes", "inference", "training_eq4", "--repeats", "1", "--memory-channels", "8"]
    assert main(["speed", "compensation", *arguments, "--no-peak", "--output", str(output)]) == 0
    rows = json.loads(output.read_text())
    assert [(row["px"], row["mode"]) for row in rows] == [(64, "inference"), (64, "training_eq4")]
    assert all(row["plain_s"] > 0 and row["ours_s"] > 0 and row["placed_s"] > 0 for row in rows)
    assert all(row["placed_flop"] > row["ours_flop"] > 0 for row in rows)
    printed = capsys.readouterr().out
    assert "load average" in printed and printed.count("x\n") == 2


@pytest.mark.parametrize(("mode", "size"), [(mode, size) for mode in MODES for size in CHANNELS])
def test_a_read_by_place_costs_at_most_a_quarter_more(mode: str, size: int) -> None:
    """Than the paper's of the same memory, at each scale of a published generator: operations, not time."""
    paper, placed = (operations(variant, size, mode) for variant in ("ours", "placed"))
    assert paper < placed <= 1.25 * paper


@pytest.mark.parametrize(("channels", "side"), [(48, 32), (96, 16)])
def test_half_the_channels_cost_at_most_a_quarter_more_in_the_laboratory(channels: int, side: int) -> None:
    """Where all of them cost 1.44 and 1.24 times the paper's memory (experiments/results/evidence.md)."""
    size = {"memory_channels": 64, "memory_size": (8, 8)}
    configs = (CompensationConfig.paper(**size), CompensationConfig.placed(split="half", **size))
    found = []
    for config in configs:
        with FakeTensorMode(), torch.no_grad():
            pose, feature = torch.rand(1, 10, 2), torch.rand(1, channels, side, side)
            further = {"driving": pose, "visibility": feature[:, :1]} if config.driving else {}
            unit = MemoryCompensation([channels], 10, config)
            with Counted() as counted:
                unit(feature, pose, scale=0, **further)
        found.append(counted.flop)
    assert found[0] < found[1] <= 1.25 * found[0]


def test_without_a_further_word_it_is_the_compensation(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["speed", "--repeats", "0"]) == 2
    assert "--repeats: expected 1 or more, got 0" in capsys.readouterr().err
    words = ["--sizes", "64", "--modes", "inference", "--memory-channels", "8", "--no-peak"]
    assert main(["speed", *words, "--repeats", "2"]) == 0 and "best of 2" in capsys.readouterr().out
    assert main(["speed", "--repeats", "2", "compensation", *words]) == 0 and "best of 2" in capsys.readouterr().out


def test_the_start_and_heads(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["speed", "start", "--repeats", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    seconds = {line[:36].rstrip(): float(line[36:]) for line in lines[1:]}
    assert seconds["memcomp --version"] < seconds["import memcomp + MemoryCompensation"]
    monkeypatch.setattr("memcomp.experiments.speed.heads.FRAMES", {64: 2})
    assert main(["speed", "heads", "--rounds", "1", "--threads", "1"]) == 0
    assert " 64 px " in capsys.readouterr().out


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_the_plain_matrix_shows_in_the_peak() -> None:
    """128x128 queries by 1,024 keys are 67 MB, before the softmax and after; ours holds no such matrix."""
    ours, plain = (_in_own_process(variant, 128, "inference", 8) for variant in ("ours", "plain"))
    assert plain > 120
    assert ours < plain / 2


def test_data_times_made_clips_and_those_of_a_folder(tmp_path, clips_root, capsys, monkeypatch) -> None:
    threads = torch.get_num_threads()
    monkeypatch.setattr("memcomp.experiments.speed.data.run_one", lambda job, code: loading.main(job))
    few = ["--size", "32", "--pairs", "2", "--batch", "1", "--workers", "0", "1", "--rounds", "1", "--step", "0.01"]
    made = ["--clips", "1", "--frames", "6", "--key-frames", "3", "--output", str(tmp_path / "made.json")]
    assert main(["speed", "data", *few, *made]) == 0
    told = json.loads((tmp_path / "made.json").read_text())
    assert [row["case"] for row in told["rows"]] == ["cached", "a key frame every 3", "as prepare writes"]
    for row in told["rows"]:
        assert row["cpu_ms"] > 0 and row["batch_mb"] == 2 * 3 * 32**2 / 1e6  # bytes
        assert set(row["by_workers"]) == {"0", "1"}
        for found in row["by_workers"].values():
            assert found["pairs_per_second"] > 0 and 0 <= found["waiting"] < 1
    assert capsys.readouterr().out.count("ms CPU a pair") == 3
    torch.set_num_threads(threads)

    (tmp_path / "train").symlink_to(clips_root / "test")
    root, installed = ["--root", str(tmp_path)], tmp_path / "site" / "memcomp" / "experiments"
    assert main(["speed", "data", *root, "--against", str(tmp_path)]) == 2
    assert "expected a folder that `pip install --target` installed memcomp into" in capsys.readouterr().err
    installed.mkdir(parents=True)
    monkeypatch.setattr(
        "memcomp.experiments.speed.data.run_one", lambda job, code: ran.append((job, code)) or found_once
    )
    ran, found_once = [], {"cpu_ms": 5.0, "by_workers": {}, "batch_mb": 1.0}
    site = tmp_path / "site"
    assert main(["speed", "data", *root, "--rounds", "2", "--against", str(site), "--no-jitter"]) == 0
    assert [code for _, code in ran] == [None, site] * 4  # in turn
    assert all("data.augment.hue=0.0" in job["overrides"] for job, _ in ran)
    assert "cached (other code)" in capsys.readouterr().out


def test_data_names_the_folder_that_cannot_be_loaded(tmp_path, capsys) -> None:
    assert main(["speed", "data", "--root", str(tmp_path), "--rounds", "1"]) == 2
    assert f"{tmp_path}: loading its clips failed" in (said := capsys.readouterr().err) and "train" in said


def test_hosts_reports_parity_and_steps_of_each_recipe(tmp_path, head_cache, narrow, monkeypatch) -> None:
    monkeypatch.setattr(hosts, "CompensationConfig", SimpleNamespace(paper=SMALL_MEMORY))
    few = ["data.frames=2", f"data.cache={head_cache}", "loss.perceptual=null", "loss.pyramid_l1=1", *narrow]
    options = ["--size", "32", "--steps", "2", "--batch", "2", "--device", "cpu", "--no-compile"]
    recipes = ["--recipes", "demo/fomm_mcnet", "demo/fomm_detail"]
    assert main(["speed", "hosts", *few, *recipes, *options, "--half", "--output", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "hosts.json").read_text())
    assert [row["recipe"] for row in rows] == ["demo/fomm_mcnet", "demo/fomm_detail"]
    for row in rows:
        assert "failed" not in row, row
        assert row["attach_float32"] == row["attach_bf16"] == row["attach_channels_last"] == 0
        assert row["autocast_bf16"] > 0 and "half" not in row
        assert row["steps"] == 2 and row["loss_before"] != row["loss_after"]


@pytest.mark.parametrize("name", ["demo/mraa", "demo/facevid2vid"])
def test_hosts_leaves_half_precisions_out_on_a_cpu(name, monkeypatch) -> None:
    """Where they take minutes, and not even a picture is made in them."""
    monkeypatch.setattr(hosts, "CompensationConfig", SimpleNamespace(paper=SMALL_MEMORY))
    made, picture = [], hosts._picture
    monkeypatch.setattr(hosts, "_picture", lambda *args: made.append(args[-1]) or picture(*args))
    row = hosts.parity(load_recipe(name), torch.device("cpu"))
    assert made == 2 * ["float32", "channels_last"]
    assert row.pop("attach_float32") == row.pop("attach_channels_last") == 0
    assert "--half" in str(row.pop("half"))
    assert row == dict.fromkeys(("attach_bf16", "attach_fp16", "autocast_bf16", "autocast_fp16"))


def test_hosts_names_the_recipe_that_fails_and_goes_on(tmp_path) -> None:
    words = ["--recipes", "demo/fomm", "--size", "32", "--no-compile", "--output", str(tmp_path), "optim.lrr=1"]
    assert main(["speed", "hosts", *words]) == 0
    (row,) = json.loads((tmp_path / "hosts.json").read_text())
    assert "lrr" in row["failed"]


def test_hosts_stops_where_a_training_was_interrupted(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(hosts, "parity", lambda *arguments: {})
    monkeypatch.setattr(hosts, "train", lambda recipe, folder, progress: SimpleNamespace(finished=False))
    words = ["--recipes", "demo/fomm", "demo/mraa", "--size", "64", "--no-compile", "--output", str(tmp_path)]
    assert main(["speed", "hosts", *words]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert not (tmp_path / "hosts.json").exists()  # no row was whole


def test_animation_is_timed_both_ways_and_its_peaks_compared(small_recipe, monkeypatch, tmp_path, capsys):
    from memcomp.adapters import FOMM
    from memcomp.experiments.speed import animation

    monkeypatch.setattr(FOMM, "published", small_recipe.host.model)
    monkeypatch.setattr(animation, "SHORT", 1)
    monkeypatch.setattr(animation, "CompensationConfig", SimpleNamespace(paper=SMALL_MEMORY))
    words = ["--hosts", "fomm", "--size", "32", "--frames", "4", "--batch", "2", "--device", "cpu"]
    assert main(["speed", "animate", *words, "--minutes", "0.02", "--output", str(tmp_path / "rows.json")]) == 0
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "rows.json").read_text())
    assert [row["host"] for row in found["rows"]] == ["fomm", "fomm + memory"]
    assert all(row["batches"] == 2 and row["ratio"] > 0 and row["difference"] < 1e-3 for row in found["rows"])
    assert "| fomm + memory |" in printed and printed.count("1 s at 64 px: peak ") == 2
    assert 0.5 < found["peak_long_mb"] / found["peak_short_mb"] < 1.5 and found["peak_short_mb"] > 100
    assert main(["speed", "animate", *words, "--size", "33"]) == 2
    assert (
        main(["speed", "animate", "--hosts", "fom"]) == 2
        and "hosts: expected some of dagan, facevid2vid, fomm" in capsys.readouterr().err
    )


SMALL_STEP = ["loss.perceptual=null", "host.model.common_params.num_kp=4", "memory.memory_channels=8"]
SMALL_STEP += ["memory.memory_size=[4, 4]", "optim.clip=null"]


def test_training_steps_take_turns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "training.json"
    words = ["--recipe", "demo/fomm_mcnet", "--size", "32", "--batch", "1", "--rounds", "2", "--device", "cpu"]
    assert main(["speed", "training", *words, "--output", str(output), *SMALL_STEP]) == 0
    told = json.loads(output.read_text())
    assert [(row["what"], row["way"]) for row in told["rows"]] == [
        ("host", "plain"),
        ("host", "ours"),
        ("host + memory", "plain"),
        ("host + memory", "ours"),
    ]
    assert all(row["seconds"] > 0 and row["cpu"] > 0 and row["megabytes"] > 0 for row in told["rows"])
    assert told["ratios"]["with / without memory, ours: operations"] > 1
    assert "plain / ours, CPU time" in capsys.readouterr().out


def test_the_plain_training_step_is_the_same_step(tmp_path: Path) -> None:
    """Same pairs, same draws, nothing clipped: the gradients agree (Adam's first step would show only their signs)."""
    options = TrainingSpeedOptions(tuple(SMALL_STEP), "demo/fomm_mcnet", 32, 2, 1, "cpu")
    turns = training.set_up(options, tmp_path, torch.device("cpu"))
    for pair in (turns[:2], turns[2:]):
        plain, ours = (
            torch.cat([p.grad.flatten() for p in turn.run.host.parameters() if p.grad is not None]) for turn in pair
        )
        assert ours.norm() > 0 and (plain - ours).norm() < 1e-3 * ours.norm()


def test_training_steps_want_a_recipe_with_a_memory(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["speed", "training", "--recipe", "demo/fomm"]) == 2
    assert "demo/fomm: expected a recipe with a memory" in capsys.readouterr().err
