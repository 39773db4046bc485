"""`handle.disabled()`: inside, the host gives exactly its own output."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from memcomp import Handle


@pytest.fixture
def pair(hand):
    """An attached generator whose memory shows, and what it gives with and without it."""
    generator, handle = hand.attached("paper")
    generator.eval()
    plain = copy.deepcopy(generator)
    Handle.of(plain).remove()
    on, off = generator(*hand.inputs()).detach(), plain(*hand.inputs()).detach()
    assert not torch.equal(on, off)
    return generator, handle, on, off


@torch.no_grad()
def test_inside_the_host_gives_its_own_output_and_outside_the_memorys(hand, pair):
    generator, handle, on, off = pair
    hooks = len(hand.hooks(generator))
    with handle.disabled():
        assert torch.equal(generator(*hand.inputs()), off)
        assert len(hand.hooks(generator)) == hooks
    assert torch.equal(generator(*hand.inputs()), on)


@torch.no_grad()
@pytest.mark.parametrize("case", ["bf16 autocast", "channels_last", "training"])
def test_its_own_output_bit_for_bit_in_every_mode(hand, pair, case):
    generator, handle, _, _ = pair
    image, *keypoints = hand.inputs()
    generator.train(case == "training")
    if case == "channels_last":
        generator, image = generator.to(memory_format=torch.channels_last), image.to(memory_format=torch.channels_last)
    plain = copy.deepcopy(generator)
    Handle.of(plain).remove()
    with torch.autocast("cpu", torch.bfloat16, enabled=case == "bf16 autocast"), handle.disabled():
        for _ in range(2):  # norms of both move alike
            assert torch.equal(generator(image, *keypoints), plain(image, *keypoints))


@torch.no_grad()
def test_it_nests_and_ends_with_an_exception(hand, pair):
    generator, handle, on, off = pair
    with handle.disabled():
        with handle.disabled():
            pass
        assert torch.equal(generator(*hand.inputs()), off)
        with pytest.raises(KeyError), handle.disabled():
            raise KeyError
        assert torch.equal(generator(*hand.inputs()), off)
    with pytest.raises(KeyError), handle.disabled():
        raise KeyError
    assert torch.equal(generator(*hand.inputs()), on)


@torch.no_grad()
def test_it_holds_for_its_own_thread(hand, pair):
    generator, handle, on, off = pair

    def elsewhere():
        return generator(*hand.inputs()).detach()

    with handle.disabled(), ThreadPoolExecutor(1) as pool:
        assert torch.equal(pool.submit(elsewhere).result(), on)
        assert torch.equal(generator(*hand.inputs()), off)


def test_a_call_without_keypoints_and_a_part_of_the_root_run_as_they_would(hand, pair):
    generator, handle, _, _ = pair
    with handle.disabled():
        generator.middle(torch.rand(1, 8, 6, 6))
        image, _, _ = hand.inputs()
        generator.motion.forward = lambda image, kp_driving, kp_source: torch.zeros(2, 1, 1, 1)
        generator(image, None, None)


def test_nothing_is_recorded_inside_and_the_loss_says_so(hand, pair):
    generator, handle, _, _ = pair
    with handle.compensation.recording() as record:
        with handle.disabled():
            generator(*hand.inputs())
        with pytest.raises(RuntimeError, match=r"nothing was recorded: .*not inside `handle\.disabled\(\)`"):
            record.consistency_loss()
        generator(*hand.inputs(1))
    with handle.compensation.recording() as other:
        generator(*hand.inputs(1))
    assert torch.equal(record.consistency_loss(), other.consistency_loss())


def test_no_gradient_reaches_the_memory(hand, pair):
    generator, handle, _, _ = pair
    with handle.disabled():
        generator(*hand.inputs()).sum().backward()
    assert all(parameter.grad is None for parameter in handle.compensation.parameters())
    assert generator.first.weight.grad is not None


def test_with_activation_checkpointing_it_belongs_inside(hand, pair):
    generator, handle, _, off = pair

    def plain(*args):
        with handle.disabled():
            return generator(*args)

    image, *keypoints = hand.inputs()
    output = checkpoint(plain, image.requires_grad_(), *keypoints, use_reentrant=False)
    assert torch.equal(output, off)
    output.sum().backward()
    assert image.grad is not None


@torch.no_grad()
@pytest.mark.parametrize("how", ["torch.compile", "module.compile()"])
def test_on_off_on_under_compile(hand, pair, how):
    torch._dynamo.reset()
    generator, handle, on, off = pair
    compiled = generator
    if how == "torch.compile":
        compiled = torch.compile(generator, backend="eager", fullgraph=True)
    else:
        generator.compile(backend="eager", fullgraph=True)
    for _ in range(2):
        torch.testing.assert_close(compiled(*hand.inputs()), on, atol=1e-6, rtol=0)
        with handle.disabled():
            torch.testing.assert_close(compiled(*hand.inputs()), off, atol=1e-6, rtol=0)
            with handle.disabled():
                torch.testing.assert_close(compiled(*hand.inputs()), off, atol=1e-6, rtol=0)
    torch.testing.assert_close(compiled(*hand.inputs()), on, atol=1e-6, rtol=0)


@torch.no_grad()
def test_export_takes_what_holds_at_the_time(hand, pair):
    generator, handle, on, off = pair
    with handle.disabled():
        program = torch.export.export(generator, hand.inputs())
    torch.testing.assert_close(program.module()(*hand.inputs()), off, atol=1e-6, rtol=0)
    program = torch.export.export(generator, hand.inputs())
    torch.testing.assert_close(program.module()(*hand.inputs()), on, atol=1e-5, rtol=0)
