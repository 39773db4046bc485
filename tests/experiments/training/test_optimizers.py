"""Optimisers and schedule."""

import math

import pytest
import torch

from memcomp.experiments.checkpoints.build import build_host
from memcomp.experiments.errors import UserError
from memcomp.experiments.recipe.sections import OptimSection
from memcomp.experiments.training import optimizers
from memcomp.experiments.training.optimizers import Optimisers, rate_factor


def test_a_memory_may_have_a_rate_of_its_own_and_parts_are_clipped_apart(small_recipe):
    host = build_host(small_recipe)
    optimisers = Optimisers(host, OptimSection(steps=1, lr=0.1, memory_lr=0.01, clip=1.0))
    assert optimisers.set_rate(0.5) == 0.05
    rates = {group["lr"]: len(group["params"]) for group in optimisers.adams["generator"].param_groups}
    assert rates == {0.05: len(optimisers.names["generator"]) - len(list(host.memory.parameters())),
                     0.005: len(list(host.memory.parameters()))}  # fmt: skip
    for part, scale in (("generator", 100.0), ("kp_detector", 1e-3)):
        for parameter in optimisers._parameters(part):
            parameter.grad = torch.full_like(parameter, scale)
    kept = [parameter.grad.clone() for parameter in optimisers._parameters("kp_detector")]
    norm = optimisers.step(optimisers.generator_parts())
    assert norm > 100
    clipped = torch.stack([p.grad.norm() for p in optimisers._parameters("generator")]).norm()
    assert clipped.item() == pytest.approx(1, rel=1e-3)
    assert all(torch.equal(a, p.grad) for a, p in zip(kept, optimisers._parameters("kp_detector"), strict=True))


def test_rates_are_torch_s_schedulers():
    section = OptimSection(steps=40, schedule="multistep", milestones=(2, 3), gamma=0.1)
    adam = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(adam, [2, 3], 0.1)
    for step in range(40):
        assert rate_factor(step, 40, 10, section) == pytest.approx(adam.param_groups[0]["lr"])
        adam.step()
        if step % 10 == 9:
            scheduler.step()
    tail = OptimSection(steps=100, schedule="cosine_tail", tail=0.4, warmup=10)
    factors = [rate_factor(step, 100, 10, tail) for step in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9:61] == [1] * 52
    assert factors[80] == pytest.approx(0.5)
    assert factors[100] == pytest.approx(0, abs=1e-12)
    assert sorted(factors[60:], reverse=True) == factors[60:]


@pytest.mark.parametrize("order", [2, "inf"])
def test_named_parts_are_clipped_as_torch_clips(small_recipe, order):
    host = build_host(small_recipe)
    section = OptimSection(steps=1, clip=0.5, clip_norm=order, clip_parts=("kp_detector",))
    optimisers, gradients = Optimisers(host, section), torch.Generator().manual_seed(0)
    expected = {}
    for part in ("generator", "kp_detector"):
        parameters = optimisers._parameters(part)
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=gradients)
        copies = [parameter.detach().clone() for parameter in parameters]
        for copy, parameter in zip(copies, parameters, strict=True):
            copy.grad = parameter.grad.clone()
        if part == "kp_detector":
            torch.nn.utils.clip_grad_norm_(copies, 0.5, norm_type=float(order))
        expected[part] = [copy.grad for copy in copies]
    optimisers.step(optimisers.generator_parts())
    for part, wanted in expected.items():
        found = [parameter.grad for parameter in optimisers._parameters(part)]
        assert all(torch.allclose(a, b, rtol=1e-4) for a, b in zip(found, wanted, strict=True)), part
    with pytest.raises(UserError, match="clip_parts: expected some of generator, kp_detector, got 'kp_detectr'"):
        Optimisers(host, OptimSection(steps=1, clip_parts=("kp_detectr",)))


def test_weight_decay_is_adam_s_and_a_part_without_gradients_stays(small_recipe):
    host = build_host(small_recipe)
    optimisers = Optimisers(host, OptimSection(steps=1, lr=0.1, weight_decay=0.5))
    before = {name: value.clone() for name, value in host.kp_detector.named_parameters()}
    for parameter in optimisers._parameters("generator"):
        parameter.data.fill_(1)
        parameter.grad = torch.zeros_like(parameter)
    optimisers.step(optimisers.generator_parts())
    for parameter in optimisers._parameters("generator"):  # the decay is the whole gradient: Adam's first step is lr
        assert torch.allclose(parameter, torch.full_like(parameter, 0.9), atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in host.kp_detector.named_parameters())
    assert {key.split(".")[0] for key in optimisers.state()} == {"generator"}


@pytest.mark.parametrize("fused", [False, True])
def test_what_is_not_finite_changes_nothing_on_any_device(small_recipe, monkeypatch, fused):
    """A fused Adam, which decides on the device, is what CUDA gets; torch has one for the CPU too."""
    monkeypatch.setattr(optimizers, "_on_cuda", lambda parameters: fused)
    host = build_host(small_recipe)
    optimisers = Optimisers(host, OptimSection(steps=1, lr=0.1, clip=1.0))
    assert all(bool(adam.defaults["fused"]) == fused for adam in optimisers.adams.values())

    def take(value, **further):
        for parameter in host.parameters():
            parameter.grad = torch.full_like(parameter, 1e-3)
        next(host.kp_detector.parameters()).grad.view(-1)[0] = value
        return optimisers.step(optimisers.generator_parts(), **further)

    def everything():
        return {key: value.clone() for key, value in (host.state_dict() | optimisers.state()).items()}

    assert take(1.0).isfinite()
    before = everything()
    assert "generator.generator.final.weight.exp_avg" in before
    for value, further in ((math.nan, {}), (math.inf, {}), (1.0, {"unless": torch.tensor(True)})):
        assert take(value, **further).isfinite() == math.isfinite(value)
        after = everything()
        assert all(torch.equal(after[key], before[key]) for key in before)
    take(1.0, unless=torch.tensor(False))
    after = everything()
    assert not torch.equal(after["generator.final.weight"], before["generator.final.weight"])
    assert after["generator.generator.final.weight.step"] == 2


def test_a_fused_step_is_the_same_to_rounding(small_recipe, monkeypatch):
    found = []
    for fused in (False, True):
        monkeypatch.setattr(optimizers, "_on_cuda", lambda parameters, fused=fused: fused)
        host = build_host(small_recipe)
        optimisers, drawn = Optimisers(host, OptimSection(steps=1, lr=0.1, clip=1.0)), torch.Generator().manual_seed(0)
        for _ in range(2):
            for parameter in host.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=drawn)
            optimisers.step(optimisers.generator_parts())
        found.append(host.state_dict())
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, rtol=1e-5, atol=1e-6)
