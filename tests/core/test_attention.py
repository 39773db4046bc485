"""The chunked attention: equal to the plain expression, forward and backward, however it is cut."""

import pytest
import torch
from torch import Tensor

from memcomp import attention
from memcomp.attention import cross_attention


def plain(feature: Tensor, weight: Tensor, bias: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    queries = torch.relu(torch.einsum("dc,bchw->bdhw", weight, feature) + bias[:, None, None]).flatten(2)
    matrix = torch.softmax(queries.transpose(1, 2) @ keys, dim=-1)
    return (values @ matrix.transpose(1, 2)).unflatten(2, feature.shape[2:])


def inputs(batch: int, size: tuple[int, int], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = [(batch, 3, *size), (5, 3), (5,), (batch, 5, 7), (batch, 4, 7)]
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


# rows of 7 entries: one row at a time; two rows; a cut that leaves a rest; several samples at a time; everything
@pytest.mark.parametrize("budget", [1, 14, 77, 7 * 15 * 2, 2**20])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_equal_to_the_plain_expression(
    monkeypatch: pytest.MonkeyPatch, budget: int, layout: torch.memory_format
) -> None:
    monkeypatch.setattr(attention, "CHUNK_CPU", budget)
    tensors = inputs(3, (5, 3))
    tensors[0] = tensors[0].detach().contiguous(memory_format=layout).requires_grad_()
    ours, theirs = cross_attention(*tensors), plain(*tensors)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    grad = torch.randn_like(theirs)
    for mine, other in zip(
        torch.autograd.grad(ours, tensors, grad), torch.autograd.grad(theirs, tensors, grad), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-11)
    if layout == torch.channels_last:
        assert ours.is_contiguous(memory_format=torch.channels_last)


def test_gradcheck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "CHUNK_CPU", 21)
    assert torch.autograd.gradcheck(cross_attention, inputs(2, (2, 4)))


def test_a_frozen_feature_needs_no_gradient() -> None:
    tensors = inputs(2, (2, 4))
    tensors[0].requires_grad_(False)
    assert all(grad is not None for grad in torch.autograd.grad(cross_attention(*tensors).sum(), tensors[1:]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gradients_are_summed_in_float32(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """Many chunks: a sum kept in half precision would lose the last ones."""
    monkeypatch.setattr(attention, "CHUNK_CPU", 7)
    tensors = inputs(1, (40, 40), torch.float32)
    rounded = [tensor.detach().to(dtype).float().requires_grad_() for tensor in tensors]
    halves = [tensor.detach().to(dtype).requires_grad_() for tensor in tensors]
    exact = torch.autograd.grad(plain(*rounded).sum(), rounded)
    for mine, other in zip(torch.autograd.grad(cross_attention(*halves).sum(), halves), exact, strict=True):
        assert mine.dtype == dtype
        assert float((mine.float() - other).abs().max() / other.abs().max()) < 0.02


def test_nothing_of_the_matrix_is_stored() -> None:
    """What is saved for backward is the inputs: 5 tensors, far fewer numbers than the matrix has."""
    saved: list[Tensor] = []
    tensors = inputs(1, (32, 32))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        cross_attention(*tensors)
    assert sum(tensor.numel() for tensor in saved) <= sum(tensor.numel() for tensor in tensors) < 32 * 32 * 7
