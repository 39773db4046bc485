"""Optimisers and schedule."""

import pytest
import torch

from memcomp.experiments.checkpoint import build_host
from memcomp.experiments.optim import Optimisers, rate_factor
from memcomp.experiments.recipe import OptimSection


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
