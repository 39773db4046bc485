"""A teacher: features that pass uncompensated, and what a recording compares with them."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from memcomp import CompensationConfig, Handle, KeypointTap, MemoryCompensation, Tap, inject, reference

SMALL = {"memory_channels": 6, "memory_size": (4, 3), "identity_hidden": 5, "temperature": 0.7}
CHANNELS = (8, 4)


def make(**fields):
    torch.manual_seed(0)
    unit = MemoryCompensation(CHANNELS, 3, CompensationConfig.paper(**SMALL, **fields)).double()
    with torch.no_grad():
        for name, parameter in unit.named_parameters():
            if name.endswith(("bias", "gate")) or fields.get("start") == "residual":
                parameter.normal_()
    return unit


def features(seed):
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(2, c, 5 + c, 3, generator=draw, dtype=torch.float64) for c in CHANNELS]


KEYPOINTS = torch.rand(2, 3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 - 1


def recorded(unit, given, complete=None):
    with unit.recording(complete) as record:
        for scale, feature in enumerate(given):
            unit(feature, KEYPOINTS, scale=scale)
    return record


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"split": "interleaved"},
        {"split": "none", "start": "residual"},
        {"start": "identity"},
        {"consistency": False},
        {"normalised": True, "place": True},
    ],
)
@torch.no_grad()
def test_it_is_the_reference_and_leaves_equation_4_as_it_is(fields):
    unit, given, complete = make(**fields), features(1), dict(enumerate(features(2)))
    expected = 0.0
    for scale, feature in enumerate(given):
        output = reference.compensate(unit, feature, KEYPOINTS, scale)
        expected += reference.teach(unit, output, complete[scale], scale).item()
    record = recorded(unit, given, complete)
    assert record.teacher_loss().item() == pytest.approx(expected, abs=1e-11)
    assert torch.equal(record.consistency_loss(), recorded(unit, given).consistency_loss())


@torch.no_grad()
def test_several_calls_of_a_scale_are_averaged():
    unit, one, two, complete = make(), features(1), features(3), dict(enumerate(features(2)))
    alone = [recorded(unit, given, complete).teacher_loss().item() for given in (one, two)]
    with unit.recording(complete) as record:
        for given in (one, two):
            for scale, feature in enumerate(given):
                unit(feature, KEYPOINTS, scale=scale)
    assert record.teacher_loss().item() == pytest.approx(sum(alone) / 2, abs=1e-11)


def test_gradients_reach_memory_and_feature_and_not_the_teacher():
    unit, given = make(), [feature.requires_grad_() for feature in features(1)]
    complete = {scale: feature.requires_grad_() for scale, feature in enumerate(features(2))}
    with unit.passing() as passed:
        for scale, feature in complete.items():
            assert unit(feature, KEYPOINTS, scale=scale) is feature
    assert not any(feature.requires_grad for feature in passed.values())
    outputs = [reference.compensate(unit, feature, KEYPOINTS, scale) for scale, feature in enumerate(given)]
    expected = sum(reference.teach(unit, output, complete[scale], scale) for scale, output in enumerate(outputs))
    wanted = [*given, *complete.values(), *unit.parameters()]
    losses = recorded(unit, given, passed).teacher_loss(), expected
    ours, theirs = (torch.autograd.grad(loss, wanted, allow_unused=True) for loss in losses)
    assert len(ours) > 20 and all(gradient is None for gradient in (*ours[2:4], *theirs[2:4]))
    for one, other in zip(ours[:2] + ours[4:], theirs[:2] + theirs[4:], strict=True):
        assert one.abs().sum() > 0
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("mode", ["eval", "training"])
def test_what_passes_is_what_hooks_of_ones_own_find_in_the_host_alone(hand, mode):
    generator, handle = hand.attached("paper")
    generator.train(mode == "training")
    plain, found = copy.deepcopy(generator), {}
    Handle.of(plain).remove()
    plain.middle.register_forward_pre_hook(lambda module, args: found.update({0: args[0].clone()}))
    plain.up[0].register_forward_pre_hook(lambda module, args: found.update({1: args[0][:, 8:].clone()}))
    plain.up[1].register_forward_hook(lambda module, args, output: found.update({2: output.clone()}))
    expected = plain(*hand.inputs())
    with handle.compensation.recording() as record, handle.compensation.passing() as complete:
        assert torch.equal(generator(*hand.inputs()), expected)
    assert complete.keys() == found.keys() == {0, 1, 2}
    assert all(torch.equal(complete[scale], found[scale]) for scale in found)
    with pytest.raises(RuntimeError, match="nothing was recorded"):
        record.consistency_loss()
    assert not torch.equal(generator.eval()(*hand.inputs()), plain.eval()(*hand.inputs()))  # it compensates again


class Overwriting(nn.Module):
    """Changes the feature at the tap in place."""

    def __init__(self):
        super().__init__()
        self.tapped = nn.ReLU(inplace=True)

    def forward(self, feature, kp_source):
        return self.tapped(feature.clone())


@torch.no_grad()
def test_a_host_that_changes_the_feature_in_place_does_not_change_what_passed():
    generator, feature = Overwriting(), torch.randn(2, 4, 5, 3)
    memory = MemoryCompensation([4], 3, CompensationConfig.paper(**SMALL))
    inject(generator, memory, [Tap("tapped", channels=4)], KeypointTap("", key=None))
    with memory.passing() as complete:
        generator(feature, torch.rand(2, 3, 2))
    assert torch.equal(complete[0], feature)
    with memory.recording(complete) as record:
        generator(feature, torch.rand(2, 3, 2, generator=torch.Generator().manual_seed(1)))
    output = memory.compensate(feature, torch.rand(2, 3, 2, generator=torch.Generator().manual_seed(1)), 0)
    assert record.teacher_loss().item() == pytest.approx(reference.teach(memory, output, feature, 0).item(), rel=1e-5)


@torch.no_grad()
def test_it_holds_for_its_own_thread_copies_begin_anew_and_it_ends_with_an_exception():
    unit, feature = make(), features(1)[0]
    expected = unit(feature, KEYPOINTS, scale=0)
    with unit.passing() as outer, ThreadPoolExecutor(1) as pool:
        assert torch.equal(pool.submit(unit, feature, KEYPOINTS, scale=0).result(), expected)
        assert torch.equal(copy.deepcopy(unit)(feature, KEYPOINTS, scale=0), expected)
        with pytest.raises(KeyError), unit.passing():
            raise KeyError
        assert not outer
        assert torch.equal(unit(feature, KEYPOINTS, scale=0), feature)
    assert torch.equal(unit(feature, KEYPOINTS, scale=0), expected)


def test_a_teacher_under_compile(hand):
    torch._dynamo.reset()
    generator, handle = hand.attached("paper")
    memory, losses, wanted = handle.compensation, [], []
    for call in (generator.eval(), torch.compile(generator, backend="eager", fullgraph=True)):
        for _ in range(2):
            with torch.no_grad(), memory.passing() as complete:
                call(*hand.inputs(1))
            with memory.recording(complete) as record:
                call(*hand.inputs())
            losses.append((record.teacher_loss(), record.consistency_loss()))
            wanted.append(complete)
    for loss, complete in zip(losses[1:], wanted[1:], strict=True):
        torch.testing.assert_close(loss, losses[0])
        torch.testing.assert_close(complete, wanted[0])
    losses[-1][0].backward()
    assert memory.memory.value.grad.abs().max() > 0


def test_what_is_missing_is_said():
    unit, given = make(), features(1)
    with pytest.raises(ValueError, match="no complete feature of scale 1: call the host inside `passing"):
        recorded(unit, given, {0: given[0]})
    with pytest.raises(ValueError, match=r"the complete feature of scale 0 is \(1, 8, 13, 3\), not \(2, 8, 13, 3\)"):
        recorded(unit, given, {scale: feature[:1] for scale, feature in enumerate(given)})
    with pytest.raises(RuntimeError, match=r"no teacher recorded: call host\(driving, driving\) inside"):
        recorded(unit, given).teacher_loss()
