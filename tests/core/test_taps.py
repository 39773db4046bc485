"""What a tap does: features, source keypoints and channels."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from memcomp import KeypointTap, Tap, inject
from memcomp.taps import tap_channels

# --- what a tap does ---


@pytest.mark.parametrize("by_position", [False, True])
def test_taps_compensate_inputs_outputs_and_halves_with_the_source_keypoints(hand, by_position):
    generator, handle = hand.attached("paper", by_position=by_position)
    generator.eval()
    image, driving, source = hand.inputs()
    found = generator(image, driving, source)
    handle.remove()
    compensate = handle.compensation.eval()
    feature = generator.first(image) + generator.motion(image, driving, source)
    joined = torch.cat([generator.middle(compensate(feature, source["value"], scale=0)), feature], dim=1)
    joined = torch.cat([joined[:, :8], compensate(joined[:, 8:], source["value"], scale=1)], dim=1)
    feature = compensate(generator.up[1](generator.up[0](joined)), source["value"], scale=2)
    assert torch.equal(found, generator.final(feature).sigmoid())
    assert not torch.equal(found, generator(image, driving, source))


def test_a_tapped_module_called_by_keyword_is_compensated(hand):
    class Host(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = nn.Conv2d(4, 4, 1)

        def forward(self, image, *, kp_source):
            return self.block(input=image)

    host = Host()
    handle = inject(host, hand.memory("paper", [4]), [Tap("block")], KeypointTap("", "kp_source", key=None))
    image, points = torch.rand(2, 4, 6, 6), torch.rand(2, hand.KEYPOINTS, 2)
    found, compensated = host(image, kp_source=points), handle.compensation(image, points, scale=0)
    handle.remove()
    assert torch.equal(found, host.block(compensated))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("case", ["float32", "bf16 autocast", "channels_last", "float64"])
def test_identity_start_gives_exactly_the_output_of_the_host(hand, case, training):
    torch.manual_seed(0)
    host = hand.Generator().train(training)
    image, driving, source = hand.inputs()
    if case == "channels_last":
        host, image = host.to(memory_format=torch.channels_last), image.to(memory_format=torch.channels_last)
    if case == "float64":
        host, image = host.double(), image.double()
        driving, source = ({"value": kp["value"].double()} for kp in (driving, source))
    plain = copy.deepcopy(host)
    inject(host, hand.memory(), hand.TAPS, KeypointTap("motion"))
    with torch.autocast("cpu", torch.bfloat16, enabled=case == "bf16 autocast"):
        for _ in range(2):  # the second call sees norms that the first one moved, in train mode
            expected, found = plain(image, driving, source), host(image, driving, source)
            assert found.dtype == expected.dtype
            assert torch.equal(found, expected)


def test_source_keypoints_of_one_image_serve_the_whole_batch(hand):
    generator, handle = hand.attached()
    hand.gates_opened(handle)
    generator.eval()
    image, driving, source = hand.inputs(batch=3)
    one = {"value": source["value"][:1]}
    every = {"value": one["value"].expand(3, -1, -1)}
    torch.testing.assert_close(generator(image, driving, one), generator(image, driving, every))


# --- keypoints ---


class Bare(nn.Module):
    """Takes its keypoints in its own forward."""

    def __init__(self):
        super().__init__()
        self.block = nn.Conv2d(4, 4, 1)

    def forward(self, image, points):
        return self.block(image)


@pytest.mark.parametrize(
    ("key", "wrap"),
    [(None, lambda x: x), ("value", lambda x: {"value": x}), ("fg_kp", lambda x: SimpleNamespace(fg_kp=x))],
    ids=["tensor", "dict", "attribute"],
)
def test_keypoints_are_a_tensor_a_dict_entry_or_an_attribute(hand, key, wrap):
    host = Bare()
    handle = inject(host, hand.memory("paper", [4]), [Tap("block")], KeypointTap("", "points", key))
    image, points = torch.rand(2, 4, 6, 6), torch.rand(2, hand.KEYPOINTS, 2)
    compensated = handle.compensation(image, points, scale=0)
    found = host(image, wrap(points)), host(points=wrap(points), image=image)
    handle.remove()
    assert torch.equal(found[0], host.block(compensated))
    assert torch.equal(found[1], found[0])


@pytest.mark.parametrize(
    ("key", "given", "message"),
    [
        ("value", torch.rand(2, 5, 2), r"'points' of 'Bare' must be a dict or object with the tensor 'value'"),
        ("fg_kp", {"value": torch.rand(2, 5, 2)}, r"must be a dict or object with the tensor 'fg_kp'"),
        (None, {"value": torch.rand(2, 5, 2)}, r"'points' of 'Bare' must be a tensor, as KeypointTap\(key=None\) says"),
    ],
)
def test_keypoints_that_are_not_where_the_tap_says_are_named(hand, key, given, message):
    host = Bare()
    inject(host, hand.memory(channels=[4]), [Tap("block")], KeypointTap("", "points", key))
    with pytest.raises(ValueError, match=message):
        host(torch.rand(2, 4, 6, 6), given)


def test_the_output_of_the_root_itself_can_be_tapped(hand):
    host = Bare()
    handle = inject(host, hand.memory("paper", [4]), [Tap("", where="output")], KeypointTap("", "points", key=None))
    image, points = torch.rand(2, 4, 6, 6), torch.rand(2, hand.KEYPOINTS, 2)
    found = host(image, points)
    handle.remove()
    assert torch.equal(found, handle.compensation(host(image, points), points, scale=0))


def test_keypoints_argument_that_does_not_exist_is_refused_by_name(hand):
    with pytest.raises(ValueError, match=r"Motion\.forward has no argument 'kp', only: image, kp_driving, kp_source"):
        inject(hand.Generator(), hand.memory(), hand.TAPS, KeypointTap("motion", "kp"))


def test_keypoints_of_the_wrong_shape_are_refused(hand):
    host = Bare()
    inject(host, hand.memory(channels=[4]), [Tap("block")], KeypointTap("", "points", key=None))
    with pytest.raises(ValueError, match="keypoints"):
        host(torch.rand(2, 4, 6, 6), torch.rand(2, hand.KEYPOINTS - 1, 2))


def test_gradients_reach_the_source_keypoints_through_the_memory(hand):
    generator, handle = hand.attached("paper")
    image, driving, source = hand.inputs(requires_grad=True)
    with handle.compensation.recording() as record:
        generator(image, driving, source)
        (gradient,) = torch.autograd.grad(record.consistency_loss(), source["value"])
    assert gradient.abs().max() > 0


def test_keypoints_may_come_from_a_module_beside_the_root(hand):
    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.final = nn.Conv2d(4, 3, 1)

        def forward(self, image, motion):
            return self.final(image + motion)

    both = {"inpainting_network": Decoder(), "dense_motion_network": hand.Motion()}
    root, motion = both.values()
    keypoints = KeypointTap("dense_motion_network")
    handle = inject(root, hand.memory("paper", [4]), [Tap("final")], keypoints, beside=both)
    hand.gates_opened(handle)
    image, (_, driving, source) = torch.rand(2, 4, 6, 6), hand.inputs()

    def run(modules):
        return modules["inpainting_network"](image, modules["dense_motion_network"](image, driving, source))

    flow = hand.Motion()(image, driving, source)
    compensated = handle.compensation(image + flow, source["value"], scale=0)
    assert torch.equal(run(both), torch.conv2d(compensated, root.final.weight, root.final.bias))
    twin = copy.deepcopy(both)
    assert torch.equal(run(twin), run(both))
    with pytest.raises(RuntimeError, match="without source keypoints"):
        root(image, flow)  # nobody called the motion network: the keypoints of the last call are gone
    motion(image, driving, source)
    copy.deepcopy(both)  # between the two calls, with keypoints waiting
    handle.remove()
    assert not hand.hooks(root)
    assert not hand.hooks(motion)


def test_a_tap_reached_without_keypoints_says_to_call_the_module(hand):
    generator, _ = hand.attached()
    message = r"Call the module, Generator\(...\)"
    with pytest.raises(RuntimeError, match=message):
        generator.middle(torch.rand(1, 8, 6, 6))
    with pytest.raises(RuntimeError, match=message):
        generator.forward(*hand.inputs())
    with pytest.raises(RuntimeError, match=message):
        generator.middle(torch.rand(1, 8, 6, 6))


# --- channels ---


def test_channels_are_read_off_the_generator(hand):
    taps = (*hand.TAPS, Tap("middle.1"), Tap("final", where="output"))
    assert tap_channels(hand.Generator(), taps) == [8, 8, 4, 8, 3]
    up = nn.Sequential(nn.Upsample(scale_factor=2), nn.GroupNorm(2, 6), nn.ConvTranspose2d(6, 10, 2))
    assert tap_channels(up, [Tap(""), Tap("", where="output")]) == [6, 10]


def test_channels_that_cannot_be_read_must_be_given(hand):
    root = nn.Sequential(nn.ReLU(), nn.LazyConv2d(4, 1))
    for name in "01":
        with pytest.raises(ValueError, match=rf"cannot read the channels at the input of '{name}'.*channels=N"):
            tap_channels(root, [Tap(name)])
    assert tap_channels(root, [Tap("0", channels=12), Tap("0", part="second_half", channels=12)]) == [12, 6]


def test_an_odd_number_of_channels_has_no_second_half(hand):
    with pytest.raises(ValueError, match="'0' has 7 channels"):
        tap_channels(nn.Sequential(nn.Conv2d(7, 4, 1)), [Tap("0", part="second_half")])


def test_a_tap_that_meets_other_channels_than_the_memory_expects_names_them(hand):
    generator = hand.Generator()
    inject(generator, hand.memory(channels=(4, 8, 4)), hand.TAPS, KeypointTap("motion"))
    with pytest.raises(ValueError, match=r"input of 'middle' has 8 channels, scale 0 of the memory was made for 4"):
        generator(*hand.inputs())


def test_a_tap_that_meets_no_feature_map_names_its_place(hand):
    generator = hand.Generator()
    inject(generator, hand.memory(channels=[4]), [Tap("motion", where="output")], KeypointTap("motion"))
    generator.motion.forward = lambda image, kp_driving, kp_source: (image, image)
    with pytest.raises(ValueError, match=r"the output of 'motion' must be a tensor \(B, C, H, W\), not tuple"):
        generator(*hand.inputs())
