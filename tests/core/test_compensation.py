"""What a user may rely on: starts, Eq. 4's recording, dtypes, memory formats, copies, errors."""

import copy
import gc
import math
import pickle
import re
import weakref

import pytest
import torch
from torch import Tensor

from memcomp import CompensationConfig, MemoryCompensation

SMALL = {"memory_channels": 6, "memory_size": (3, 4), "identity_hidden": 5}
PRESETS = {"paper": CompensationConfig.paper, "release": CompensationConfig.release}


def make(preset: str = "paper", **overrides: object) -> MemoryCompensation:
    torch.manual_seed(0)
    return MemoryCompensation([8, 4], 3, PRESETS[preset](**{**SMALL, **overrides}))


def inputs(batch: int = 2, channels: int = 8) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(batch, channels, 5, 7), torch.rand(batch, 3, 2) * 2 - 1


# ------------------------------------------------------------------------------------------------ what comes out
@pytest.mark.parametrize("preset", PRESETS)
def test_samples_of_a_batch_do_not_see_each_other(preset: str) -> None:
    unit, (feature, keypoints) = make(preset), inputs(3)
    together = unit(feature, keypoints, scale=0)
    for b in range(3):
        alone = unit(feature[b : b + 1], keypoints[b : b + 1], scale=0)
        torch.testing.assert_close(together[b : b + 1], alone, rtol=0, atol=2e-6)


def test_keypoints_of_batch_one_serve_every_sample() -> None:
    unit, (feature, keypoints) = make(), inputs(3)
    one = keypoints[:1]
    assert torch.equal(unit(feature, one, scale=0), unit(feature, one.expand(3, -1, -1), scale=0))


@pytest.mark.parametrize(("how", "kept"), [("half", slice(0, 4)), ("interleaved", slice(0, None, 2))])
def test_kept_channels_keep_their_place(how: str, kept: slice) -> None:
    unit, (feature, keypoints) = make(split=how), inputs()
    out = unit(feature, keypoints, scale=0)
    changed = (out != feature).flatten(2).any(2).all(0)
    expected = torch.ones(8, dtype=torch.bool)
    expected[kept] = False
    assert torch.equal(out[:, kept], feature[:, kept])
    assert torch.equal(changed, expected)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("how", ["half", "interleaved", "none"])
def test_what_follows_may_change_the_result_in_place(preset: str, how: str) -> None:
    unit, (feature, keypoints) = make(preset, split=how), inputs()
    before = feature.clone()
    (reference,) = torch.autograd.grad((unit(feature, keypoints, scale=0) * 2).square().sum(), [unit.memory.value])
    (gradient,) = torch.autograd.grad(unit(feature, keypoints, scale=0).mul_(2).square().sum(), [unit.memory.value])
    torch.testing.assert_close(gradient, reference)
    assert torch.equal(feature, before)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_memory_format_and_dtype_are_the_features(preset: str, layout: torch.memory_format) -> None:
    unit, (feature, keypoints) = make(preset), inputs()
    reference = unit(feature, keypoints, scale=0)
    out = unit(feature.contiguous(memory_format=layout), keypoints, scale=0)
    assert out.is_contiguous(memory_format=layout)
    torch.testing.assert_close(out, reference, rtol=0, atol=2e-6)
    for dtype in (torch.float64, torch.bfloat16):
        assert unit(feature.to(dtype), keypoints, scale=0).dtype == dtype


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bfloat16_autocast(preset: str, dtype: torch.dtype) -> None:
    unit, (feature, keypoints) = make(preset), inputs()
    exact = unit(feature, keypoints, scale=0)
    with torch.autocast("cpu", torch.bfloat16), unit.recording() as record:
        out = unit(feature.to(dtype), keypoints, scale=0)
    assert out.dtype == dtype
    assert record.consistency_loss().dtype == torch.float32
    torch.testing.assert_close(out.float(), exact, rtol=0.1, atol=0.1)
    (out.float().square().sum() + record.consistency_loss()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in unit.memory.parameters())


