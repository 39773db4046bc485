"""The memory's teacher in a training: against hooks of the test's own, and what it must leave alone."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from memcomp.adapters.shared.blocks import SpectralConv2d
from memcomp.adapters.true_motion import pack
from memcomp.experiments.checkpoints.build import build_host
from memcomp.experiments.errors import UserError
from memcomp.experiments.recipe.load import load_recipe, with_overrides
from memcomp.experiments.training.loss import Objective
from memcomp.experiments.training.precision import autocast
from memcomp.experiments.training.teacher import complete_features

LABORATORY = [
    "size=32",
    "device=cpu",
    "memory.memory_channels=8",
    "memory.memory_size=[4, 4]",
    "host.model.generator_params.block_expansion=4",
    "host.model.generator_params.max_features=8",
    "host.model.generator_params.num_bottleneck_blocks=1",
]


def draw(*shape, seed):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def exact(seed):
    """A picture with a motion that moves and hides, as the laboratory's host takes it."""
    flow, visible = draw(2, 32, 32, 2, seed=seed) * 2 - 1, (draw(2, 1, 32, 32, seed=seed) > 0.5).float()
    return pack(draw(2, 3, 32, 32, seed=seed), flow, visible, draw(2, 10, 2, seed=seed) * 2 - 1)


@pytest.fixture(params=["fomm", "true_motion", "skip"])
def case(request, small_recipe):
    """A recipe with the teacher, and a pair."""
    words, pair = ["loss.teacher=2", "memory.start=paper"], (draw(2, 3, 32, 32, seed=1), draw(2, 3, 32, 32, seed=2))
    if request.param == "true_motion":
        return load_recipe("demo/true_motion_mcnet", [*LABORATORY, *words]), (exact(1), exact(2))
    mode = [f"memory.mode={'skip' if request.param == 'skip' else 'inplace'}"]
    return with_overrides(small_recipe, [*mode, *words], "test"), pair


def moved(host):
    """Move every weight a little, so that no start of zero hides what the memory does."""
    with torch.no_grad():
        for index, parameter in enumerate(host.parameters()):
            parameter += 0.1 * (draw(*parameter.shape, seed=index) - 0.5)
    return host


def objective_of(recipe, host, pair, epoch=0.0):
    return Objective(recipe.loss)(host, *pair, torch.Generator().manual_seed(0), epoch)


def naive_complete(host, driving, scales):
    """F_* of a host alone: hooks where its taps are, the driving picture twice, nothing moved."""
    generator, found, shown = host.generator, {}, {}
    for scale, tap in enumerate(host.taps()[0][:scales]):
        note = lambda module, args, scale=scale: found.update({scale: args[0].clone()})  # noqa: E731
        generator.get_submodule(tap.module).register_forward_pre_hook(note)
    generator.first.register_forward_hook(lambda module, args, output: shown.update(feature=output))
    generator.dense_motion_network.register_forward_hook(lambda module, args, output: shown.update(motion=output))
    keypoints = host.keypoints(driving)
    with torch.no_grad():
        host.generate(driving, keypoints, keypoints.still() if host.name == "true_motion" else keypoints)
        warped = generator.deform_input(shown["feature"], shown["motion"].deformation)
        visible = F.interpolate(shown["motion"].occlusion_map, size=warped.shape[2:], mode="bilinear")
    return found, warped * visible


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_term_is_that_of_hooks_of_ones_own(case, mode, monkeypatch):
    recipe, (source, driving) = case
    host = moved(build_host(recipe)).train(mode == "train")
    alone = build_host(with_overrides(recipe, ["memory=null", "loss.teacher=0", "loss.consistency=0"], "test"))
    alone.load_state_dict({key: value for key, value in host.state_dict().items() if "memory_compens" not in key})
    memory, given = copy.deepcopy(host.memory), {}
    wanted, skip = naive_complete(alone.train(mode == "train"), driving, len(memory.channels))
    if recipe.memory.mode == "skip":
        wanted[1] = skip  # its finer scale is the encoder's feature, warped

    condition = host.memory._condition  # sees the warped feature of each scale in the call that is trained

    def seen(feature, shown, scale):
        given[scale] = feature.clone(), shown.keypoints
        return condition(feature, shown, scale)

    monkeypatch.setattr(host.memory, "_condition", seen)
    _, terms, _ = objective_of(recipe, host, (source, driving))
    expected = 0.0
    assert given.keys() == wanted.keys() == set(range(len(memory.channels)))
    for scale, (feature, keypoints) in given.items():
        output, half = memory.compensate(feature, keypoints, scale), feature.shape[1] // 2
        target = F.interpolate(
            memory.scales[scale].projection(wanted[scale][:, half:]), (4, 4), mode="bilinear", align_corners=True
        )
        expected += (output.feature[:, half:] - wanted[scale][:, half:]).abs().mean().item()
        expected += (output.value - target).abs().mean().item()
    assert terms["teacher"].item() == pytest.approx(2 * expected, rel=1e-4)


