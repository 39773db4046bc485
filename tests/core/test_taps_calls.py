"""What stays of a call (nothing), and calls within calls."""

import gc
import weakref

import pytest
import torch
from torch.utils.checkpoint import CheckpointError, checkpoint

from memcomp import KeypointTap, inject

# --- nothing stays alive ---


def alive_after(hand, call):
    image, driving, source = hand.inputs(requires_grad=True)
    source["value"] = source["value"] * 1.0  # has a history, as the output of a detector
    reference = weakref.ref(source["value"])
    call(image, driving, source)
    del image, driving, source
    gc.collect()
    return reference() is not None


def test_keypoints_are_let_go_after_a_forward(hand):
    generator, _ = hand.attached()
    assert not alive_after(hand, lambda *args: generator(*args).sum().item())


def test_keypoints_are_let_go_when_the_forward_raises(hand):
    generator, _ = hand.attached()

    def fails(module, args):
        raise ArithmeticError("the host failed")

    generator.final.register_forward_pre_hook(fails)

    def call(*args):
        with pytest.raises(ArithmeticError, match="the host failed"):
            generator(*args)

    assert not alive_after(hand, call)


def test_a_forward_cut_off_from_the_keyboard_leaves_nothing_after_the_next_one(hand):
    generator, _ = hand.attached()
    cut = True

    def interrupt(module, args):
        if cut:
            raise KeyboardInterrupt

    generator.final.register_forward_pre_hook(interrupt)

    def call(*args):
        nonlocal cut
        cut = True
        with pytest.raises(KeyboardInterrupt):
            generator(*args)
        cut = False
        generator(*hand.inputs(1))

    assert not alive_after(hand, call)
    expected = hand.attached()[0](*hand.inputs(1))
    assert torch.equal(generator(*hand.inputs(1)), expected)


# --- the root called several times ---


def test_two_calls_in_one_recording(hand):
    generator, handle = hand.attached("paper")
    generator.eval()
    losses = []
    for seeds in ([0], [1], [0, 1]):
        with handle.compensation.recording() as record:
            for seed in seeds:
                generator(*hand.inputs(seed))
            losses.append(record.consistency_loss())
    torch.testing.assert_close(losses[2], (losses[0] + losses[1]) / 2)


def test_a_root_that_calls_itself_keeps_the_keypoints_of_each_call_apart(hand):
    class Twice(hand.Generator):
        """Between its own motion network and its taps, runs once on other keypoints."""

        inner = None

        def forward(self, image, kp_driving, kp_source, depth=0):
            motion = self.motion(image, kp_driving, kp_source)
            if depth == 0:
                self.inner = self(image, kp_source, kp_driving, depth=1)
            return self.final(self.up[1](self.up[0](torch.cat([self.middle(self.first(image) + motion)] * 2, 1))))

    torch.manual_seed(0)
    generator = Twice().eval()
    inject(generator, hand.memory("paper"), hand.TAPS, KeypointTap("motion"))
    image, driving, source = hand.inputs()
    outer = generator(image, driving, source)
    assert torch.equal(outer, generator(image, driving, source, depth=1))
    generator(image, driving, source)
    assert torch.equal(generator.inner, generator(image, source, driving, depth=1))
    with pytest.raises(RuntimeError, match="without source keypoints"):
        generator.middle(torch.rand(1, 8, 6, 6))


def test_activation_checkpoint_around_the_whole_root_gives_the_same_gradients(hand):
    gradients = []
    for reentrant in (None, False, True):
        generator, handle = hand.attached("paper")
        generator.eval()  # a checkpoint runs norms twice, whoever hangs on to the host
        image, driving, source = hand.inputs()
        image.requires_grad_()
        if reentrant is None:
            output = generator(image, driving, source)
        else:
            output = checkpoint(generator, image, driving, source, use_reentrant=reentrant)
        output.square().sum().backward()
        gradients.append([parameter.grad for parameter in handle.compensation.parameters()])
    assert any(gradient is not None and gradient.abs().max() > 0 for gradient in gradients[0])
    torch.testing.assert_close(gradients[1], gradients[0])
    torch.testing.assert_close(gradients[2], gradients[0])


def test_activation_checkpoint_with_a_recording_gives_the_same_gradients_inside_it(hand):
    generator, handle = hand.attached("paper")
    generator.eval()
    gradients = []
    for call in (generator, lambda *args: checkpoint(generator, *args, use_reentrant=False)):
        generator.zero_grad()
        with handle.compensation.recording() as record:
            loss = call(*hand.inputs()).square().sum() + record.consistency_loss()
            loss.backward()
        gradients.append([parameter.grad.clone() for parameter in handle.compensation.parameters()])
    torch.testing.assert_close(gradients[1], gradients[0])
    with handle.compensation.recording() as record:
        loss = checkpoint(generator, *hand.inputs(), use_reentrant=False).square().sum() + record.consistency_loss()
    with pytest.raises(CheckpointError):  # never silently without the recorded part
        loss.backward()


def test_activation_checkpoint_around_a_part_with_taps_is_refused_in_words(hand):
    generator, _ = hand.attached()
    middle = generator.middle
    plain, args = hand.Generator.forward, hand.inputs()

    class Checkpointed(hand.Generator):
        def forward(self, image, kp_driving, kp_source):
            self.__dict__["_modules"]["middle"] = lambda x: checkpoint(middle, x, use_reentrant=False)
            try:
                return plain(self, image, kp_driving, kp_source)
            finally:
                self.__dict__["_modules"]["middle"] = middle

    generator.__class__ = Checkpointed
    output = generator(*args)
    with pytest.raises(RuntimeError, match="Checkpoint activations of the whole module only"):
        output.sum().backward()