@pytest.mark.parametrize("memory_init", ["released", "unit"])
def test_logits_start_with_unit_deviation_and_high_entropy(memory_init: str) -> None:
    for channels in (16, 128, 512):
        torch.manual_seed(2)
        config = CompensationConfig.paper(memory_channels=channels, memory_size=(16, 16), memory_init=memory_init)
        unit = MemoryCompensation([64], 10, config)
        layer, mcm, feature = unit.scales[0], unit.mcm[0], torch.randn(2, 32, 12, 12)
        with torch.no_grad():
            descriptor = layer.describe(feature)
            memory = unit.iicm[0](unit.memory(), descriptor, torch.rand(2, 10, 2) * 2 - 1)
            query = torch.relu(mcm.query(layer.projection(feature))).flatten(2)
            logits = query.transpose(1, 2) @ mcm.key(memory, descriptor).flatten(2) * mcm.scale
        assert 0.6 < float(logits.std(dim=-1).mean()) < 1.5
        matrix = torch.softmax(logits, dim=-1)
        assert float(-(matrix * matrix.log()).sum(-1).mean()) >= 0.8 * math.log(256)


@pytest.mark.parametrize("memory_init", ["released", "unit"])
@torch.no_grad()
def test_the_value_starts_with_unit_deviation(memory_init: str) -> None:
    """As Eq. 4's target: the gradients of query and key go through it."""
    torch.manual_seed(0)
    config = CompensationConfig.paper(memory_channels=64, memory_size=(8, 8), memory_init=memory_init)
    unit, (feature, keypoints) = MemoryCompensation([8], 3, config), inputs()
    assert 0.6 < float(unit.compensate(feature, keypoints, 0).value.std()) < 1.5


# ------------------------------------------------------------------------------------------------ starts
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_identity_start_is_exact(preset: str, autocast: bool, layout: torch.memory_format) -> None:
    unit, (feature, keypoints) = make(preset, start="identity"), inputs()
    feature = feature.contiguous(memory_format=layout)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert torch.equal(unit(feature, keypoints, scale=0), feature)
        assert torch.equal(unit(feature.bfloat16(), keypoints, scale=0), feature.bfloat16())


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(("dtype", "autocast"), [(torch.float64, False), (torch.float64, True), (torch.float16, False)])
def test_identity_start_is_exact_for_features_of_other_precision(
    preset: str, dtype: torch.dtype, autocast: bool
) -> None:
    """Also where neither the weights nor autocast have the feature's dtype."""
    unit, (feature, keypoints) = make(preset, start="identity"), inputs()
    feature = feature.to(dtype) / 3
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert torch.equal(unit(feature, keypoints, scale=0), feature)


@pytest.mark.parametrize("preset", PRESETS)
def test_one_place_is_a_feature_too(preset: str) -> None:
    unit, (feature, keypoints) = make(preset), inputs()
    out = unit(feature[:, :, :1, :1], keypoints, scale=0)
    assert out.shape == (*feature.shape[:2], 1, 1)
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("preset", PRESETS)
def test_a_unit_is_moved_to_channels_last(preset: str) -> None:
    unit, (feature, keypoints) = make(preset), inputs()
    expected = unit(feature, keypoints, scale=0)
    feature = feature.contiguous(memory_format=torch.channels_last)
    found = unit.to(memory_format=torch.channels_last)(feature, keypoints, scale=0)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


def test_identity_start_has_a_gradient_and_moves_everything() -> None:
    unit, (feature, keypoints) = make(start="identity"), inputs()
    assert unit.scales[0].gate.shape == (8,)
    optimizer = torch.optim.Adam(unit.parameters(), lr=1e-2)
    before = {name: parameter.detach().clone() for name, parameter in unit.named_parameters()}
    for step in range(3):
        loss = (
            unit(feature, keypoints, scale=0).square().sum() + unit(feature[:, :4], keypoints, scale=1).square().sum()
        )
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            assert float(unit.scales[0].gate.grad[4:].abs().min()) > 0
        optimizer.step()
    still = [name for name, parameter in unit.named_parameters() if torch.equal(parameter, before[name])]
    assert not still