def test_nothing_else_of_a_step_changes(case):
    """Terms, batch statistics, draws and gradients of the rest are those without a teacher."""
    recipe, pair = case
    plain = with_overrides(recipe, ["loss.teacher=0", "loss.consistency=1"], "test")
    taught = with_overrides(plain, ["loss.teacher=1e-30"], "test")  # so small that no gradient is another
    results, states = [], []
    for one in (plain, taught):
        host, generator = moved(build_host(one)), torch.Generator().manual_seed(0)
        torch.manual_seed(5)
        loss, terms, output = Objective(one.loss)(host, *pair, generator, 0.0)
        loss.backward()
        gradients = {name: value.grad for name, value in host.named_parameters() if value.grad is not None}
        states.append((torch.get_rng_state(), generator.get_state(), *host.state_dict().values(), output.prediction))
        results.append((terms, gradients, [module.training for module in host.modules()]))
    (terms, gradients, modes), (more, others, same) = results
    assert more.keys() - terms.keys() == {"teacher"} and {"consistency", "pyramid_l1"} <= terms.keys()
    assert all(torch.equal(value, more[name]) for name, value in terms.items())
    assert all(torch.equal(one, other) for one, other in zip(*states, strict=True))
    assert modes == same
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, msg=name)


def test_the_teachers_call_changes_nothing_of_a_host_that_draws_and_estimates(small_recipe):
    host = build_host(small_recipe).train()
    generator = host.generator
    spectral = SpectralConv2d(4, 4, 1)
    generator.first = nn.Sequential(generator.first, nn.Dropout(0.5), spectral)
    generator.bottleneck.eval()  # as if a part did not train
    modes = [module.training for module in host.modules()]
    state, draws = copy.deepcopy(host.state_dict()), torch.get_rng_state()
    one, two = (complete_features(host, draw(2, 3, 32, 32, seed=1)) for _ in range(2))
    assert all(torch.equal(one[scale], two[scale]) for scale in one) and len(one) == len(host.memory.channels)
    assert [module.training for module in host.modules()] == modes
    assert all(module.track_running_stats for module in host.modules() if isinstance(module, nn.BatchNorm2d))
    assert torch.equal(torch.get_rng_state(), draws)
    assert all(torch.equal(value, state[key]) for key, value in host.state_dict().items())
    assert not any(feature.requires_grad for feature in one.values())


def test_gradients_reach_the_memory_and_in_bf16_the_host_keeps_its_own(small_recipe):
    recipe = with_overrides(small_recipe, ["loss.teacher=1", "memory.start=paper"], "test")
    pair, reached = (draw(2, 3, 32, 32, seed=1), draw(2, 3, 32, 32, seed=2)), []
    for one in (recipe, with_overrides(recipe, ["loss.teacher=0"], "test")):
        host = build_host(one)
        with autocast("bf16", torch.device("cpu")):
            loss, _, _ = objective_of(one, host, pair)
        loss.backward()
        reached.append({name for name, value in host.named_parameters() if value.grad is not None})
    assert reached[0] >= reached[1] and any(name.startswith("generator.first") for name in reached[1])

    alone = with_overrides(recipe, ["loss.pyramid_l1=0", "loss.ssim=0", "freeze_host=true"], "test")
    host = build_host(with_overrides(alone, ["loss.equivariance_value=0", "loss.equivariance_jacobian=0"], "test"))
    only = with_overrides(alone, ["loss.equivariance_value=0", "loss.equivariance_jacobian=0"], "test")
    loss, terms, _ = objective_of(only, host, pair)
    loss.backward()
    assert terms.keys() == {"teacher"}
    assert host.memory.memory.value.grad.abs().sum() > 0
    assert all("memory_compensation" in name for name, value in host.named_parameters() if value.grad is not None)


def test_it_does_without_equation_4_and_parts_share_it(small_recipe):
    words = ["loss.teacher=1", "loss.consistency=1", "memory.consistency=false", "memory.start=paper"]
    recipe, pair = with_overrides(small_recipe, words, "test"), (draw(4, 3, 32, 32, seed=1), draw(4, 3, 32, 32, seed=2))
    host = moved(build_host(recipe)).eval()
    _, whole, _ = objective_of(recipe, host, pair)
    assert "consistency" not in whole
    halves = [objective_of(recipe, host, [one[part] for one in pair])[1] for part in (slice(2), slice(2, 4))]
    mean = sum(terms["teacher"].item() for terms in halves) / 2
    assert whole["teacher"].item() == pytest.approx(mean, rel=1e-5)


def test_a_training_with_a_teacher_goes_on_where_it_stopped(small_recipe, both_ways):
    changes = ["optim.steps=2", "optim.batch_size=2", "data.identities=2", "log.held_out_pairs=2", "loss.teacher=1"]
    recipe = with_overrides(small_recipe, [*changes, "log.held_out_every=2", "log.sample_every=100"], "test")
    straight, _ = both_ways(recipe, stop_after=1)
    header = (straight / "log.csv").read_text().splitlines()[0].split(",")
    assert "teacher" in header


def test_the_control_of_the_skips_has_no_teacher():
    with pytest.raises(UserError, match=r"loss\.teacher: expected 0 with memory\.mode skip_control"):
        load_recipe("fomm_skip_control", ["loss.teacher=1"])
