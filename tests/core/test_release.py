"""The released unit: every stage of it against numbers that the authors' code gave, in float32 and in float64."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from memcomp import CompensationConfig, MemoryCompensation
from memcomp.attention import cross_attention
from memcomp.checkpoint import from_release
from memcomp.layers import InstanceNorm
from memcomp.mcm import compose

GOLDEN = Path(__file__).parent.parent / "data" / "mcnet_memory.safetensors"
LEVELS = (32, 64, 128)


@pytest.fixture(scope="module")
def golden() -> tuple[dict[str, Tensor], dict[str, dict]]:
    with safe_open(GOLDEN, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, json.loads(file.metadata()["stages"])  # noqa: SIM118


def stages(m: MemoryCompensation, feature: Tensor, keypoints: Tensor, noise: Tensor, scale: int) -> Iterator[tuple]:
    """The released names of the unit's intermediate tensors and ours."""
    layer, iicm, mcm = m.scales[scale], m.iicm[0], m.mcm[0]
    part = feature[:, 1::2]
    yield "projected", (projected := layer.projection(part))
    descriptor = layer.describe(part)
    yield "style_input", torch.cat([descriptor, keypoints.flatten(1)], dim=1)
    yield "style_code", (code := iicm.identity(descriptor, keypoints))
    yield "modulated_memory", iicm.conv(m.memory(), iicm.modulation(code))
    yield "conditioned_memory", (memory := iicm(m.memory(), descriptor, keypoints, noise))
    yield "kernel_attention", mcm.key_value.mixture(descriptor)
    key, value = F.relu(mcm.key_value(memory, descriptor)).chunk(2, dim=1)
    yield "key", key
    yield "value", value
    yield "query", F.relu(mcm.query(projected))
    folded = compose(mcm.query, layer.projection)
    attended = cross_attention(part, *folded, key.flatten(2) / 4, value.flatten(2))
    yield "attention_output", attended
    yield "diff_conv_output", (difference := mcm.difference(projected - attended))
    yield "conv_output", layer.output[0](F.relu(difference) + projected)
    output = m.compensate(feature, keypoints, scale, noise)
    torch.testing.assert_close(output.value, value)
    yield "unit_output", output.feature


@pytest.mark.parametrize("scale", range(3))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@torch.no_grad()
def test_every_stage(golden: tuple, scale: int, dtype: torch.dtype) -> None:
    tensors, expected = golden
    weights = {key.removeprefix("weights."): value for key, value in tensors.items() if key.startswith("weights.")}
    compensation = from_release(weights, prefix="").to(dtype).eval()
    level = LEVELS[scale]
    inputs = [tensors[f"in.{name}"].to(dtype) for name in (f"feature_{level}", "keypoints", f"noise_{level}")]
    seen = set()
    for name, tensor in stages(compensation, *inputs, scale):
        stage = expected[f"level{level}.{name}"]
        assert list(tensor.shape) == stage["shape"], name
        numbers = tensors[f"out.level{level}.{name}"].flatten().to(dtype)
        atol = stage["atol"] if dtype == torch.float32 else 3 * stage["float64_deviation"]
        error = float((tensor.reshape(-1)[:: stage["step"]] - numbers).abs().max())
        assert error <= atol, f"{name}: {error} > {atol}"
        seen.add(f"level{level}.{name}")
    assert seen == {name for name in expected if name.startswith(f"level{level}.")}


@pytest.fixture
def unit() -> MemoryCompensation:
    torch.manual_seed(0)
    config = CompensationConfig.release(memory_channels=6, memory_size=(4, 3), identity_code=7)
    compensation = MemoryCompensation([8, 4], 3, config).double()
    with torch.no_grad():
        for name, parameter in compensation.named_parameters():
            if name.endswith("bias") or "noise" in name or name == "memory.value":
                parameter.normal_()
    return compensation


