"""Checkpoints that are kept, damaged ones, recipes that change on the way, and who is told to stop."""

import multiprocessing
import os
import shutil
import signal
import time

import pytest
import torch
from safetensors.torch import load_file

from memcomp.experiments import cli
from memcomp.experiments.checkpoints import kept
from memcomp.experiments.checkpoints.run_file import load_run
from memcomp.experiments.checkpoints.trained import load_host, read_trained
from memcomp.experiments.errors import UserError, warn
from memcomp.experiments.interruption import belong_to_training, interruption, no_worker_left
from memcomp.experiments.recipe.load import load_recipe, with_overrides
from memcomp.experiments.studies.killed_training import is_running
from memcomp.experiments.training import loop as training
from memcomp.experiments.training.log import RunLog
from memcomp.experiments.training.loop import train


@pytest.fixture(scope="module")
def tiny(small_recipe):
    changes = ["optim.steps=4", "optim.batch_size=2", "data.identities=4", "log.held_out_pairs=2", "log.every=1"]
    changes += ["log.held_out_every=1", "log.sample_every=2", "log.checkpoint_every=1", "log.keep=3", "memory=null"]
    return with_overrides(small_recipe, changes, "test")


@pytest.fixture(scope="module")
def straight(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    train(tiny, folder, progress=False)
    return folder


@pytest.fixture
def run(straight, tmp_path):
    shutil.copytree(straight, tmp_path / "run")
    return tmp_path / "run"


def same(one, other, name="checkpoints/last.safetensors"):
    a, b = load_file(one / name), load_file(other / name)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def held_out(folder):
    rows = RunLog(folder / "log.csv", 4).rows
    return {int(row["step"]): float(row["held_out"]) for row in rows if row["step"] != "0"}


def test_the_last_ones_and_the_best_are_kept(straight):
    found = {path.name for path in (straight / "checkpoints").iterdir()}
    assert found == {"last.safetensors", "0000003.safetensors", "0000002.safetensors", "best.safetensors"}
    assert [load_run(file).step for file in kept.earlier(straight)] == [3, 2]
    losses = held_out(straight)
    best = load_run(straight / kept.BEST)
    assert best.step == min(losses, key=losses.get) and not best.optimizer()
    assert best.info["held_out"] == pytest.approx(losses[best.step])
    assert load_host(straight / kept.BEST)[1].optim.steps == 4


@pytest.mark.parametrize("damage", ["half", "nothing"])
def test_a_damaged_newest_falls_back_to_the_one_before(tiny, straight, run, damage, capsys):
    last = run / "checkpoints" / "last.safetensors"
    whole = last.read_bytes()
    last.write_bytes(whole[: len(whole) // 2] if damage == "half" else b"")
    (run / "model.safetensors").unlink()
    warn.cache_clear()
    assert read_trained(run).step == 3  # animate and the others read it too, and write nothing
    assert last.stat().st_size < len(whole)
    said = capsys.readouterr().err
    assert "last.safetensors" in said and "0000003.safetensors, of step 3" in said and len(said.splitlines()) == 1
    train(tiny, run, resume=True, progress=False)
    assert same(straight, run) and same(straight, run, "model.safetensors")
    assert [load_run(file).step for file in kept.earlier(run)] == [3, 2]
    for file in (run / "checkpoints").iterdir():
        file.write_bytes(b"x")
    with pytest.raises(UserError, match=r"last\.safetensors.*0000003\.safetensors"):
        train(tiny, run, resume=True, progress=False)


def test_without_hard_links_checkpoints_are_copied(tiny, straight, tmp_path, monkeypatch):
    def refused(*args):
        raise OSError("not supported")

    monkeypatch.setattr(os, "link", refused)
    train(tiny, tmp_path / "run", progress=False)
    assert same(straight, tmp_path / "run", "checkpoints/0000003.safetensors")


def test_minutes_make_a_checkpoint_due(tiny, tmp_path, monkeypatch):
    minute, plain = [0.0], training.step

    def slow(*args):
        minute[0] += 60 * 4
        return plain(*args)

    monkeypatch.setattr(training.time, "monotonic", lambda: minute[0])
    monkeypatch.setattr(training, "step", slow)
    changes = ["log.checkpoint_every=100", "log.checkpoint_minutes=7", "log.keep=9"]
    train(with_overrides(tiny, changes, "test"), tmp_path, progress=False)
    assert [load_run(file).step for file in kept.earlier(tmp_path)] == [2]


def test_the_checkpoint_comes_before_the_picture(tiny, tmp_path, monkeypatch):
    def draw(run, done):
        assert load_run(tmp_path / "run" / "checkpoints" / "last.safetensors").step == done
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "_draw", draw)
    with pytest.raises(KeyboardInterrupt):
        train(tiny, tmp_path / "run", progress=False)


def test_who_stops_a_run_does_not_wait_for_measurements_and_nothing_is_missing_later(
    tiny, straight, tmp_path, monkeypatch
):
    measured, plain = [], training._measure
    monkeypatch.setattr(training, "_measure", lambda run, done: measured.append(done) or plain(run, done))
    folder = tmp_path / "run"
    train(tiny, folder, stop_after=2, progress=False)
    assert measured == [1] and not (folder / "samples").exists()
    train(tiny, folder, resume="auto", progress=False)
    assert measured == [1, 2, 3, 4]
    assert same(straight, folder) and held_out(straight) == held_out(folder)
    assert {path.name for path in (folder / "samples").iterdir()} == {"0000002.png", "0000004.png"}


def test_leftovers_of_killed_writers_are_swept_and_nothing_else(tiny, run):
    ours = [".last-ab12_xyz.safetensors", ".0000002-ab12_xyz.safetensors"]
    for name in ours:
        (run / "checkpoints" / name).touch()
    (run / ".log-ab12_xyz.csv").touch()
    (run / ".model.safetensors.12.34").touch()
    (run / "samples" / ".0000002-ab12_xyz.png").touch()
    others = [run / ".notes", run / ".last-mine.safetensors", run / "samples" / ".keep"]
    for file in others:
        file.touch()
    train(tiny, run, resume=True, progress=False)
    assert sorted(run.rglob(".*")) == sorted(others)


def test_resume_auto_starts_or_goes_on(tiny, straight, tmp_path):
    assert train(tiny, tmp_path, resume="auto", stop_after=2, progress=False).step == 2
    assert train(tiny, tmp_path, resume="auto", progress=False).finished
    assert same(straight, tmp_path)


def test_a_changed_recipe_is_shown_whole_and_allowed_key_by_key(tiny, straight, tmp_path):
    train(tiny, tmp_path, stop_after=2, progress=False)
    other = with_overrides(tiny, ["optim.lr=0.5", "optim.clip=3", "loss.ssim=1"], "test")
    with pytest.raises(UserError) as refused:
        train(other, tmp_path, resume=True, allow=["optim.clip"], progress=False)
    said = str(refused.value)
    assert "loss.ssim=2.0, the recipe says 1.0; optim.lr=0.001, the recipe says 0.5" in said
    assert "--allow loss.ssim optim.lr" in said and "optim.clip" not in said
    assert train(other, tmp_path, resume=True, allow=["optim", "loss.ssim"], progress=False).finished
    assert load_recipe(tmp_path / "recipe.yaml") == other and not same(straight, tmp_path)
    (changed,) = read_trained(tmp_path).info["changed"]
    assert changed.startswith("from step 2 on: loss.ssim: 2.0 → 1.0; optim.clip: 10.0 → 3.0")


@pytest.mark.parametrize(
    ("change", "allow", "said"),
    [
        ("size=64", [], r"size=32, the recipe says 64 \(size can never change\); the run's own"),
        ("host.model.generator_params.max_features=9", [], r"generator_params\.max_features can never change"),
        ("size=64", ["size"], r"--allow size: can never change in a run; nor can host, memory"),
        ("optim.lr=1", ["data"], r"--allow data: can never change"),
        ("optim.lr=1", ["optim.lrr"], r"--allow optim\.lrr: expected a key of a recipe; did you mean optim\.lr\?"),
    ],
)
def test_what_can_never_change(tiny, run, change, allow, said):
    with pytest.raises(UserError, match=said):
        train(with_overrides(tiny, [change], "test"), run, resume=True, allow=allow, progress=False)


def test_the_command(tiny, tmp_path, capsys):
    (tmp_path / "tiny.yaml").write_text(tiny.to_yaml())
    words = ["train", str(tmp_path / "tiny.yaml"), "--output", str(tmp_path / "my run"), "--resume-auto"]
    assert cli.main(words) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"measure it with: memcomp evaluate '{tmp_path / 'my run'}'"
    assert cli.main([*words, "optim.steps=5"]) == 2
    assert "--allow optim.steps goes on" in capsys.readouterr().err
    assert cli.main([*words, "--allow", "optim.steps", "optim.steps=5"]) == 0
    assert read_trained(tmp_path / "my run").step == 5


def test_only_a_second_sigint_interrupts():
    with interruption() as received:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert len(received) == 3
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def _deaf(ready):
    belong_to_training(0)
    ready.set()
    time.sleep(600)


def test_a_reader_that_does_not_end_is_ended():
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    with no_worker_left():
        reader = context.Process(target=_deaf, args=(ready,), daemon=True)
        reader.start()
        assert ready.wait(60)
        for ask in (lambda: os.kill(reader.pid, signal.SIGINT), reader.terminate):
            ask()
        reader.join(0.2)
        assert reader.is_alive()
    assert reader.exitcode == -signal.SIGKILL


def _late(begun, reader):
    parent = os.getppid()
    reader.value = os.getpid()
    begun.set()
    while os.getppid() == parent:
        time.sleep(0.01)
    belong_to_training(0)  # torch's own way, which compares its parent with that of now, would see no end
    time.sleep(600)


def _training(context, begun, reader):
    context.Process(target=_late, args=(begun, reader)).start()
    time.sleep(600)


def test_a_reader_that_begins_when_the_training_is_gone_ends():
    context = multiprocessing.get_context("fork")
    begun, reader = context.Event(), context.Value("i")
    killed = context.Process(target=_training, args=(context, begun, reader))
    killed.start()
    began = begun.wait(60)
    killed.kill()
    killed.join()
    assert began
    end = time.monotonic() + 60
    while (there := is_running(reader.value)) and time.monotonic() < end:
        time.sleep(0.05)
    if there:
        os.kill(reader.value, signal.SIGKILL)
    assert not there


def test_a_log_whose_last_row_is_cut_is_read(tmp_path):
    (tmp_path / "log.csv").write_text("step,loss,held_out\n0,,2\n1,1.5,\n2,1")
    log = RunLog(tmp_path / "log.csv", 2)
    assert [row["step"] for row in log.rows] == ["0", "1"]
    log.complete(1, {"held_out": 0.5})
    assert log.has("held_out", 1) and log.column("held_out") == [2.0, 0.5] and log.column("held_out", above=0) == [0.5]
