"""The step: draws of each pair, batches in parts, averaged weights, precision."""

import csv

import pytest
import torch
from safetensors.torch import load_file

from memcomp.adapters.shared.draws import ShareGenerator, draw_each
from memcomp.adapters.shared.losses import RandomTransform
from memcomp.experiments.checkpoints.build import build_host
from memcomp.experiments.checkpoints.run_file import load_run, save_run
from memcomp.experiments.checkpoints.trained import load_host, read_trained
from memcomp.experiments.data.pairs import seeded
from memcomp.experiments.errors import UserError
from memcomp.experiments.processes import Processes
from memcomp.experiments.recipe.load import with_overrides
from memcomp.experiments.training.average import Average
from memcomp.experiments.training.loop import train
from memcomp.experiments.training.precision import autocast, products_of
from memcomp.experiments.training.setup import Training
from memcomp.experiments.training.step import draws, step

LAST = "checkpoints/last.safetensors"


@pytest.fixture(scope="module")
def tiny(small_recipe):
    changes = ["optim.steps=4", "optim.batch_size=4", "data.identities=4", "log.held_out_pairs=2", "log.every=1"]
    changes += ["log.held_out_every=1", "log.sample_every=100", "memory=null"]
    return with_overrides(small_recipe, changes, "test")


def same(one, other, name=LAST):
    a, b = load_file(one / name), load_file(other / name)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# ---- draws -----------------------------------------------------------------------------------------------------------


def test_each_pair_has_its_own_draws_however_the_batch_is_shared():
    like, settings = torch.zeros(6, 1), {"sigma_tps": 0.1, "points_tps": 5}
    whole = RandomTransform.draw(like, seeded(0, "a", 1), **settings)
    for count in (2, 3, 6):
        size = 6 // count
        for first in range(0, 6, size):
            draw = ShareGenerator.of(seeded(0, "a", 1), 6, first)
            part = RandomTransform.draw(like[:size], draw, **settings)
            assert torch.equal(part.theta, whole.theta[first : first + size])
            assert torch.equal(part.control_params, whole.control_params[first : first + size])
    all_of_it = ShareGenerator.of(seeded(0, "a", 1), 6, 0)
    assert torch.equal(draw_each(torch.rand, 6, 3, generator=all_of_it), torch.rand(6, 3, generator=seeded(0, "a", 1)))


def test_the_noise_of_a_released_memory_is_drawn_from_the_step_and_resumed(tiny, tmp_path, both_ways):
    memory = "{preset: release, memory_channels: 8, memory_size: [4, 4], noise: true}"
    recipe = with_overrides(tiny, [f"memory={memory}", "loss.consistency=1"], "test")
    straight, _ = both_ways(recipe, stop_after=2)
    quiet = with_overrides(recipe, ["memory.noise=false"], "test")
    train(quiet, tmp_path / "quiet", progress=False)
    assert not same(straight, tmp_path / "quiet")


def test_processes_share_the_draws_of_one(tiny, tmp_path, monkeypatch):
    run = Training(tiny, tmp_path / "run", Processes.start("cpu"), False)
    whole = torch.randn(4, 3, generator=draws(run, 7, 0))
    found = []
    for rank in range(2):
        run.processes = Processes(rank, 2, torch.device("cpu"))
        found.append(draw_each(torch.randn, 2, 3, generator=draws(run, 7, 0)))
    assert torch.equal(torch.cat(found), whole)
    run.rules = 1  # of an earlier version: each process draws for itself
    assert torch.equal(
        torch.randn(3, generator=draws(run, 7, 0)),
        torch.randn(3, generator=seeded(tiny.seed, "transform 1", 7)),
    )


# ---- parts -----------------------------------------------------------------------------------------------------------


def test_parts_give_the_gradients_of_the_batch(tiny, tmp_path, monkeypatch):
    """Where no statistics of a batch are involved."""
    found = {}
    for parts in (1, 2, 4):
        recipe = with_overrides(tiny, [f"optim.accumulate={parts}", "optim.clip=null", "optim.steps=1"], "test")
        run = Training(recipe, tmp_path / str(parts), Processes.start("cpu"), False)
        for module in run.host.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.train(False)
        run.host.double()
        run.objective.double()
        monkeypatch.setattr(run.optimisers, "step", lambda parts: torch.ones(()))
        batch = next(iter(run.batches))
        batch = batch | {name: batch[name].double() for name in ("source", "driving")}
        outcome = step(run, batch, 0)
        found[parts] = {name: value.grad for name, value in run.host.named_parameters() if value.grad is not None}
        found[parts]["loss"] = outcome.loss
        found[parts] |= {f"term {name}": value for name, value in outcome.terms.items()}
    for parts in (2, 4):
        assert found[parts].keys() == found[1].keys() and len(found[1]) > 20
        for name, value in found[1].items():
            torch.testing.assert_close(found[parts][name].double(), value.double(), rtol=1e-5, atol=1e-7, msg=name)


