"""One owner: the memory as a part of the root that is moved, copied, saved and taken off."""

import copy
import io
import pickle

import pytest
import torch

from memcomp import Handle, KeypointTap, inject


def test_the_root_owns_the_memory_once(hand):
    generator, handle = hand.attached()
    assert generator.memory_compensation is handle.compensation
    assert handle.root is generator
    assert handle.taps == hand.TAPS
    own = {f"memory_compensation.{key}" for key in handle.compensation.state_dict()}
    assert set(generator.state_dict()) == set(hand.Generator().state_dict()) | own
    parameters = [parameter for _, parameter in generator.named_parameters(remove_duplicate=False)]
    assert len(parameters) == len({id(parameter) for parameter in parameters})
    assert {id(p) for p in handle.compensation.parameters()} <= {id(p) for p in parameters}


def test_to_and_train_reach_the_memory_and_attaching_adopts_them(hand):
    generator = hand.Generator().double().eval()
    handle = inject(generator, hand.memory(), hand.TAPS, KeypointTap("motion"))
    assert not handle.compensation.training
    assert {parameter.dtype for parameter in handle.compensation.parameters()} == {torch.float64}
    generator.to(torch.float32).train()
    assert handle.compensation.training
    assert {parameter.dtype for parameter in handle.compensation.parameters()} == {torch.float32}


def test_state_dict_round_trip_between_attached_generators(hand):
    generator, _ = hand.attached("paper")
    buffer = io.BytesIO()
    torch.save(generator.state_dict(), buffer)
    buffer.seek(0)
    other = hand.Generator()
    inject(other, hand.memory("paper"), hand.TAPS, KeypointTap("motion"))
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(other.eval()(*hand.inputs()), generator.eval()(*hand.inputs()))


def test_a_deep_copy_works_by_itself_and_has_its_own_memory(hand):
    generator, handle = hand.attached()
    generator.eval()
    generator(*hand.inputs())
    average = copy.deepcopy(generator)
    before = generator(*hand.inputs())
    assert torch.equal(average(*hand.inputs()), before)
    twin = Handle.of(average)
    assert twin is not None
    assert twin is not handle
    assert twin.root is average
    assert twin.compensation is average.memory_compensation
    hand.gates_opened(twin)
    assert not torch.equal(average(*hand.inputs()), before)  # the copy's hand.hooks use the copy's memory
    assert torch.equal(generator(*hand.inputs()), before)
    hand.gates_opened(handle)
    assert torch.equal(generator(*hand.inputs()), average(*hand.inputs()))
    twin.remove()
    assert not hand.hooks(average)
    assert Handle.of(average) is None
    assert not torch.equal(generator(*hand.inputs()), before)  # the original still has its hooks


def test_a_copied_handle_holds_the_copied_root(hand):
    _, handle = hand.attached()
    twin = copy.deepcopy(handle)
    assert twin.root.memory_compensation is twin.compensation
    assert Handle.of(twin.root) is twin


@pytest.mark.parametrize("how", ["pickle", "torch.save"])
def test_an_attached_module_can_be_pickled(hand, how):
    generator, handle = hand.attached()
    hand.gates_opened(handle)
    generator.eval()
    if how == "pickle":
        other = pickle.loads(pickle.dumps(generator))
    else:
        buffer = io.BytesIO()
        torch.save(generator, buffer)
        buffer.seek(0)
        other = torch.load(buffer, weights_only=False)
    assert torch.equal(other(*hand.inputs()), generator(*hand.inputs()))
    handle_of_other = Handle.of(other)
    assert handle_of_other is not None
    handle_of_other.remove()
    assert set(other.state_dict()) == set(hand.Generator().state_dict())
    assert not hand.hooks(other)


def test_remove_gives_back_the_host_and_may_be_called_again(hand):
    generator, handle = hand.attached("paper")
    untouched = copy.deepcopy(generator)
    Handle.of(untouched).remove()
    keys = list(hand.Generator().state_dict())
    for _ in range(2):
        handle.remove()
        assert list(generator.state_dict()) == keys
        assert not hand.hooks(generator)
        assert not hasattr(generator, "memory_compensation")
        assert torch.equal(generator.eval()(*hand.inputs()), untouched.eval()(*hand.inputs()))
    again = inject(generator, handle.compensation, hand.TAPS, KeypointTap("motion"))
    handle.remove()  # the handle of the first time has nothing to take off any more
    assert generator.memory_compensation is again.compensation


def test_frozen_host_stays_bit_identical_while_the_whole_memory_moves(hand):
    generator, handle = hand.attached()
    gradients = [parameter.requires_grad for parameter in hand.Generator().parameters()]
    handle.freeze_host()
    handle.freeze_host()
    host = {key: value.clone() for key, value in generator.state_dict().items() if "memory_compensation" not in key}
    memory = {name: value.clone() for name, value in handle.compensation.named_parameters()}
    optimizer = torch.optim.Adam([p for p in generator.parameters() if p.requires_grad], lr=1e-2)
    for step in range(20):
        generator.train()
        assert handle.compensation.training
        assert not generator.middle[1].training
        image, driving, source = hand.inputs(step)
        with handle.compensation.recording() as record:
            loss = (generator(image, driving, source) - image).square().mean() + record.consistency_loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for key, value in host.items():
        assert torch.equal(generator.state_dict()[key], value), key
    for name, value in handle.compensation.named_parameters():
        assert not torch.equal(value, memory[name]), f"{name} did not move"
    twin = copy.deepcopy(generator).train()
    assert not twin.middle[1].training
    assert twin.memory_compensation.training
    handle.remove()
    assert generator.train().middle[1].training
    assert [parameter.requires_grad for parameter in generator.parameters()] == gradients
