"""What shows how a training goes: the use of the memory in log.csv, TensorBoard, the last line."""

import csv
import math
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from memcomp.experiments import cli
from memcomp.experiments.errors import warn
from memcomp.experiments.inspection.usage import USAGE
from memcomp.experiments.recipe.load import with_overrides
from memcomp.experiments.training import board, log
from memcomp.experiments.training.held_out import HeldOut
from memcomp.experiments.training.loop import train

LAST = "checkpoints/last.safetensors"


@pytest.fixture(scope="module")
def recipe(small_recipe):
    changes = ["optim.steps=5", "optim.batch_size=2", "data.identities=4", "log.held_out_pairs=3", "log.every=1"]
    changes += ["log.held_out_every=2", "log.sample_every=2", "log.checkpoint_every=2", "loss.consistency=1"]
    return with_overrides(small_recipe, changes, "test")


@pytest.fixture(scope="module")
def straight(recipe, tmp_path_factory):
    """Folder of a run of five steps without a break."""
    folder = tmp_path_factory.mktemp("straight")
    train(recipe, folder, progress=False)
    return folder


def table(folder):
    with (folder / "log.csv").open(newline="") as file:
        return {int(row["step"]): row for row in csv.DictReader(file)}


def warnings(capsys):
    return [line for line in capsys.readouterr().err.splitlines() if "warning" in line]


def test_the_use_of_the_memory_is_measured_now_and_then(straight):
    rows = table(straight)
    assert all(rows[step]["held_out"] for step in range(6))
    for name in USAGE:
        measured = {step: float(row[name]) for step, row in rows.items() if row[name]}
        assert set(measured) == {0, 2, 4, 5}
        assert all(value > 0 for step, value in measured.items() if step)
        assert name == "memory_change" or all(value <= 1 for value in measured.values())
    assert float(rows[0]["memory_entropy"]) > 0.8  # attention starts wide
    assert (straight / "usage.png").is_file()


