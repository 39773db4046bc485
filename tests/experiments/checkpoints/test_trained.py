"""What a run's folder means at any time: the unfinished run, or the finished one, never a mixture of both."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from memcomp.adapters import folder as pretrained_folder
from memcomp.adapters import from_pretrained
from memcomp.experiments.checkpoints.build import build_host
from memcomp.experiments.checkpoints.find import DEMO_HOST, checkpoint_path
from memcomp.experiments.checkpoints.run_file import save_run
from memcomp.experiments.checkpoints.trained import load_host, read_trained, save_trained
from memcomp.experiments.errors import UserError
from memcomp.experiments.recipe.load import with_overrides
from memcomp.experiments.training import loop
from memcomp.experiments.training.loop import train


class Killed(BaseException):
    """What nobody catches."""


@pytest.fixture(scope="module")
def tiny(small_recipe):
    """A training of two steps."""
    changes = ["optim.steps=2", "data.identities=2", "optim.batch_size=2", "loss.perceptual=null", "loss.pyramid_l1=1"]
    return with_overrides(small_recipe, [*changes, "init=null", "log.held_out_pairs=2"], "test")


def same(host, state):
    return all(torch.equal(value, state[key]) for key, value in host.state_dict().items())


def number(host, value):
    """The host with all its weights equal to a number."""
    with torch.no_grad():
        for parameter in host.parameters():
            parameter.fill_(value)
    return host


def test_a_finished_run_is_a_pretrained_folder(small_run, small_recipe):
    trained = read_trained(small_run)
    assert (trained.recipe, trained.step, trained.size) == (small_recipe, 7, small_recipe.size)
    assert trained.info == {"step": 7, "seed": small_recipe.seed, "backbone": None}
    assert same(from_pretrained(small_run), trained.weights) and same(load_host(small_run)[0], trained.weights)
    assert checkpoint_path(small_run) == small_run / "model.safetensors"


@pytest.mark.parametrize("writes", [0, 1, 2])
@pytest.mark.parametrize("earlier", [False, True])
def test_killed_between_the_writes_it_is_one_run_or_the_other(small_recipe, tmp_path, monkeypatch, writes, earlier):
    """A run that had finished after 3 steps and goes on to 9, killed before, between and after the last two writes."""
    host = build_host(small_recipe)
    (tmp_path / "recipe.yaml").write_text(small_recipe.to_yaml())
    if earlier:
        save_trained(tmp_path, number(host, 0.25), small_recipe, 3, {})
    save_run(tmp_path / "checkpoints" / "last.safetensors", small_recipe, number(host, 0.5), 9)
    write, done = pretrained_folder.write_whole, []

    def killed(path, content):
        if len(done) == writes:
            raise Killed
        done.append(path.name)
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(pretrained_folder, "write_whole", killed)
        try:
            save_trained(tmp_path, host, small_recipe, 9, {})
        except Killed:
            assert writes < 2
    trained = read_trained(tmp_path)
    assert done == ["model.safetensors", "config.json"][:writes]
    assert (trained.step, trained.recipe) == (9, small_recipe)
    assert same(trained.host(), host.state_dict())
    assert trained.path.name == ("last.safetensors" if writes == 0 else "model.safetensors")
    if writes or earlier:
        known = host if writes else number(host, 0.25)
        assert same(from_pretrained(tmp_path), known.state_dict())


def test_of_a_finished_run_and_a_checkpoint_the_one_of_more_steps_counts(small_recipe, tmp_path):
    host, last = build_host(small_recipe), tmp_path / "checkpoints" / "last.safetensors"
    for finished_in in ("today's format", "version 0.1.0's"):
        for steps, name in ((4, "model"), (5, "model"), (6, "last")):
            save_run(last, small_recipe, host, steps)
            if finished_in == "today's format":
                save_trained(tmp_path, host, small_recipe, 5, {})
            else:
                save_run(tmp_path / "model.safetensors", small_recipe, host, 5)
            assert checkpoint_path(tmp_path).stem == name
    host.save_pretrained(tmp_path)  # by hand: it does not tell its steps
    assert checkpoint_path(tmp_path).stem == "model"
    last.write_text("damaged")
    assert checkpoint_path(tmp_path).stem == "model"


@pytest.mark.parametrize("kill", ["save_trained", "save_run"])
def test_a_training_killed_at_its_end_goes_on_to_it(tiny, tmp_path, monkeypatch, kill):
    def killed(*args, **kwargs):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loop, kill, killed)
        train(tiny, tmp_path, progress=False)
    if kill == "save_run":  # there is nothing yet
        with pytest.raises(UserError, match="expected a run's folder with model"):
            read_trained(tmp_path)
        return
    assert read_trained(tmp_path).path.name == "last.safetensors"
    assert train(tiny, tmp_path, resume=True, progress=False).finished
    trained = read_trained(tmp_path)
    assert (trained.path.name, trained.step, trained.recipe) == ("model.safetensors", 2, tiny)
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(UserError, match=r"model\.safetensors: there already, of an earlier run"):
        train(tiny, tmp_path, progress=False)


def test_a_recipe_of_other_weights_is_named_and_needed_only_where_data_are(small_run, small_recipe, tmp_path):
    shutil.copytree(small_run, tmp_path / "run")
    recipe = tmp_path / "run" / "recipe.yaml"
    recipe.write_text(with_overrides(small_recipe, ["memory.memory_channels=4"], "test").to_yaml())
    trained = read_trained(tmp_path / "run")
    with pytest.raises(UserError, match=r"recipe\.yaml: expected the recipe of model\.safetensors, .* another memory"):
        _ = trained.recipe
    assert trained.host().memory is not None
    recipe.unlink()
    described = read_trained(tmp_path / "run").recipe_or_heads()
    assert read_trained(tmp_path / "run").recipe is None and not described.trains
    assert (described.host, described.memory.config) == (small_recipe.host, small_recipe.memory.config)
    assert with_overrides(described, ["data.kind=clips", "data.root=x"], "test").data.root == "x"


def test_weights_are_read_by_their_folders_name(small_run, tmp_path):
    shutil.copy(small_run / "model.safetensors", tmp_path / "best.safetensors")
    with pytest.raises(UserError, match=r"best\.safetensors: expected the name model\.safetensors"):
        read_trained(tmp_path / "best.safetensors")
    shutil.copy(small_run / "model.safetensors", tmp_path)  # they describe themselves
    assert same(load_host(tmp_path)[0], read_trained(small_run).weights)
    tensors = load_file(small_run / "model.safetensors")
    save_file(tensors, tmp_path / "model.safetensors", {"format": "memcomp-pretrained-1"})
    with pytest.raises(UserError, match=r"no config\.json"):
        read_trained(tmp_path / "model.safetensors")


def test_the_shipped_host_is_a_run_file_that_needs_no_folder():
    trained = read_trained(DEMO_HOST)
    assert trained.path.name == "demo_fomm.safetensors" and trained.step > 0 and trained.recipe is not None
    assert json.loads(trained.path.with_suffix(".json").read_text())["seed"] == trained.recipe.seed
