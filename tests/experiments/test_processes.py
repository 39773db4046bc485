"""Several processes: torchrun's variables, a process that is lost, one with another recipe, parts without gradients."""

import contextlib
import multiprocessing
import os
import socket

import pytest
import torch

from memcomp.experiments.cli import main
from memcomp.experiments.errors import UserError
from memcomp.experiments.processes import Processes
from memcomp.experiments.recipe.load import with_overrides
from memcomp.experiments.training import exchange as exchange_module
from memcomp.experiments.training.exchange import Exchange


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"RANK": "1"}, "RANK=1, but no WORLD_SIZE and no MASTER_ADDR and no MASTER_PORT: expected all"),
        ({"LOCAL_RANK": "0"}, "LOCAL_RANK=0, but no RANK and no WORLD_SIZE"),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}, "WORLD_SIZE=2, but no RANK: expected"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two: expected whole numbers"),
        ({"WORLD_SIZE": "0", "RANK": "0"}, "RANK=0 of WORLD_SIZE=0: expected whole numbers, ranks from 0 below"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK=2 of WORLD_SIZE=2: expected whole numbers, ranks from 0 below"),
    ],
)
def test_variables_that_are_half_set_are_one_line(monkeypatch, capsys, tmp_path, variables, said):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(["train", "demo/fomm", "device=cpu", "--output", str(tmp_path / "run")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and said in lines[0]
    assert not (tmp_path / "run").exists()


def test_one_process_needs_no_others(monkeypatch):
    assert Processes.start("cpu") == Processes(0, 1, torch.device("cpu"))
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    assert Processes.start("cpu").world == 1


def in_two(target, *arguments):
    """Run a function of this file in two processes; their exit statuses."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    context = multiprocessing.get_context("fork")
    started = [context.Process(target=_ranked, args=(target, rank, port, *arguments)) for rank in range(2)]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
    return [process.exitcode for process in started]


def _ranked(target, rank, port, *arguments):
    torch.set_num_threads(1)
    os.environ.update({"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": "2", "RANK": str(rank)})
    os._exit(target(rank, *arguments) or 0)


def partly(rank):
    """The second process has a gradient more than the first, and one that neither has; a later pass is untouched."""
    processes = Processes.start("cpu")
    parameters = [torch.ones(3, requires_grad=True, dtype=torch.float64) for _ in range(4)]
    exchange = Exchange(processes, {"generator": parameters[:3], "discriminator": parameters[3:]}, "generator")
    with exchange.of(()):
        (parameters[0].sum() * 10).backward()  # an earlier part of the batch: stays here
    with exchange.of(["generator"]):
        (parameters[0] * (rank + 1) + rank * parameters[1] if rank else parameters[0] + parameters[3]).sum().backward()
    grads = [parameter.grad for parameter in parameters]
    assert grads[0].tolist() == [11.5] * 3 and grads[1].tolist() == [0.5] * 3 and grads[2] is None
    assert (grads[3] is None) == bool(rank)  # not this pass's: left to each
    processes.stop()


def test_parameters_without_gradient_hang_nobody():
    assert in_two(partly) == [0, 0]


def in_layers(rank):
    """Gradients leave while the backward pass goes on: those of the last layers before those of the first."""
    exchange_module.BUCKET_BYTES = 8  # a bucket for each parameter
    processes = Processes.start("cpu")
    parameters = [torch.ones(1, requires_grad=True, dtype=torch.float64) for _ in range(3)]
    exchange = Exchange(processes, {"generator": parameters}, "generator")
    seen = []
    x = torch.ones(1, dtype=torch.float64) * (rank + 1)
    for parameter in parameters:
        x = x * parameter
        x.register_hook(lambda gradient: seen.append(len(exchange._sent)))
    with exchange.of(["generator"]):
        x.sum().backward()
    assert exchange.ahead == 3 and seen[-1] == 2  # two had left when the gradient reached the first layer's output
    assert [parameter.grad.item() for parameter in parameters] == [1.5] * 3
    processes.stop()


def test_gradients_travel_during_the_backward_pass():
    assert in_two(in_layers) == [0, 0]


def write_small(recipe, folder):
    changes = ["data.identities=2", "log.held_out_pairs=2", "optim.batch_size=2", "optim.steps=2"]
    (folder / "small.yaml").write_text(with_overrides(recipe, changes, "test").to_yaml())


def lost(rank, folder):
    """The second process ends after its first step."""
    from memcomp.experiments.training import loop

    if rank:
        loop.write_down = lambda *_: os._exit(9)
    with (folder / f"said{rank}.txt").open("w") as file, contextlib.redirect_stderr(file):
        return main(["train", str(folder / "small.yaml"), "--output", str(folder / "run")])


def test_a_process_that_is_lost_ends_all_in_one_line(small_recipe, tmp_path):
    write_small(small_recipe, tmp_path)
    assert in_two(lost, tmp_path) == [3, 9]
    (line,) = [line for line in (tmp_path / "said0.txt").read_text().splitlines() if "error" in line]
    assert "process 0 of 2: another one has ended or cannot be reached" in line
    assert "Traceback" not in (tmp_path / "said0.txt").read_text()


def other(rank, folder):
    with (folder / f"said{rank}.txt").open("w") as file, contextlib.redirect_stderr(file):
        words = ["train", str(folder / "small.yaml"), "--output", str(folder / "run"), f"optim.lr={0.1 + rank}"]
        return main(words)


def test_a_process_with_another_recipe_ends_all_in_one_line(small_recipe, tmp_path):
    write_small(small_recipe, tmp_path)
    assert in_two(other, tmp_path) == [2, 2]
    for rank in range(2):
        said = (tmp_path / f"said{rank}.txt").read_text()
        assert "process 1 has optim.lr=1.1, process 0 0.1: expected the same recipe" in said
        assert "Traceback" not in said
    assert not (tmp_path / "run").exists()


def test_where_the_others_cannot_be_reached_is_said(monkeypatch):
    variables = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "none"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="process 0 of 2 cannot join the others at localhost:none: "):
        Processes.start("cpu")