def test_to_watch_a_training_changes_no_bit_of_it(recipe, straight, tmp_path, monkeypatch):
    monkeypatch.setattr(HeldOut, "usage", lambda *_: {})
    monkeypatch.setattr(board, "find_spec", lambda name: None)
    train(recipe, tmp_path, progress=False)
    assert not (tmp_path / board.FOLDER).exists() and not set(USAGE) & set(table(tmp_path)[0])
    one, other = load_file(straight / LAST), load_file(tmp_path / LAST)
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_a_run_whose_log_lacks_the_columns_goes_on(recipe, straight, tmp_path):
    train(recipe, tmp_path, stop_after=3, progress=False)
    rows = list(table(tmp_path).values())
    with (tmp_path / "log.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [name for name in rows[0] if name not in USAGE], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    train(recipe, tmp_path, resume=True, progress=False)
    found = table(tmp_path)
    for name in USAGE:
        assert [found[step][name] for step in (0, 2)] == ["", ""]
        assert [found[step][name] for step in (4, 5)] == [table(straight)[step][name] for step in (4, 5)]


def test_a_host_without_memory_has_no_such_columns(recipe, tmp_path):
    alone = with_overrides(recipe, ["memory=null", "loss.consistency=0", "optim.steps=1"], "test")
    train(alone, tmp_path, progress=False)
    assert not set(USAGE) & set(table(tmp_path)[0]) and not (tmp_path / "usage.png").exists()


# ---- TensorBoard -----------------------------------------------------------------------------------------------------


def shown(folder):
    """What TensorBoard would show of a run: tag → step → value; and the steps of its pictures."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulator.EventAccumulator(str(folder / board.FOLDER), {"images": 0, "scalars": 0})
    found.Reload()
    scalars = {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}
    assert all(len(dict(events)) == len(events) for events in scalars.values())  # no step comes twice
    return {tag: dict(events) for tag, events in scalars.items()}, [event.step for event in found.Images("samples")]


def assert_shown_as_logged(folder):
    scalars, pictures = shown(folder)
    rows = table(folder)
    assert set(scalars) == set(rows[5]) - {"step"}
    for tag, values in scalars.items():
        logged = {step: float(row[tag]) for step, row in rows.items() if row[tag]}
        assert values == pytest.approx(logged, rel=1e-6), tag
    assert pictures == [2, 4, 5]


def test_tensorboard_shows_what_is_logged(straight):
    assert_shown_as_logged(straight)


def test_a_run_that_goes_on_shows_no_step_twice(recipe, tmp_path):
    pytest.importorskip("tensorboard")
    train(recipe, tmp_path, stop_after=4, progress=False)
    shutil.copy(tmp_path / LAST, tmp_path / "kept")
    train(recipe, tmp_path, resume=True, progress=False)
    (tmp_path / "model.safetensors").unlink()
    shutil.copy(tmp_path / "kept", tmp_path / LAST)  # as if killed behind the checkpoint of step 4
    train(recipe, tmp_path, resume=True, progress=False)
    assert len(list((tmp_path / board.FOLDER).iterdir())) == 3
    assert_shown_as_logged(tmp_path)


def test_a_board_that_cannot_be_written_is_told_once_and_stops_nothing(recipe, tmp_path, capsys):
    pytest.importorskip("tensorboard")
    (tmp_path / board.FOLDER).write_text("a file")
    warn.cache_clear()
    assert train(with_overrides(recipe, ["optim.steps=2"], "test"), tmp_path, progress=False).finished
    (line,) = warnings(capsys)
    assert "tfevents" in line and "cannot be written" in line


def test_a_full_disk_ends_the_board_not_the_run(tmp_path, capsys):
    pytest.importorskip("tensorboard")
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    warn.cache_clear()
    full = board.Board(tmp_path / board.FOLDER / "events.out.tfevents.1", 0)
    full.file = Path("/dev/full")
    for step in (1, 2):
        full.scalars(step, {"loss": math.nan})
    (line,) = warnings(capsys)
    assert "/dev/full: cannot be written (No space left on device)" in line


def test_a_tensorboard_that_cannot_be_imported_is_told(tmp_path, capsys, monkeypatch):
    warn.cache_clear()
    monkeypatch.setattr(board, "find_spec", lambda name: True)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert board.Board.beside(tmp_path, 0) is None
    (line,) = warnings(capsys)
    assert "TensorBoard is installed but cannot be imported" in line


# ---- the last line ---------------------------------------------------------------------------------------------------


def test_a_training_ends_with_the_command_that_measures_it(recipe, tmp_path, capsys, monkeypatch):
    (tmp_path / "mine.yaml").write_text(recipe.to_yaml())
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "mine.yaml", "optim.steps=1", "--output", "runs/of mine"]) in (0, None)
    told = capsys.readouterr().out.splitlines()[-1]
    assert told == "measure it with: memcomp evaluate 'runs/of mine'"
    assert cli.main(["evaluate", "runs/of mine", "--pairs", "2"]) in (0, None)
    assert (tmp_path / "runs" / "of mine" / "evaluation").is_dir()


def test_rates_forget_the_first_step(monkeypatch):
    now = 0.0
    monkeypatch.setattr(log.time, "perf_counter", lambda: now)
    clock = log.Clock()
    told = []
    for wait, work in ((10.0, 50.0), (0.5, 0.5), (0.5, 0.5), (0.0, 2.0)):
        now += wait
        clock.data_is_here()
        now += work
        told.append(clock.step_is_done(8))
        clock.restart()
    assert told[0] == (pytest.approx(8 / 60), pytest.approx(10 / 60))
    assert told[1] == told[2] == (pytest.approx(8), pytest.approx(0.5))
    assert told[3] == (pytest.approx(8 / 1.05), pytest.approx(0.5 * 0.95 / 1.05))