def test_a_discriminator_trains_in_parts_too(tiny, tmp_path):
    model = "{scales: [1], block_expansion: 4, max_features: 8, num_blocks: 2, sn: true}"
    changes = [f"host.model.discriminator_params={model}", "loss.generator_gan=1", "optim.accumulate=2"]
    recipe = with_overrides(tiny, [*changes, "optim.steps=2"], "test")
    start = build_host(recipe).state_dict()
    train(recipe, tmp_path, progress=False)
    names = [name for name in start if name.startswith("discriminator") and name.endswith("bias")]
    end = read_trained(tmp_path).weights
    assert names and any(not torch.equal(start[name], end[name]) for name in names)


def test_parts_that_do_not_divide_the_batch_are_refused(tiny, tmp_path):
    with pytest.raises(UserError, match=r"optim\.batch_size: 4 pairs cannot be shared by 1 processes in 3 parts each"):
        train(with_overrides(tiny, ["optim.accumulate=3"], "test"), tmp_path, progress=False)


# ---- averages --------------------------------------------------------------------------------------------------------


def test_the_average_follows_its_definition(tiny):
    host = build_host(tiny)
    average = Average(host, 0.5)
    start = {key: value.clone() for key, value in host.state_dict().items()}
    for value in host.state_dict().values():
        value.add_(3)
    average.update(host, 0)  # keeps a tenth
    average.update(host, 100)  # keeps half
    own = {key: value.clone() for key, value in host.state_dict().items()}
    with average.in_place(host):
        for key, value in host.state_dict().items():
            moved = 3 * (1 - 0.1 * 0.5) if value.is_floating_point() else 3
            torch.testing.assert_close(value, start[key] + moved)
    assert all(torch.equal(value, own[key]) for key, value in host.state_dict().items())


def test_the_average_is_measured_kept_and_resumed_and_changes_no_training(tiny, tmp_path, both_ways):
    recipe = with_overrides(tiny, ["optim.ema=0.9"], "test")
    train(tiny, tmp_path / "plain", progress=False)
    assert same(*both_ways(recipe, stop_after=2), "model.safetensors")
    plain, averaged = (load_run(tmp_path / name / LAST) for name in ("plain", "straight"))
    assert all(torch.equal(value, averaged.model()[key]) for key, value in plain.model().items())
    kept = read_trained(tmp_path / "straight" / LAST).weights
    assert all(torch.equal(value, kept[key]) for key, value in averaged.average().items())
    whole = load_host(tmp_path / "straight")[0].state_dict()
    assert all(torch.equal(value, kept[key]) for key, value in whole.items())
    held_out = []
    for name in ("plain", "straight"):
        with (tmp_path / name / "log.csv").open() as file:
            held_out.append([row["held_out"] for row in csv.DictReader(file)])
    assert held_out[0][0] == held_out[1][0] and held_out[0][1:] != held_out[1][1:]


# ---- precision -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
def test_precision_is_set_in_one_place_and_put_back(precision):
    switches = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [switch.allow_tf32 for switch in switches]
    with products_of(precision), autocast(precision, torch.device("cpu")):
        assert [switch.allow_tf32 for switch in switches] == [precision == "tf32"] * 2
        product = torch.ones(2, 2) @ torch.ones(2, 2)
        assert product.dtype == (torch.bfloat16 if precision == "bf16" else torch.float32)
        # where keypoints go is computed in float32 whatever the networks compute in
        transform = RandomTransform.draw(torch.zeros(2, 1), seeded(0, "a", 0), sigma_tps=0.1, points_tps=5)
        places = torch.rand(2, 7, 2, generator=seeded(0, "b", 0)) * 2 - 1
        moved = transform.warp_coordinates(places)
    assert moved.dtype == torch.float32
    exact = RandomTransform(transform.theta.double(), transform.control_params.double()).warp_coordinates(
        places.double()
    )
    torch.testing.assert_close(moved.double(), exact, rtol=1e-5, atol=1e-6)
    assert [switch.allow_tf32 for switch in switches] == before


def test_on_a_cpu_tf32_is_float32(tiny, tmp_path):
    for precision in ("float32", "tf32"):
        train(with_overrides(tiny, [f"precision={precision}"], "test"), tmp_path / precision, progress=False)
    assert same(tmp_path / "float32", tmp_path / "tf32")


def test_a_run_of_an_earlier_version_resumes_under_its_own_rules(tiny, tmp_path):
    train(tiny, tmp_path, stop_after=2, progress=False)
    state = load_run(tmp_path / LAST)
    host = build_host(tiny)
    host.load_state_dict(state.model())
    older = {key: value for key, value in state.info.items() if key != "rules"}
    save_run(tmp_path / LAST, tiny, host, 2, optimizer=state.optimizer(), info=older)
    published = with_overrides(tiny, ["precision=tf32"], "test")  # what float32 meant for convolutions
    assert train(published, tmp_path, resume=True, stop_after=3, progress=False).step == 3
    assert "rules" not in load_run(tmp_path / LAST).info
