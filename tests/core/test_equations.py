"""Each equation of the paper against a loop-by-loop reference in float64."""

import math

import pytest
import torch
from torch import Tensor

from memcomp import CompensationConfig, MemoryCompensation
from memcomp.iicm import ModulatedConv2d
from memcomp.mcm import DynamicConv2d


def pad(x: Tensor) -> Tensor:
    return torch.nn.functional.pad(x, (1, 1, 1, 1))


def loop_conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (I, H, W), weight (O, I, 3, 3) -> (O, H, W), zero padded, one output number at a time."""
    out = torch.zeros(weight.shape[0], *x.shape[1:], dtype=x.dtype)
    padded = pad(x)
    for o in range(out.shape[0]):
        for i in range(out.shape[1]):
            for j in range(out.shape[2]):
                out[o, i, j] = (padded[:, i : i + 3, j : j + 3] * weight[o]).sum()
        if bias is not None:
            out[o] += bias[o]
    return out


def loop_eq1(memory: Tensor, weight: Tensor, style: Tensor, eps: float = 1e-8) -> Tensor:
    """Eq. 1 for one sample: memory (C, H, W), style (C,)."""
    scaled = torch.empty_like(weight)
    for i in range(weight.shape[1]):
        scaled[:, i] = style[i] * weight[:, i]
    for j in range(weight.shape[0]):
        scaled[j] = scaled[j] / math.sqrt(float((scaled[j] ** 2).sum()) + eps)
    return loop_conv3x3(memory, scaled)


def loop_dynamic(conv: DynamicConv2d, memory: Tensor, descriptor: Tensor) -> Tensor:
    """One sample: logits of the kernel attention, softmax, mixed kernel, convolution."""
    hidden = [max(0.0, float(row @ descriptor)) for row in conv.attention[0].weight]
    logits = [
        float(sum(w * h for w, h in zip(row, hidden, strict=True)) + b)
        for row, b in zip(conv.attention[2].weight, conv.attention[2].bias, strict=True)
    ]
    exps = [math.exp(value / conv.temperature) for value in logits]
    mixture = [e / sum(exps) for e in exps]
    weight = sum(p * w for p, w in zip(mixture, conv.weight, strict=True)).view(conv.shape)
    bias = None if conv.bias is None else sum(p * b for p, b in zip(mixture, conv.bias, strict=True))
    return loop_conv3x3(memory, weight, bias)


def loop_paper(m: MemoryCompensation, feature: Tensor, keypoints: Tensor, scale: int) -> tuple[Tensor, Tensor, Tensor]:
    """Eq. 1-3 for one sample (C, H, W): F_cpt, F_V, F_proj."""
    layer, iicm, mcm = m.scales[scale], m.iicm[scale], m.mcm[scale]
    half = feature.shape[0] // 2
    kept, part = feature[:half], feature[half:]
    height, width = part.shape[1:]
    channels = m.config.memory_channels
    projected = torch.zeros(channels, height, width, dtype=feature.dtype)
    query = torch.zeros_like(projected)
    for i in range(height):
        for j in range(width):
            projected[:, i, j] = layer.projection.weight[:, :, 0, 0] @ part[:, i, j] + layer.projection.bias
            query[:, i, j] = (mcm.query.weight[:, :, 0, 0] @ projected[:, i, j] + mcm.query.bias).clamp(min=0)
    descriptor = torch.stack([projected[c].sum() / (height * width) for c in range(channels)])
    style = torch.cat([descriptor, torch.tensor([v for point in keypoints.tolist() for v in point]).to(descriptor)])
    style = iicm.mlp[0].weight @ style + iicm.mlp[0].bias
    style = iicm.mlp[2].weight @ style.clamp(min=0) + iicm.mlp[2].bias
    memory = loop_eq1(m.memory.value, iicm.conv.weight, style)
    key, value = loop_dynamic(mcm.key, memory, descriptor), loop_dynamic(mcm.value, memory, descriptor)
    out = torch.zeros_like(part)
    for i in range(height):
        for j in range(width):
            logits = torch.tensor([float(query[:, i, j] @ k) for k in key.flatten(1).t()], dtype=feature.dtype)
            weights = logits.exp() / logits.exp().sum()
            attended = sum(w * v for w, v in zip(weights, value.flatten(1).t(), strict=True))
            out[:, i, j] = layer.output.weight[:, :, 0, 0] @ attended + layer.output.bias
    return torch.cat([kept, out]), value, projected


@pytest.fixture
def unit() -> MemoryCompensation:
    torch.manual_seed(0)
    config = CompensationConfig.paper(memory_channels=6, memory_size=(4, 3), identity_hidden=5, temperature=0.7)
    compensation = MemoryCompensation([8, 4], 3, config).double()
    with torch.no_grad():
        for name, parameter in compensation.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    return compensation


@torch.no_grad()
def test_modulated_convolution_is_equation_1() -> None:
    torch.manual_seed(1)
    conv, memory, style = ModulatedConv2d(5).double(), torch.randn(1, 5, 4, 6).double(), torch.randn(2, 5).double()
    expected = torch.stack([loop_eq1(memory[0], conv.weight, s) for s in style])
    torch.testing.assert_close(conv(memory, style), expected, rtol=0, atol=1e-12)


@torch.no_grad()
def test_dynamic_convolution_mixes_kernels() -> None:
    torch.manual_seed(2)
    conv = DynamicConv2d(5, 7, kernels=3, temperature=0.5, hidden=4, bias=True).double()
    conv.bias.normal_()
    memory, descriptor = torch.randn(2, 5, 3, 4).double(), torch.randn(2, 5).double()
    expected = torch.stack([loop_dynamic(conv, x, d) for x, d in zip(memory, descriptor, strict=True)])
    torch.testing.assert_close(conv(memory, descriptor), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale", [0, 1])
@torch.no_grad()
def test_paper_is_equations_1_to_3(unit: MemoryCompensation, scale: int) -> None:
    torch.manual_seed(3)
    feature = torch.randn(2, unit.channels[scale], 5, 3).double()
    keypoints = torch.rand(2, 3, 2).double() * 2 - 1
    output = unit.compensate(feature, keypoints, scale)
    for b in range(2):
        out, value, _ = loop_paper(unit, feature[b], keypoints[b], scale)
        torch.testing.assert_close(output.feature[b], out, rtol=0, atol=1e-11)
        torch.testing.assert_close(output.value[b], value, rtol=0, atol=1e-11)
    torch.testing.assert_close(unit(feature, keypoints, scale=scale), output.feature, rtol=0, atol=1e-12)


@torch.no_grad()
def test_equation_4_value_and_target(unit: MemoryCompensation) -> None:
    torch.manual_seed(4)
    features = [torch.randn(2, 8, 4, 3).double(), torch.randn(2, 4, 7, 5).double()]
    keypoints = torch.rand(1, 3, 2).double()
    expected = 0.0
    for scale, feature in enumerate(features):
        terms = []
        for sample in feature:
            _, value, projected = loop_paper(unit, sample, keypoints[0], scale)
            resized = torch.nn.functional.interpolate(projected[None], (4, 3), mode="bilinear", align_corners=True)[0]
            terms.append(sum(abs(float(a - b)) for a, b in zip(value.flatten(), resized.flatten(), strict=True)))
        expected += sum(terms) / (2 * 6 * 4 * 3)
    with unit.recording() as record:
        for scale, feature in enumerate(features):
            unit(feature, keypoints, scale=scale)
    assert float(record.consistency_loss()) == pytest.approx(expected, abs=1e-11)
