"""Training: exact resumption, interruption, what is skipped, what is written."""

import csv
import json
import math
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from memcomp.experiments.checkpoints.build import build_host
from memcomp.experiments.checkpoints.run_file import load_run, save_run
from memcomp.experiments.checkpoints.trained import load_host, read_trained
from memcomp.experiments.data.sources import held_out_pairs, training_pairs
from memcomp.experiments.errors import UserError
from memcomp.experiments.processes import Processes
from memcomp.experiments.recipe.load import load_recipe, with_overrides
from memcomp.experiments.training import loop as training
from memcomp.experiments.training import loss as losses
from memcomp.experiments.training.loop import train
from memcomp.experiments.training.undone import Undone

TIMES = ("images_per_second", "waiting")


@pytest.fixture(scope="session")
def tiny(small_recipe):
    """The small recipe, for a handful of steps on a few heads."""
    changes = ["optim.steps=4", "optim.batch_size=4", "optim.warmup=2", "data.identities=4", "log.held_out_pairs=6"]
    changes += ["log.every=1", "log.held_out_every=2", "log.sample_every=100", "log.checkpoint_every=2"]
    changes += ["data.augment.hue=0.1", "loss.consistency=1"]
    return with_overrides(small_recipe, changes, "test")


@pytest.fixture(scope="session")
def straight(tiny, tmp_path_factory):
    """Folder of a run of four steps without a break."""
    folder = tmp_path_factory.mktemp("straight")
    train(tiny, folder, progress=False)
    return folder


def rows(folder):
    with (folder / "log.csv").open() as file:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]


def assert_same(folder, other, name="checkpoints/last.safetensors"):
    a, b = load_file(folder / name), load_file(other / name)
    assert a.keys() == b.keys()
    assert [key for key in a if not torch.equal(a[key], b[key])] == []


@pytest.mark.parametrize("workers", [(0, 0), (0, 2), (2, 0)])
def test_resuming_gives_every_bit_of_a_run_without_a_break(tiny, straight, tmp_path, workers):
    for resume, count in zip((False, True), workers, strict=True):
        recipe = with_overrides(tiny, [f"data.workers={count}"], "test")
        result = train(recipe, tmp_path, resume=resume, stop_after=None if resume else 2, progress=False)
        assert result.finished == resume
        assert result.step == (4 if resume else 2)
    assert_same(straight, tmp_path)
    assert_same(straight, tmp_path, "model.safetensors")
    assert rows(straight) == rows(tmp_path)


def test_resuming_after_a_kill_forgets_what_was_logged_behind_the_checkpoint(tiny, straight, tmp_path):
    train(tiny, tmp_path, stop_after=3, progress=False)
    with (tmp_path / "log.csv").open("a") as file:
        file.write("4,1.0\n")
    train(tiny, tmp_path, resume=True, progress=False)
    assert rows(straight) == rows(tmp_path)
    assert train(tiny, tmp_path, resume=True, progress=False).finished  # a finished run: nothing to do


def test_a_run_leaves_its_files(tiny, straight):
    found = {str(path.relative_to(straight)) for path in straight.rglob("*") if path.is_file()}
    found = {name for name in found if not name.startswith("tensorboard/")}  # there where it is installed
    pictures, pretrained = {"losses.png", "usage.png", "samples/0000004.png"}, {"config.json", "model.safetensors"}
    checkpoints = {f"checkpoints/{name}.safetensors" for name in ("last", "0000002", "best")}
    assert found == {"recipe.yaml", "log.csv"} | checkpoints | pictures | pretrained
    assert load_recipe(straight / "recipe.yaml") == tiny
    table = rows(straight)
    assert [row["step"] for row in table] == ["0", "1", "2", "3", "4"]
    assert all(row["held_out"] for row in table)  # before the first step, and after each of the last 20
    for row in table[1:]:
        terms = ("pyramid_l1", "ssim", "equivariance_value", "equivariance_jacobian", "consistency")
        assert float(row["loss"]) == pytest.approx(sum(float(row[term]) for term in terms), rel=1e-5)
        assert float(row["gradient_norm"]) > 0
    run = load_run(straight / "checkpoints" / "last.safetensors")
    assert (run.recipe, run.step, run.info["backbone"]) == (tiny, 4, None)
    assert run.optimizer()
    about = json.loads((straight / "config.json").read_text())
    assert (
        about["training"] == {"step": 4, "seed": tiny.seed} | run.info | {"damaged_clips": 0}
        and about["size"] == tiny.size
    )
    host, recipe = load_host(straight)
    assert recipe == tiny
    assert host.memory is not None
    assert all(torch.equal(value, run.model()[key]) for key, value in host.state_dict().items())


