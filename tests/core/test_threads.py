"""Calls of several threads share nothing; a tap whose module was replaced is noticed."""

import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from memcomp import CompensationConfig, KeypointTap, MemoryCompensation, Tap, inject

THREADS, CALLS, PEOPLE = 4, 200, 5


@pytest.fixture
def one_thread_of_torch():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def in_threads(work):
    """What `work(index)` gives in each of several threads that start together."""
    start = threading.Barrier(THREADS)

    def run(index):
        start.wait()
        return work(index)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(run, range(THREADS)))


@torch.no_grad()
def test_threads_with_different_people_give_each_its_own_picture(hand, one_thread_of_torch):
    generator, handle = hand.attached("paper")
    hand.gates_opened(handle)
    generator.eval()
    people = [hand.inputs(seed) for seed in range(PEOPLE)]
    alone = [generator(*person) for person in people]
    assert all((alone[0] - picture).abs().max() > 1e-3 for picture in alone[1:])

    def work(index):
        wrong = 0
        for call in range(CALLS):
            who = (index + call) % PEOPLE
            try:
                wrong += not torch.equal(generator(*people[who]), alone[who])
            except RuntimeError:  # "… was reached without source keypoints": another thread's call took them away
                wrong += 1
        return wrong

    assert in_threads(work) == [0] * THREADS


@torch.no_grad()
def test_recordings_of_threads_do_not_mix(hand, one_thread_of_torch):
    generator, handle = hand.attached("paper")
    generator.eval()

    def loss(who):
        with handle.compensation.recording() as record:
            generator(*hand.inputs(who))
            generator(*hand.inputs(who + THREADS))
        return record.consistency_loss().item()

    alone = [loss(who) for who in range(THREADS)]
    assert len(set(alone)) == THREADS
    assert in_threads(lambda who: {loss(who) for _ in range(25)}) == [{value} for value in alone]


def test_a_recording_hears_its_own_thread_alone(hand):
    generator, handle = hand.attached("paper")
    with handle.compensation.recording() as record, ThreadPoolExecutor(1) as pool:
        pool.submit(generator, *hand.inputs()).result()
        with pytest.raises(RuntimeError, match=r"nothing was recorded: .*in the same thread"):
            record.consistency_loss()
        generator(*hand.inputs())
        assert record.consistency_loss() > 0


@pytest.mark.parametrize("thread", ["the same", "another"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_function_that_records_is_recomputed_in_any_thread(hand, thread, reentrant):
    """On a GPU the autograd engine recomputes in a thread of its own; here `backward` is called in one."""
    generator, handle = hand.attached("paper")
    generator.eval()

    def recorded(*args):
        with handle.compensation.recording() as record:
            return generator(*args), record.consistency_loss()

    gradients = []
    for checkpointed in (False, True):
        generator.zero_grad()
        image, *keypoints = hand.inputs()
        args = (image.requires_grad_(), *keypoints)
        output, loss = checkpoint(recorded, *args, use_reentrant=reentrant) if checkpointed else recorded(*args)
        total = output.square().sum() + loss
        if thread == "another":
            with ThreadPoolExecutor(1) as pool:
                pool.submit(total.backward).result()
        else:
            total.backward()
        gradients.append([parameter.grad.clone() for parameter in handle.compensation.parameters()])
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))])
def test_copies_made_in_the_middle_of_a_call_carry_nothing_of_it(hand, copied):
    _, handle = hand.attached("paper")
    with handle.compensation.recording(), handle.disabled():
        handle._call.outer.append({})
        handle._call.shown = {"keypoints": torch.zeros(1)}
        twin, memory = copied(handle), copied(handle.compensation)
    assert memory._call.record is None
    assert (twin._call.disabled, twin._call.outer, twin._call.shown) == (False, [], {})


# --- a name that leads elsewhere ---


def replaced(generator, name):
    parent, _, last = name.rpartition(".")
    new = copy.deepcopy(generator.get_submodule(name))
    for part in new.modules():
        part._forward_pre_hooks.clear()
        part._forward_hooks.clear()
    setattr(generator.get_submodule(parent), last, new)


@pytest.mark.parametrize("name", ["middle", "up.0", "up.1", "motion"])
def test_a_module_replaced_after_attaching_is_named(hand, name):
    generator, handle = hand.attached()
    replaced(generator, name)
    with pytest.raises(RuntimeError, match=rf"'{name}' of this Generator is now another module.*remove\(\).*attach"):
        generator(*hand.inputs())
    with handle.disabled():
        generator(*hand.inputs())
    handle.remove()
    generator(*hand.inputs())