@torch.no_grad()
def test_non_square_features_against_the_equations(unit: MemoryCompensation) -> None:
    """The authors' code transposes these; here each pixel is written out."""
    feature, keypoints = torch.randn(1, 8, 5, 3).double(), torch.rand(1, 3, 2).double()
    layer, iicm, mcm = unit.scales[0], unit.iicm[0], unit.mcm[0]
    part = feature[:, 1::2]
    projected = layer.projection(part)
    code = torch.cat([projected.mean((2, 3)), keypoints.flatten(1)], dim=1)
    code = iicm.mlp[2](F.relu(iicm.mlp[0](code)))
    style = code @ iicm.modulation.weight.t() / math.sqrt(7) + iicm.modulation.bias
    kernel = iicm.conv.weight[None] / math.sqrt(6 * 9) * style[:, None, :, None, None]
    kernel = kernel / torch.sqrt(kernel.square().sum((2, 3, 4), keepdim=True) + 1e-8)
    memory = F.conv2d(unit.memory.value[None], kernel[0], padding=1)
    memory = math.sqrt(2) * F.leaky_relu(memory + iicm.bias[:, None, None], 0.2)
    mixture = mcm.key_value.mixture(projected.mean((2, 3)))[0]
    kernel = torch.einsum("k,kn->n", mixture, mcm.key_value.weight).view(mcm.key_value.shape)
    key, value = F.relu(F.conv2d(memory, kernel, mixture @ mcm.key_value.bias, padding=1))[0].chunk(2)
    query = F.relu(mcm.query(projected))
    attended = torch.zeros_like(projected)
    for i in range(5):
        for j in range(3):
            weights = torch.softmax(query[0, :, i, j] @ key.flatten(1) / 4, dim=0)
            attended[0, :, i, j] = value.flatten(1) @ weights
    out = layer.output[0](F.relu(mcm.difference(projected - attended)) + projected)
    out = (out - out.mean((2, 3), keepdim=True)) / torch.sqrt(out.var((2, 3), correction=0, keepdim=True) + 1e-5)
    out = F.relu(out * layer.output[1].weight[:, None, None] + layer.output[1].bias[:, None, None])
    expected = feature.clone()
    expected[:, 1::2] = out
    torch.testing.assert_close(unit(feature, keypoints, scale=0), expected, rtol=0, atol=1e-11)


def test_noise_is_only_what_is_supplied_or_asked_for(unit: MemoryCompensation) -> None:
    feature, keypoints = torch.randn(2, 8, 5, 3).double(), torch.rand(2, 3, 2).double()
    assert torch.equal(unit(feature, keypoints, scale=0), unit(feature, keypoints, scale=0))
    noise = torch.randn(2, 1, 4, 3)
    assert not torch.equal(unit(feature, keypoints, scale=0, noise=noise), unit(feature, keypoints, scale=0))
    noisy = MemoryCompensation(
        [8, 4], 3, CompensationConfig.from_dict(unit.config.to_dict() | {"noise": True})
    ).double()
    noisy.load_state_dict(unit.state_dict())
    assert not torch.equal(noisy(feature, keypoints, scale=0), noisy(feature, keypoints, scale=0))
    noisy.eval()
    assert torch.equal(noisy(feature, keypoints, scale=0), unit(feature, keypoints, scale=0))


def test_state_of_another_module_is_refused(golden: tuple) -> None:
    weights = {f"g.{key[8:]}": value for key, value in golden[0].items() if key.startswith("weights.")}
    del weights["g.query_conv.bias"]
    with pytest.raises(ValueError, match=r"missing \['query_conv.bias'\], unexpected \['extra'\]"):
        from_release({**weights, "g.extra": torch.zeros(1)}, prefix="g.")
    with pytest.raises(ValueError, match="missing"):
        from_release({"other.weight": torch.zeros(1)})


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_instance_norm_and_its_gradients_in_any_memory_format(batch, memory_format):
    """torch's own gives a wrong gradient for one picture whose gradient is channels_last."""
    norm = InstanceNorm(4, affine=True).double()
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    plain = torch.randn(batch, 4, 6, 5, dtype=torch.float64).requires_grad_()
    mean, variance = plain.mean((2, 3), keepdim=True), plain.var((2, 3), correction=0, keepdim=True)
    expected = (plain - mean) / (variance + norm.eps).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]
    gradient = torch.randn_like(expected)
    of_expected = torch.autograd.grad(expected, (plain, norm.weight, norm.bias), gradient)

    x = plain.detach().clone(memory_format=memory_format).requires_grad_()
    found = norm(x)
    assert found.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(found, expected)
    of_found = torch.autograd.grad(found, (x, norm.weight, norm.bias), gradient.contiguous(memory_format=memory_format))
    for one, other in zip(of_found, of_expected, strict=True):
        torch.testing.assert_close(one, other)


def test_instance_norm_of_one_place_is_the_bias_and_of_bf16_is_bf16():
    norm = InstanceNorm(4, affine=True)
    torch.nn.init.normal_(norm.bias)
    torch.testing.assert_close(
        norm(torch.randn(2, 4, 1, 1)), norm.bias.expand(2, 4)[:, :, None, None], atol=1e-4, rtol=0
    )
    with torch.autocast("cpu", torch.bfloat16):
        assert norm(torch.randn(2, 4, 3, 3, dtype=torch.bfloat16)).dtype == torch.bfloat16
