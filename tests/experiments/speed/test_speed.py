"""`memcomp speed`: measures what it says, and prints it."""

import json
from pathlib import Path

import pytest

from memcomp.experiments.cli import main
from memcomp.experiments.speed.compensation import _in_own_process


def test_prints_a_line_for_each_size_and_mode(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "speed.json"
    arguments = ["--sizes", "64", "--modes", "inference", "training_eq4", "--repeats", "1", "--memory-channels", "8"]
    assert main(["speed", "compensation", *arguments, "--no-peak", "--output", str(output)]) == 0
    rows = json.loads(output.read_text())
    assert [(row["px"], row["mode"]) for row in rows] == [(64, "inference"), (64, "training_eq4")]
    assert all(row["plain_s"] > 0 and row["ours_s"] > 0 for row in rows)
    printed = capsys.readouterr().out
    assert "load average" in printed and printed.count("x\n") == 2


def test_wrong_repeats_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["speed", "--repeats", "0"]) == 2
    assert "--repeats" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_the_plain_matrix_shows_in_the_peak() -> None:
    """128x128 queries by 1,024 keys are 67 MB, before the softmax and after; ours holds no such matrix."""
    ours, plain = (_in_own_process(variant, 128, "inference", 8) for variant in ("ours", "plain"))
    assert plain > 120
    assert ours < plain / 2


def test_hosts_reports_parity_and_steps_of_each_recipe(tmp_path, head_cache, narrow) -> None:
    from memcomp.experiments.speed.hosts import main as measure

    few = ["data.frames=2", f"data.cache={head_cache}", "loss.perceptual=null", "loss.pyramid_l1=1", *narrow]
    options = ["--size", "32", "--steps", "2", "--batch", "2", "--device", "cpu", "--no-compile"]
    measure([*few, "--recipes", "demo/fomm_mcnet", "demo/fomm_detail", *options, "--output", str(tmp_path)])
    rows = json.loads((tmp_path / "hosts.json").read_text())
    assert [row["recipe"] for row in rows] == ["demo/fomm_mcnet", "demo/fomm_detail"]
    for row in rows:
        assert "failed" not in row, row
        assert row["attach_float32"] == row["attach_bf16"] == row["attach_channels_last"] == 0
        assert row["steps"] == 2 and row["loss_before"] != row["loss_after"]


def test_hosts_names_the_recipe_that_fails_and_goes_on(tmp_path) -> None:
    from memcomp.experiments.speed.hosts import main as measure

    measure(["--recipes", "demo/fomm", "--size", "32", "--no-compile", "--output", str(tmp_path), "optim.lrr=1"])
    (row,) = json.loads((tmp_path / "hosts.json").read_text())
    assert "lrr" in row["failed"]
