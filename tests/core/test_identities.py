"""The exact identities the core is written with, each against the plain form, in float64."""

import pytest
import torch
import torch.nn.functional as F

from memcomp import CompensationConfig, MemoryCompensation, reference
from memcomp.iicm import ModulatedConv2d
from memcomp.layers import compose

EXACT = {"rtol": 0, "atol": 1e-12}


@pytest.fixture
def unit() -> MemoryCompensation:
    torch.manual_seed(0)
    config = CompensationConfig.paper(memory_channels=12, memory_size=(5, 6), identity_hidden=7)
    compensation = MemoryCompensation([8, 24], 3, config).double()
    with torch.no_grad():
        for name, parameter in compensation.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    return compensation


def test_a_modulated_convolution_is_scale_convolve_scale() -> None:
    conv, memory, style = ModulatedConv2d(6).double(), torch.randn(1, 6, 5, 4).double(), torch.randn(3, 6).double()
    torch.testing.assert_close(conv(memory, style), reference.condition(memory, conv.weight, style, conv.eps), **EXACT)


def test_projection_and_query_are_one_convolution(unit: MemoryCompensation) -> None:
    projection, query, x = unit.scales[0].projection, unit.mcm[0].query, torch.randn(2, 4, 5, 3).double()
    weight, bias = compose(query, projection)
    torch.testing.assert_close(F.conv2d(x, weight[..., None, None], bias), query(projection(x)), **EXACT)


def test_pooling_and_resizing_commute_with_the_projection(unit: MemoryCompensation) -> None:
    layer, x = unit.scales[0], torch.randn(2, 4, 9, 7).double()
    torch.testing.assert_close(layer.describe(x), layer.projection(x).mean((2, 3)), **EXACT)
    resized = F.interpolate(layer.projection(x), (5, 6), mode="bilinear", align_corners=True)
    torch.testing.assert_close(layer.target(x, (5, 6)), resized, **EXACT)


def test_the_output_convolution_commutes_with_attention(unit: MemoryCompensation) -> None:
    output = unit.scales[0].output
    matrix = torch.softmax(torch.randn(2, 11, 30).double(), dim=-1)
    value = torch.randn(2, 12, 5, 6).double()
    after = output((value.flatten(2) @ matrix.transpose(1, 2))[..., None])[..., 0]
    torch.testing.assert_close(output(value).flatten(2) @ matrix.transpose(1, 2), after, **EXACT)


@pytest.mark.parametrize(("scale", "folded"), [(0, True), (1, False)])
def test_the_output_convolution_is_folded_where_that_is_cheaper(
    unit: MemoryCompensation, scale: int, folded: bool
) -> None:
    """Narrow features: W_o acts on the value's kernel. Wide ones: on its tokens. The result is the same."""
    feature, keypoints = torch.randn(2, unit.channels[scale], 6, 5).double(), torch.rand(2, 3, 2).double()
    calls = []
    unit.mcm[scale].value.register_forward_hook(lambda *_: calls.append(1))
    without = unit(feature, keypoints, scale=scale)
    assert len(calls) == (0 if folded else 1)
    torch.testing.assert_close(without, unit.compensate(feature, keypoints, scale).feature, **EXACT)


def test_so_it_is_where_the_memory_is_read_by_place() -> None:
    """Where F_V is asked for, the convolution acts on it; where it is not, on the kernel. The result is the same."""
    torch.manual_seed(0)
    placed = CompensationConfig.placed(memory_channels=12, memory_size=(5, 6), identity_hidden=7)
    unit = MemoryCompensation([4], 3, placed).double()
    with torch.no_grad():
        for parameter in unit.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    given = {"feature": torch.randn(2, 4, 6, 5), "visibility": torch.rand(2, 1, 6, 5)}
    given |= {"keypoints": torch.rand(2, 3, 2), "driving": torch.rand(2, 3, 2)}
    given = {name: value.double() for name, value in given.items()}
    calls = []
    unit.mcm[0].value.register_forward_hook(lambda *_: calls.append(1))
    without = unit(**given, scale=0)
    assert not calls
    torch.testing.assert_close(without, unit.compensate(**given, scale=0).feature, **EXACT)
    assert calls


@pytest.mark.parametrize("scale", [0, 1])
@pytest.mark.parametrize("record", [False, True])
def test_the_whole_equals_the_plain_equations_with_every_gradient(
    unit: MemoryCompensation, scale: int, record: bool
) -> None:
    feature = torch.randn(2, unit.channels[scale], 6, 7).double().requires_grad_()
    keypoints = torch.rand(2, 3, 2).double().requires_grad_()
    inputs = [feature, keypoints, *(p for n, p in unit.named_parameters() if "s.1" not in n and "m.1" not in n)]
    if scale == 1:
        inputs = [feature, keypoints, *(p for n, p in unit.named_parameters() if "s.0" not in n and "m.0" not in n)]
    losses = []
    for output in (unit.compensate(feature, keypoints, scale), reference.compensate(unit, feature, keypoints, scale)):
        loss = (output.feature * torch.linspace(-1, 1, 7).double()).sum()
        losses.append(loss + F.l1_loss(output.value, output.target) if record else loss)
    if not record:
        losses[0] = (unit(feature, keypoints, scale=scale) * torch.linspace(-1, 1, 7).double()).sum()
    torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=1e-10)
    for mine, plain in zip(*(torch.autograd.grad(loss, inputs) for loss in losses), strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-10, atol=1e-11)