def test_training_lowers_the_loss_on_held_out_pairs(tiny, tmp_path):
    recipe = with_overrides(tiny, ["optim.steps=40", "memory=null", "loss.consistency=0", "log.every=10"], "test")
    result = train(recipe, tmp_path, progress=False)
    assert result.held_out_end < 0.95 * result.held_out_start


def test_a_run_is_not_overwritten_and_resuming_needs_one(tiny, straight, tmp_path):
    with pytest.raises(UserError, match=r"last\.safetensors: there already"):
        train(tiny, straight, progress=False)
    with pytest.raises(UserError, match=r"last\.safetensors: nothing to resume"):
        train(tiny, tmp_path, resume=True, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_resuming_with_another_recipe_names_the_key(tiny, straight):
    other = with_overrides(tiny, ["optim.lr=0.5"], "test")
    with pytest.raises(UserError, match=r"was trained with optim\.lr=0\.001, the recipe says 0\.5"):
        train(other, straight, resume=True, progress=False)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_after_the_step_with_a_checkpoint(tiny, straight, tmp_path, monkeypatch, number):
    plain = training.step

    def interrupted(*args):
        if not any(tmp_path.glob("sent")):
            (tmp_path / "sent").touch()
            os.kill(os.getpid(), number)
        return plain(*args)

    before = signal.getsignal(number)
    monkeypatch.setattr(training, "step", interrupted)
    result = train(tiny, tmp_path / "run", progress=False)
    assert (result.step, result.finished) == (1, False)
    assert signal.getsignal(number) == before
    assert load_run(tmp_path / "run" / "checkpoints" / "last.safetensors").step == 1
    train(tiny, tmp_path / "run", resume=True, progress=False)
    assert_same(straight, tmp_path / "run")


def poison(monkeypatch, steps):
    """Make the host's prediction, and so loss and batch statistics of that step, not finite at some steps."""
    plain, calls = training.step, []

    def step(run, batch, number):
        calls.append(None)
        if len(calls) in steps:
            batch = batch | {"source": batch["source"] * math.nan}
        return plain(run, batch, number)

    monkeypatch.setattr(training, "step", step)


def test_a_step_that_is_not_finite_is_skipped_and_counted(tiny, tmp_path, monkeypatch):
    poison(monkeypatch, {2})
    train(tiny, tmp_path, stop_after=1, progress=False)
    before = load_file(tmp_path / "checkpoints" / "last.safetensors")
    train(tiny, tmp_path, resume=True, stop_after=2, progress=False)
    after = load_file(tmp_path / "checkpoints" / "last.safetensors")
    counters = {key for key in after if key.endswith("num_batches_tracked")}
    assert [key for key in after if key not in counters and not torch.equal(before[key], after[key])] == []
    monkeypatch.undo()
    train(tiny, tmp_path, resume=True, progress=False)
    table = rows(tmp_path)
    assert [row["skipped_steps"] for row in table[1:]] == ["0", "1", "1", "1"]
    assert all(math.isfinite(float(row["loss"])) for row in table[3:])


def test_numbers_are_read_off_the_device_only_in_steps_that_are_logged(tiny, tmp_path, monkeypatch):
    plain, read = training.step, []

    class Watched:
        def __init__(self, value, step):
            self.value, self.step = value, step

        def item(self):
            read.append(self.step)
            return self.value.item()

    def step(run, batch, number):
        outcome = plain(run, batch, number)
        terms = {name: Watched(value, number + 1) for name, value in outcome.terms.items()}
        return replace(outcome, loss=Watched(outcome.loss, number + 1), terms=terms)

    monkeypatch.setattr(training, "step", step)
    recipe = with_overrides(tiny, ["optim.steps=30", "log.every=3", "log.held_out_every=5"], "test")
    train(recipe, tmp_path, stop_after=7, progress=False)  # before the last 20, each of which is logged
    assert set(read) == {3, 5, 6}
    assert [row["step"] for row in rows(tmp_path)] == ["0", "3", "5", "6"]


def test_a_damaged_clip_is_named_once_and_counted(tiny, tmp_path, capsys):
    for split in ("train", "test"):
        (tmp_path / split / "anna_1").mkdir(parents=True)
        for number in range(3):
            iio.imwrite(tmp_path / split / "anna_1" / f"{number}.png", np.full((32, 32, 3), 60 * number, np.uint8))
    (tmp_path / "train" / "text_1.mp4").write_text("not a video")
    changes = ["data.kind=clips", f"data.root={tmp_path}", "data.repeats=4", "data.shared_people=true"]
    recipe = with_overrides(tiny, changes, "test")
    train(recipe, tmp_path / "run", stop_after=2, progress=False)
    train(recipe, tmp_path / "run", resume=True, progress=False)
    assert capsys.readouterr().err.count("text_1.mp4") == 1
    assert rows(tmp_path / "run")[-1]["damaged_clips"] == "1"
    (tmp_path / "test" / "text_1.mp4").write_text("not a video")
    with pytest.raises(UserError, match=r"text_1\.mp4: expected a video"):  # what is measured on is not skipped
        train(recipe, tmp_path / "other", progress=False)


def test_training_stops_when_nothing_is_finite_any_more(tiny, tmp_path, monkeypatch):
    poison(monkeypatch, range(1, 100))
    recipe = with_overrides(tiny, ["optim.skip_limit=2"], "test")
    with pytest.raises(UserError, match=r"step 3: 3 steps in a row.*not finite; try a lower optim\.lr"):
        train(recipe, tmp_path, progress=False)


def test_a_step_that_is_not_finite_leaves_average_discriminator_and_statistics(tiny, tmp_path, monkeypatch):
    model = "{scales: [1], block_expansion: 4, max_features: 8, num_blocks: 2, sn: true}"
    changes = [f"host.model.discriminator_params={model}", "loss.generator_gan=1", "optim.ema=0.9"]
    recipe = with_overrides(tiny, changes, "test")
    poison(monkeypatch, {2})
    train(recipe, tmp_path, stop_after=1, progress=False)
    before = load_file(tmp_path / "checkpoints" / "last.safetensors")
    train(recipe, tmp_path, resume=True, stop_after=2, progress=False)
    after = load_file(tmp_path / "checkpoints" / "last.safetensors")
    differing = [key for key in after if not torch.equal(before[key], after[key])]
    assert any("weight_u" in key for key in after) and any(key.startswith("average") for key in after)
    assert all(key.endswith("num_batches_tracked") for key in differing)


def test_the_host_learns_of_a_step_when_the_next_one_is_handed_over():
    info = {"skipped_steps": 0}
    undone = Undone(info, 1)
    for step, norm in enumerate((1.0, math.nan, math.nan, 1.0), 1):
        if step == 4:
            with pytest.raises(UserError, match="step 3: 2 steps in a row"):
                undone.check()
            break
        undone.check()
        undone.add(step, torch.tensor(norm))
        assert info["skipped_steps"] == max(0, step - 2)
    undone = Undone(info, 1)
    for norm in (math.nan, math.nan):
        undone.add(1, torch.tensor(norm))
    undone.settle()  # who writes a checkpoint must know, and ends nothing
    assert info["skipped_steps"] == 4


def test_a_frozen_host_keeps_every_bit_while_the_memory_moves(tiny, tmp_path):
    recipe = with_overrides(tiny, ["freeze_host=true", "memory.start=identity"], "test")
    start = {key: value.clone() for key, value in build_host(recipe).state_dict().items()}
    train(recipe, tmp_path, progress=False)
    end = read_trained(tmp_path).weights
    moved = {key for key in start if not torch.equal(start[key], end[key])}
    assert moved
    assert all("memory_compensation" in key for key in moved)


def test_init_starts_from_a_checkpoint_and_identity_changes_nothing(tiny, straight, tmp_path):
    alone = with_overrides(tiny, ["memory=null", "loss.consistency=0"], "test")
    first = train(alone, tmp_path / "alone", progress=False)
    changes = [f"init={tmp_path / 'alone' / 'model.safetensors'}", "loss.consistency=0"]
    changes += ["memory.start=identity", "memory.memory_channels=8", "memory.memory_size=[4, 4]"]
    second = train(with_overrides(alone, changes, "test"), tmp_path / "both", progress=False)
    assert second.held_out_start == pytest.approx(float(rows(tmp_path / "alone")[-1]["held_out"]), rel=1e-6)
    assert first.held_out_start != second.held_out_start


def test_init_of_another_width_names_key_and_shapes(tiny, straight, tmp_path):
    recipe = with_overrides(tiny, [f"init={straight}", "host.model.generator_params.block_expansion=8"], "test")
    with pytest.raises(UserError, match=r"\.weight has shape \(8, 4, 3, 3\), the recipe's host expects \(8, 8, 3, 3\)"):
        train(recipe, tmp_path, progress=False)


def test_upstream_s_checkpoint_starts_a_host(tiny, tmp_path):
    host = build_host(with_overrides(tiny, ["memory=null", "loss.consistency=0", "seed=5"], "test"))
    sections = {name: module.state_dict() for name, module in host.sections().items()} | {"epoch": 3}
    torch.save(sections, tmp_path / "vox.pth.tar")
    recipe = with_overrides(tiny, [f"init={tmp_path / 'vox.pth.tar'}", "optim.steps=1", "optim.lr=1e-12"], "test")
    train(recipe, tmp_path / "run", progress=False)
    trained = read_trained(tmp_path / "run").weights["generator.first.conv.weight"]
    assert torch.allclose(trained, host.state_dict()["generator.first.conv.weight"], atol=1e-6)
    (tmp_path / "text.pth").write_text("nothing")
    with pytest.raises(UserError, match=r"text\.pth: expected a checkpoint, found a text file"):
        train(with_overrides(tiny, [f"init={tmp_path / 'text.pth'}"], "test"), tmp_path / "other", progress=False)


def test_the_discriminator_trains_with_a_weight_only(tiny, tmp_path):
    model = "{scales: [1], block_expansion: 4, max_features: 8, num_blocks: 2, sn: true}"
    recipe = with_overrides(tiny, [f"host.model.discriminator_params={model}"], "test")
    start = {key: value.clone() for key, value in build_host(recipe).state_dict().items()}
    for weight in (0, 1):
        changes = [f"loss.generator_gan={weight}", "loss.feature_matching=10", "optim.steps=2"]
        train(with_overrides(recipe, changes, "test"), tmp_path / str(weight), progress=False)
        end = read_trained(tmp_path / str(weight)).weights
        keys = [
            key for key in start if key.startswith("discriminator") and "weight_u" not in key and "weight_v" not in key
        ]
        assert keys
        assert all(torch.equal(start[key], end[key]) != bool(weight) for key in keys)
        assert ("feature_matching" in rows(tmp_path / str(weight))[-1]) == bool(weight)


def test_held_out_people_are_not_trained_on(tiny):
    trained, unseen = training_pairs(tiny).clips.heads, held_out_pairs(tiny).clips.heads
    assert trained.split != unseen.split
    assert {trained.identity(i) for i in range(len(trained))}.isdisjoint(unseen.identity(i) for i in range(len(unseen)))


def test_bf16_trains(tiny, tmp_path):
    recipe = with_overrides(tiny, ["precision=bf16", "optim.steps=2"], "test")
    result = train(recipe, tmp_path, progress=False)
    assert math.isfinite(result.held_out_end)
    assert all(value.dtype != torch.bfloat16 for value in read_trained(tmp_path).weights.values())


def test_the_backbone_is_recorded(tiny, tmp_path, monkeypatch):
    class Pyramid(torch.nn.Module):
        description = "vgg19.tv_in1k (hub)"

        def forward(self, prediction, target):
            return (prediction - target).abs().mean()

    monkeypatch.setattr(losses, "PerceptualPyramid", lambda section: Pyramid())
    recipe = with_overrides(tiny, ["loss.perceptual={}", "optim.steps=1"], "test")
    train(recipe, tmp_path, progress=False)
    assert read_trained(tmp_path).info["backbone"] == "vgg19.tv_in1k (hub)"
    assert "perceptual" in rows(tmp_path)[-1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("host.name=fom", "unknown host 'fom'.*did you mean fomm"),
        ("host.model.generator_params.blok_expansion=3", "blok_expansion"),
        ("memory.scales=[7]", "7"),
        ("device=quantum", "device: expected auto, cpu or cuda, got 'quantum'"),
        ("data.kind=clips data.root=/no/such/place", "/no/such/place/train: expected a folder of clips"),
        ("init=/no/such/file.safetensors", "/no/such/file.safetensors: expected a checkpoint"),
        ("loss.generator_gan=1", "loss: the host has no discriminator"),
    ],
)
def test_what_only_shows_when_training_starts_is_named_too(tiny, tmp_path, change, said):
    with pytest.raises(UserError, match=said):
        train(with_overrides(tiny, change.split(), "test"), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_survives_a_write_that_fails(tiny, straight, tmp_path, monkeypatch):
    host = build_host(tiny)
    path = tmp_path / "last.safetensors"
    save_run(path, tiny, host, 1)
    before = path.read_bytes()
    from memcomp.experiments.checkpoints import run_file as checkpoint

    def half(tensors, file, metadata):
        file.write_bytes(before[: len(before) // 2])
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint, "save_file", half)
    with pytest.raises(OSError, match="disk full"):
        save_run(path, tiny, host, 2)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["last.safetensors"]


TWO_PROCESSES = """
import sys
import torch
from safetensors.torch import save_file
from memcomp.experiments.training import loop, setup
from memcomp.experiments.processes import Processes
from memcomp.experiments.recipe.load import load_recipe

processes = Processes.start("cpu")
tensors = [torch.full((2, 2), float(processes.rank)), torch.arange(3.0) * (1 + processes.rank)]
processes.average(tensors)
assert tensors[0].tolist() == [[0.5, 0.5], [0.5, 0.5]], tensors
assert tensors[1].tolist() == [0, 1.5, 3.0], tensors
assert processes.any_of([processes.rank == 1, False]) == [True, False]

hosts, build = [], setup.build_host
setup.build_host = lambda *args, **kwargs: hosts.append(build(*args, **kwargs)) or hosts[-1]
loop.train(load_recipe(sys.argv[1] + "/tiny.yaml"), sys.argv[1] + "/run", progress=False)
weights = {name: value.detach().contiguous() for name, value in hosts[0].named_parameters()}
save_file(weights, f"{sys.argv[1]}/rank{processes.rank}.safetensors")
"""


def test_two_processes_train_one_model(tiny, tmp_path):
    (tmp_path / "tiny.yaml").write_text(with_overrides(tiny, ["optim.steps=2"], "test").to_yaml())
    with socket.socket() as free:
        free.bind(("localhost", 0))
        shared = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    started = [
        subprocess.Popen(  # what torchrun does
            [sys.executable, "-c", TWO_PROCESSES, str(tmp_path)],
            env=os.environ | shared | {"RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    for process in started:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said[-2000:]
    first, second = (load_file(tmp_path / f"rank{rank}.safetensors") for rank in "01")
    saved = read_trained(tmp_path / "run")
    start = build_host(saved.recipe).state_dict()
    for key in first:
        assert torch.equal(first[key], second[key]), key
        assert torch.equal(first[key], saved.weights[key]), key
    assert any(not torch.equal(first[key], start[key]) for key in first)
    assert [row["step"] for row in rows(tmp_path / "run")] == ["0", "1", "2"]


def test_a_batch_must_divide_among_the_processes(tiny, tmp_path, monkeypatch):
    three = Processes(0, 3, torch.device("cpu"))
    monkeypatch.setattr(Processes, "start", lambda device: three)
    with pytest.raises(UserError, match=r"optim\.batch_size: 4 pairs cannot be shared by 3 processes"):
        train(tiny, tmp_path, progress=False)
