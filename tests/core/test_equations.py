"""Each equation of `memcomp.reference` one number at a time in float64, and the core against the equations."""

import inspect
import math

import pytest
import torch
from torch import Tensor

from memcomp import CompensationConfig, MemoryCompensation, reference
from memcomp.iicm import ModulatedConv2d
from memcomp.layers import DynamicConv2d

EXACT = {"rtol": 0, "atol": 1e-12}


def loop_conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (I, H, W), weight (O, I, 3, 3) -> (O, H, W), zero padded, one output number at a time."""
    out = torch.zeros(weight.shape[0], *x.shape[1:], dtype=x.dtype)
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1))
    for o in range(out.shape[0]):
        for i in range(out.shape[1]):
            for j in range(out.shape[2]):
                out[o, i, j] = (padded[:, i : i + 3, j : j + 3] * weight[o]).sum()
        if bias is not None:
            out[o] += bias[o]
    return out


@pytest.fixture
def unit() -> MemoryCompensation:
    return make()


def make(**fields: object) -> MemoryCompensation:
    torch.manual_seed(0)
    small = {"memory_channels": 6, "memory_size": (4, 3), "identity_hidden": 5, "temperature": 0.7}
    compensation = MemoryCompensation([8, 4], 3, CompensationConfig.paper(**small, **fields)).double()
    with torch.no_grad():
        for name, parameter in compensation.named_parameters():
            if name.endswith(("bias", "gate")):
                parameter.normal_()
    return compensation


# ------------------------------------------------------------------------------ the equations, one number at a time
@torch.no_grad()
def test_equation_1_number_by_number() -> None:
    torch.manual_seed(1)
    weight, memory, styles = torch.randn(5, 5, 3, 3).double(), torch.randn(1, 5, 4, 6).double(), torch.randn(2, 5)
    found = reference.condition(memory, weight, styles.double())
    for style, conditioned in zip(styles.double(), found, strict=True):
        scaled = torch.empty_like(weight)
        for i in range(5):
            scaled[:, i] = style[i] * weight[:, i]
        for j in range(5):
            scaled[j] = scaled[j] / math.sqrt(float((scaled[j] ** 2).sum()) + 1e-8)
        torch.testing.assert_close(conditioned, loop_conv3x3(memory[0], scaled), **EXACT)


@torch.no_grad()
def test_implicit_identity_number_by_number(unit: MemoryCompensation) -> None:
    projected, keypoints, mlp = torch.randn(2, 6, 5, 3).double(), torch.rand(2, 3, 2).double(), unit.iicm[0].mlp
    found = reference.identity(projected, keypoints, mlp)
    for b in range(2):
        pooled = [float(channel.sum()) / 15 for channel in projected[b]]
        row = torch.tensor([*pooled, *(v for point in keypoints[b].tolist() for v in point)], dtype=torch.float64)
        hidden = (mlp[0].weight @ row + mlp[0].bias).clamp(min=0)
        torch.testing.assert_close(found[b], mlp[2].weight @ hidden + mlp[2].bias, **EXACT)


@torch.no_grad()
def test_dynamic_kernel_number_by_number() -> None:
    torch.manual_seed(2)
    conv = DynamicConv2d(5, 7, kernels=3, temperature=0.5, hidden=4, bias=True).double()
    conv.bias.normal_()
    memory, projected = torch.randn(2, 5, 3, 4).double(), torch.randn(2, 5, 6, 2).double()
    kernels, biases = reference.dynamic_kernel(conv, projected)
    convolved = conv(memory, projected.mean((2, 3)))
    for b in range(2):
        pooled = projected[b].mean((1, 2))
        hidden = [max(0.0, float(row @ pooled)) for row in conv.attention[0].weight]
        logits = [
            float(sum(w * h for w, h in zip(row, hidden, strict=True)) + bias)
            for row, bias in zip(conv.attention[2].weight, conv.attention[2].bias, strict=True)
        ]
        exps = [math.exp(value / 0.5) for value in logits]
        mixture = [e / sum(exps) for e in exps]
        torch.testing.assert_close(kernels[b].flatten(), sum(p * w for p, w in zip(mixture, conv.weight, strict=True)))
        torch.testing.assert_close(biases[b], sum(p * v for p, v in zip(mixture, conv.bias, strict=True)), **EXACT)
        torch.testing.assert_close(convolved[b], loop_conv3x3(memory[b], kernels[b], biases[b]), **EXACT)


@torch.no_grad()
def test_equation_2_number_by_number() -> None:
    torch.manual_seed(3)
    query, (key, value) = torch.randn(2, 6, 5, 3).double(), torch.randn(2, 2, 6, 4, 3).double()
    found = reference.attend(query, key, value, 0.5)
    for b in range(2):
        for i in range(5):
            for j in range(3):
                exps = [math.exp(0.5 * float(query[b, :, i, j] @ k)) for k in key[b].flatten(1).t()]
                attended = sum(e / sum(exps) * v for e, v in zip(exps, value[b].flatten(1).t(), strict=True))
                torch.testing.assert_close(found[b, :, i, j], attended, **EXACT)


def test_equation_4_number_by_number() -> None:
    projected = torch.randn(2, 6, 7, 5).double().requires_grad_()
    value, target = torch.randn(2, 6, 4, 3).double(), reference.target(projected, (4, 3))
    assert not target.requires_grad
    assert torch.equal(target[:, :, ::3, ::2], projected[:, :, ::6, ::4])  # corners lie on corners
    terms = [abs(float(a - b)) for a, b in zip(value.flatten(), target.flatten(), strict=True)]
    assert float(reference.consistency(value, target)) == pytest.approx(sum(terms) / len(terms), abs=1e-12)


# ------------------------------------------------------------------------------ the core against the equations
@torch.no_grad()
def test_modulated_convolution_is_equation_1() -> None:
    torch.manual_seed(1)
    conv, memory, style = ModulatedConv2d(5).double(), torch.randn(1, 5, 4, 6).double(), torch.randn(2, 5).double()
    torch.testing.assert_close(conv(memory, style), reference.condition(memory, conv.weight, style, conv.eps), **EXACT)


@pytest.mark.parametrize("scale", [0, 1])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"sharing": "networks"},
        {"split": "interleaved"},
        {"split": "none"},
        {"start": "identity"},
        {"start": "identity", "split": "interleaved"},
        {"identity_conditioning": False},
        {"attention_scale": 0.25},
    ],
)
@torch.no_grad()
def test_paper_is_equations_1_to_4(fields: dict[str, object], scale: int) -> None:
    unit = make(**fields)
    torch.manual_seed(3)
    feature = torch.randn(2, unit.channels[scale], 5, 3).double()
    for keypoints in (torch.rand(2, 3, 2).double() * 2 - 1, torch.rand(1, 3, 2).double()):
        ours, paper = unit.compensate(feature, keypoints, scale), reference.compensate(unit, feature, keypoints, scale)
        for name in ("feature", "value", "target"):
            torch.testing.assert_close(getattr(ours, name), getattr(paper, name), rtol=0, atol=1e-11)
        torch.testing.assert_close(unit(feature, keypoints, scale=scale), ours.feature, **EXACT)


@torch.no_grad()
def test_a_recording_is_equation_4(unit: MemoryCompensation) -> None:
    features = [torch.randn(2, 8, 4, 3).double(), torch.randn(2, 4, 7, 5).double()]
    keypoints = torch.rand(1, 3, 2).double()
    papers = [reference.compensate(unit, feature, keypoints, scale) for scale, feature in enumerate(features)]
    with unit.recording() as record:
        for scale, feature in enumerate(features):
            unit(feature, keypoints, scale=scale)
    expected = sum(float(reference.consistency(paper.value, paper.target)) for paper in papers)
    assert float(record.consistency_loss()) == pytest.approx(expected, abs=1e-11)


@torch.no_grad()
def test_the_steps_are_those_of_the_whole(unit: MemoryCompensation) -> None:
    """What looks into a memory calls the same steps: M_s, the keys and the query give Eq. 2's matrix."""
    feature, keypoints = torch.randn(2, 8, 5, 3).double(), torch.rand(2, 3, 2).double()
    step, attention, layer = unit.condition(feature, keypoints, 0), unit.attention(0), unit.scales[0]
    query = torch.relu(attention.query(layer.projection(step.part)))
    keys = attention.keys(step.memory, step.descriptor).unflatten(2, (4, 3))
    attended = layer.output(reference.attend(query, keys, unit.compensate(feature, keypoints, 0).value))
    whole = unit(feature, keypoints, scale=0)
    torch.testing.assert_close(torch.cat([step.kept, attended], dim=1), whole, rtol=0, atol=1e-11)


def test_the_released_unit_does_not_follow_the_equations() -> None:
    unit = MemoryCompensation([4], 3, CompensationConfig.release(memory_channels=6, memory_size=(4, 3)))
    with pytest.raises(ValueError, match="'release' does not follow the paper's equations"):
        reference.compensate(unit, torch.zeros(1, 4, 2, 2), torch.zeros(1, 3, 2), 0)


def test_the_modules_name_the_yardstick_and_old_names_stay() -> None:
    from memcomp import iicm, mcm

    for module in (iicm, mcm):
        assert "memcomp.reference" in inspect.getdoc(module).split("\n\n")[1]
    for name in ("DynamicConv2d", "compose", "convolve_each", "merge", "preserve_variance", "split"):
        assert getattr(mcm, name).__module__ == "memcomp.layers"