def test_an_open_gate_is_the_paper() -> None:
    gated, plain, (feature, keypoints) = make(start="identity"), make(), inputs()
    plain.load_state_dict({key: value for key, value in gated.state_dict().items() if "gate" not in key})
    with torch.no_grad():
        gated.scales[0].gate.fill_(1)
    torch.testing.assert_close(gated(feature, keypoints, scale=0), plain(feature, keypoints, scale=0))


# ------------------------------------------------------------------------------------------------ ablations, sharing
def test_sharing() -> None:
    own, shared = make(), make(sharing="networks")
    assert (len(own.mcm), len(own.iicm), len(shared.mcm), len(shared.iicm)) == (2, 2, 1, 1)
    assert sum(key.startswith("memory.") for key in own.state_dict()) == 1
    feature, keypoints = inputs()
    shared(feature[:, :4], keypoints, scale=1).sum().backward()
    assert shared.mcm[0].query.weight.grad is not None and shared.scales[0].projection.weight.grad is None


def test_without_identity_conditioning_the_memory_is_m_o() -> None:
    unit, (feature, keypoints) = make(identity_conditioning=False), inputs()
    assert len(unit.iicm) == 0
    assert torch.equal(unit(feature, keypoints, scale=0), unit(feature, -keypoints, scale=0))
    descriptor = unit.scales[0].describe(feature[:, 4:])
    expected = unit.mcm[0].value(unit.memory(), descriptor)
    torch.testing.assert_close(unit.compensate(feature, keypoints, 0).value, expected)


def test_no_split_takes_odd_channels_and_changes_them_all() -> None:
    unit = MemoryCompensation([5], 3, CompensationConfig.paper(**SMALL, split="none"))
    feature, keypoints = inputs(channels=5)
    assert (unit(feature, keypoints, scale=0) != feature).flatten(2).any(2).all()


# ------------------------------------------------------------------------------------------------ Eq. 4
@pytest.mark.parametrize("preset", PRESETS)
def test_gradients_reach_the_memory_from_every_scale(preset: str) -> None:
    for scale, channels in enumerate((8, 4)):
        unit, (feature, keypoints) = make(preset), inputs(channels=channels)
        (unit(feature, keypoints, scale=scale) * torch.linspace(-1, 1, 7)).sum().backward()
        assert float(unit.memory.value.grad.abs().min()) > 0 or preset == "release"
        assert float(unit.memory.value.grad.abs().max()) > 0


@pytest.mark.parametrize("preset", PRESETS)
def test_equation_4_trains_the_memory_and_not_the_target(preset: str) -> None:
    unit, (feature, keypoints) = make(preset), inputs()
    output = unit.compensate(feature.requires_grad_(), keypoints, 0)
    assert not output.target.requires_grad and output.value.requires_grad
    with unit.recording() as record:
        unit(feature, keypoints, scale=0)
    record.consistency_loss().backward()
    assert float(unit.memory.value.grad.abs().max()) > 0
    assert float(feature.grad.abs().max()) > 0  # through the value's identity code and kernels, as released
    assert unit.scales[0].output is not None and all(p.grad is None for p in unit.scales[0].output.parameters())


def test_recording_averages_calls_and_sums_scales() -> None:
    unit, (feature, keypoints) = make(), inputs()
    others = [feature, feature * 2]
    terms = {}
    for scale in (0, 1):
        outs = [unit.compensate(f[:, : unit.channels[scale]], keypoints, scale) for f in others]
        terms[scale] = sum((o.value - o.target).abs().mean().item() for o in outs) / 2
    with unit.recording() as record:
        for f in others:
            unit(f, keypoints, scale=0)
            unit(f[:, :4], keypoints, scale=1)
        inside = record.consistency_loss()
    assert inside.item() == pytest.approx(terms[0] + terms[1], rel=1e-5)
    assert torch.equal(record.consistency_loss(), inside)