def test_a_layer_inside_a_wrapper_is_named_and_a_removed_one_is_gone(hand):
    class Adapter(nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base_layer = base

        def forward(self, x):
            return self.base_layer(x)

    generator, _ = hand.attached()
    middle, generator.middle = generator.middle, Adapter(generator.middle)
    with pytest.raises(RuntimeError, match="'middle' of this Generator is now another module, a Adapter"):
        generator(*hand.inputs())
    generator.middle = middle
    generator(*hand.inputs())
    del generator.up[1]
    with pytest.raises(RuntimeError, match=r"'up.1' of this Generator is gone"):
        generator(*hand.inputs())


def test_wrappers_of_torch_and_copies_are_no_replacement(hand):
    torch._dynamo.reset()
    generator, handle = hand.attached("paper")
    generator.eval()
    expected = generator(*hand.inputs())
    assert torch.equal(copy.deepcopy(generator)(*hand.inputs()), expected)
    for name in ("middle", "motion"):
        setattr(generator, name, torch.compile(generator.get_submodule(name), backend="eager"))
    torch.testing.assert_close(generator(*hand.inputs()), expected, atol=1e-6, rtol=0)
    handle.remove()


def test_the_module_with_the_keypoints_may_be_beside_the_root(hand):
    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.final = nn.Conv2d(4, 3, 1)

        def forward(self, feature):
            return self.final(feature)

    root, motion = Decoder(), hand.Motion()
    inject(root, hand.memory("paper", [4]), [Tap("final")], KeypointTap("motion"), beside={"motion": motion})
    motion(*hand.inputs())
    root(torch.rand(2, 4, 6, 6))
    root.final = nn.Conv2d(4, 3, 1)
    motion(*hand.inputs())
    with pytest.raises(RuntimeError, match="'final' of this Decoder is now another module, a Conv2d"):
        root(torch.rand(2, 4, 6, 6))


class Wrapper(nn.Module):
    """Stands for torch's wrapper of a name: it calls what it holds."""

    def forward(self, *args, **kwargs):
        (held,) = self.children()
        return held(*args, **kwargs)


@pytest.mark.parametrize(
    ("kind", "held"), [("DistributedDataParallel", "module"), ("FullyShardedDataParallel", "_fsdp_wrapped_module")]
)
@pytest.mark.parametrize("wrapped", ["up.1", "middle"])
def test_a_wrapper_around_a_tap_or_above_it_is_no_replacement(hand, kind, held, wrapped):
    torch.manual_seed(0)
    generator = hand.Generator().eval()
    generator.up[1] = nn.Sequential(generator.up[1])  # a tap below what is wrapped
    taps = [hand.TAPS[0], hand.TAPS[1], Tap("up.1.0", where="output")]
    inject(generator, hand.memory("paper"), taps, KeypointTap("motion"))
    expected = generator(*hand.inputs())
    wrapper = type(kind, (Wrapper,), {})()
    place = generator.get_submodule(wrapped)
    setattr(wrapper, held, place)
    parent = generator.up if wrapped == "up.1" else generator
    setattr(parent, wrapped.rsplit(".", 1)[-1], wrapper)
    assert torch.equal(generator(*hand.inputs()), expected)


@pytest.mark.parametrize("fullgraph", [True, False])
def test_what_begins_after_a_compiled_call_is_heard(hand, fullgraph):
    """The compiler must not take a state that was empty at its first call for one that stays empty."""
    torch._dynamo.reset()
    generator, handle = hand.attached("paper")
    compiled = torch.compile(generator, backend="eager", fullgraph=fullgraph)
    compiled(*hand.inputs())
    losses = []
    for call in (compiled, generator, compiled):
        with handle.compensation.recording() as record:
            call(*hand.inputs())
        losses.append(record.consistency_loss())
        compiled(*hand.inputs())
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(losses[2], losses[1])
    torch._dynamo.reset()


def test_noise_supplied_after_a_compiled_call_is_used():
    torch._dynamo.reset()
    torch.manual_seed(0)
    config = CompensationConfig.release(memory_channels=6, memory_size=(3, 4))
    unit = MemoryCompensation([8], 3, config).eval()
    nn.init.constant_(unit.iicm[0].noise_strength, 1.0)
    feature, keypoints, noise = torch.randn(2, 8, 5, 7), torch.rand(2, 3, 2), torch.randn(2, 1, 3, 4)
    compiled = torch.compile(unit, backend="eager", fullgraph=True)
    with torch.no_grad():
        silent = compiled(feature, keypoints, scale=0)
        with unit.supplying([noise]):
            noisy = compiled(feature, keypoints, scale=0)
        torch.testing.assert_close(noisy, unit(feature, keypoints, scale=0, noise=noise))
        assert not torch.allclose(noisy, silent)
        torch.testing.assert_close(compiled(feature, keypoints, scale=0), silent)
    torch._dynamo.reset()