def test_recordings_do_not_nest_and_end_with_the_block() -> None:
    unit, (feature, keypoints) = make(), inputs()
    with unit.recording() as record, pytest.raises(RuntimeError, match="nest"), unit.recording():
        pass
    with pytest.raises(RuntimeError, match="nothing was recorded"):
        record.consistency_loss()
    unit(feature, keypoints, scale=0)
    with pytest.raises(RuntimeError, match="nothing was recorded"):
        record.consistency_loss()
    with pytest.raises(KeyError), unit.recording():
        raise KeyError
    with unit.recording() as record:  # the failed block is over too
        unit(feature, keypoints, scale=0)
    assert record.consistency_loss() > 0


def test_without_consistency_the_loss_is_zero() -> None:
    unit, (feature, keypoints) = make(consistency=False), inputs()
    with unit.recording() as record:
        unit(feature, keypoints, scale=0)
    assert float(record.consistency_loss()) == 0


# ---------------------------------------------------------------------------------------- nothing stays, all copies
@pytest.mark.parametrize("preset", PRESETS)
def test_nothing_is_kept_alive_after_a_forward(preset: str) -> None:
    unit, (feature, keypoints) = make(preset), inputs()
    with unit.recording() as record:
        out = unit(feature.requires_grad_(), keypoints, scale=0)
    loss = record.consistency_loss()
    alive = [weakref.ref(tensor) for tensor in (feature, keypoints, out, loss, record)]
    state = set(vars(unit))
    del feature, keypoints, out, loss, record
    gc.collect()
    assert [reference() for reference in alive] == [None] * 5
    assert unit._call.record is None and set(vars(unit)) == state


@pytest.mark.parametrize("preset", PRESETS)
def test_copies_compute_the_same_and_share_nothing(preset: str) -> None:
    unit, (feature, keypoints) = make(preset, start="identity"), inputs()
    with torch.no_grad():
        unit.scales[0].gate.fill_(0.5)
    expected = unit(feature, keypoints, scale=0)
    fresh = make(preset, start="identity")
    fresh.load_state_dict(unit.state_dict())
    for other in (copy.deepcopy(unit), pickle.loads(pickle.dumps(unit)), fresh):
        assert torch.equal(other(feature, keypoints, scale=0), expected)
        pointers = {p.data_ptr() for p in unit.parameters()}
        assert not pointers & {p.data_ptr() for p in other.parameters()}
    double = copy.deepcopy(unit).to(torch.float64)
    out = double(feature.double(), keypoints.double(), scale=0)
    torch.testing.assert_close(out.float(), expected, rtol=0, atol=1e-5)


def test_nothing_computed_from_weights_is_stale() -> None:
    """Change a weight, step an optimiser, load a state dict: each shows in the very next output."""
    unit, (feature, keypoints) = make().eval(), inputs()
    with torch.no_grad():
        first = unit(feature, keypoints, scale=0)
        unit.scales[0].output.weight.mul_(2)
        second = unit(feature, keypoints, scale=0)
    optimizer = torch.optim.SGD(unit.parameters(), lr=0.1)
    unit(feature, keypoints, scale=0).sum().backward()
    optimizer.step()
    with torch.no_grad():
        third = unit(feature, keypoints, scale=0)
        unit.load_state_dict(make().state_dict())
        fourth = unit(feature, keypoints, scale=0)
    assert not torch.equal(first, second) and not torch.equal(second, third)
    assert torch.equal(fourth, first)


# ------------------------------------------------------------------------------------------------ errors
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": 2}, "scale must be in 0..1, not 2"),
        ({"scale": -1}, "scale must be in 0..1, not -1"),
        ({"feature": torch.zeros(2, 6, 5, 7)}, r"feature of scale 0 must be \(B, 8, H, W\), not \(2, 6, 5, 7\)"),
        ({"feature": torch.zeros(8, 5, 7)}, r"must be \(B, 8, H, W\)"),
        ({"feature": torch.zeros(2, 8, 0, 7)}, r"must be \(B, 8, H, W\)"),
        ({"feature": torch.zeros(2, 8, 5, 7, dtype=torch.uint8)}, r"floating-point dtype, not torch\.uint8"),
        ({"keypoints": torch.zeros(2, 4, 2)}, r"keypoints must be \(2 or 1, 3, 2\), not \(2, 4, 2\)"),
        ({"keypoints": torch.zeros(2, 6)}, r"keypoints must be \(2 or 1, 3, 2\), not \(2, 6\)"),
        ({"keypoints": torch.zeros(3, 3, 2)}, r"keypoints must be \(2 or 1, 3, 2\), not \(3, 3, 2\)"),
        ({"noise": torch.zeros(2, 1, 3, 4)}, "noise is only used by variant 'release'"),
    ],
)
def test_wrong_inputs_are_named(change: dict, message: str) -> None:
    feature, keypoints = inputs()
    arguments = {"feature": feature, "keypoints": keypoints, "scale": 0, **change}
    with pytest.raises(ValueError, match=message):
        make()(**arguments)


def test_wrong_noise_is_named() -> None:
    with pytest.raises(ValueError, match=r"noise must be \(2 or 1, 1, 3, 4\), not \(2, 1, 4, 3\)"):
        make("release")(*inputs(), scale=0, noise=torch.zeros(2, 1, 4, 3))


@pytest.mark.parametrize(
    ("channels", "keypoints", "message"),
    [
        ([8, 5], 3, "even number of channels"),
        ([], 3, "at least one scale"),
        ([0], 3, "one scale"),
        ([8], 0, "keypoints >= 1"),
    ],
)
def test_wrong_sizes_are_named(channels: list[int], keypoints: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MemoryCompensation(channels, keypoints, CompensationConfig.paper(**SMALL))


@pytest.mark.parametrize("dims", [1, 3])
@pytest.mark.parametrize("preset", PRESETS)
def test_keypoints_may_have_any_number_of_coordinates(preset: str, dims: int) -> None:
    torch.manual_seed(0)
    config = PRESETS[preset](**SMALL)
    unit = MemoryCompensation([8, 4], 3, config, keypoint_dims=dims)
    feature, _ = inputs()
    points = (torch.rand(2, 3, dims) * 2 - 1).requires_grad_()
    out = unit(feature, points, scale=0)
    assert out.shape == feature.shape
    out.square().mean().backward()
    assert points.grad is not None and (points.grad.abs().sum((0, 1)) > 0).all()  # every coordinate counts
    wrong = re.escape(f"keypoints must be (2 or 1, 3, {dims}), not (2, 3, 2)")
    with pytest.raises(ValueError, match=wrong):
        unit(feature, torch.zeros(2, 3, 2), scale=0)
    with pytest.raises(ValueError, match="keypoint_dims >= 1, got 0"):
        MemoryCompensation([8], 3, config, keypoint_dims=0)


def test_driving_keypoints_have_as_many_coordinates() -> None:
    unit = MemoryCompensation([8], 3, CompensationConfig.paper(**SMALL, driving=True), keypoint_dims=3)
    feature, pose = inputs()[0], torch.rand(2, 3, 3)
    assert not torch.equal(
        unit(feature, pose, scale=0, driving=pose), unit(feature, pose, scale=0, driving=pose.flip(2))
    )
    with pytest.raises(ValueError, match=r"driving must be \(2 or 1, 3, 3\), not \(2, 3, 2\)"):
        unit(feature, pose, scale=0, driving=pose[:, :, :2])
