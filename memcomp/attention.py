"""The one attention: many queries, few keys, and no stored matrix (MCNet Eq. 2).

out = softmax(ReLU(W x + b)^T K) V'. A 256x256 feature against a 32x32 memory has 65,536 queries and 1,024 keys: the
matrix alone takes 268 MB. Here queries are made, compared and summed in chunks that stay in the cache, and made again
in the backward pass. The projection before the query is linear, so the caller folds it into W; the output
convolution after the attention is linear and the rows of a softmax sum to one, so the caller folds it into V'.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Entries of the attention matrix held at a time: 8 MB on a CPU (half or twice as much is as fast); more on a GPU.
CHUNK_CPU, CHUNK_GPU = 2**21, 2**26


class Query(NamedTuple):
    """What the places of a feature ask the memory: the arguments of `cross_attention` beside keys and values."""

    feature: Tensor
    weight: Tensor
    bias: Tensor
    more: Tensor | None = None
    unit: bool = False
    places: tuple[Tensor, Tensor] | None = None

    def read(self, keys: Tensor, values: Tensor) -> Tensor:
        """Attend: see `cross_attention`."""
        feature, weight, bias, more, unit, places = self
        return cross_attention(feature, weight, bias, keys, values, more=more, unit=unit, places=places)

    @torch.no_grad()
    def logits(self, keys: Tensor, sample: int, places: slice) -> Tensor:
        """The logits (n, M) of some of a sample's places, counted row by row, for who wants to see them."""
        tokens = self.feature[sample].flatten(1)[:, places].t()  # (n, C)
        more = None if self.more is None else self.more[sample].flatten(1)[:, places].t()[None]
        here, there = self.places or (None, None)
        here = None if here is None else here[:, places]
        queries, _ = _queries(tokens[None], self.weight, self.bias, more, here, self.unit)
        return queries[0] @ _extended(keys[sample][None], there)[0]


def cross_attention(
    feature: Tensor,
    weight: Tensor,
    bias: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    more: Tensor | None = None,
    unit: bool = False,
    places: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """softmax(ReLU(weight x + bias)^T keys) values for each pixel x of the feature.

    Args:
        feature: (B, C, H, W), any strides.
        weight: (D, C), the query's 1x1 convolution.
        bias: (D,).
        keys: (B, D, M), already multiplied by the attention's scale.
        values: (B, E, M).
        more: (B, D, H, W), added before the ReLU of the query.
        unit: divide each query by its length.
        places: (P, H W) and (P, M): their product is added to the logits of every sample.

    Returns:
        (B, E, H, W), channels-last where the feature is.

    Under torch.compile and torch.export it is one un-chunked expression, of any batch: `shape[0]`, never `len`.
    """
    tensors: list[Any] = [feature, weight, bias, keys, values, more, *(places or (None, None))]
    if torch.is_autocast_enabled(feature.device.type):
        dtype = torch.get_autocast_dtype(feature.device.type)
        tensors = [None if t is None else t.to(dtype) for t in tensors]
    x, weight, bias, keys, values, more, here, there = tensors
    tokens = x.flatten(2).transpose(1, 2)  # (B, N, C)
    further = None if more is None else more.flatten(2).transpose(1, 2)  # (B, N, D)
    keys = _extended(keys, there)
    if torch.compiler.is_compiling():
        queries = F.linear(tokens, weight, bias)  # (B, N, D)
        queries = F.relu(queries if further is None else queries + further)
        queries = F.normalize(queries, dim=2) if unit else queries
        if here is not None:
            queries = torch.cat([queries, here.t().expand(queries.shape[0], -1, -1)], dim=2)  # (B, N, D + P)
        out = torch.softmax(queries @ keys, dim=-1) @ values.transpose(1, 2)  # (B, N, E)
    else:
        out = _ChunkedAttention.apply(tokens, weight, bias, keys, values, further, here, unit)
    return out.transpose(1, 2).unflatten(2, feature.shape[2:])


def _extended(keys: Tensor, there: Tensor | None) -> Tensor:
    """Keys (B, D, M) with the places of the tokens (P, M) below: (B, D + P, M). One product compares both."""
    return keys if there is None else torch.cat([keys, there.expand(keys.shape[0], -1, -1)], dim=1)


def _chunks(tokens: Tensor, keys: Tensor) -> Iterator[tuple[slice, slice]]:
    """Slices over (samples, queries) with at most about so many attention entries each."""
    (batch, queries, _), budget = tokens.shape, CHUNK_CPU if tokens.device.type == "cpu" else CHUNK_GPU
    rows = max(1, budget // keys.shape[2])
    samples = max(1, rows // max(queries, 1))
    for sample in range(0, batch, samples):
        for query in range(0, queries, rows):
            yield slice(sample, sample + samples), slice(query, query + rows)


def _queries(
    x: Tensor, weight: Tensor, bias: Tensor, more: Tensor | None, here: Tensor | None, unit: bool
) -> tuple[Tensor, Tensor | None]:
    """ReLU(W x + b + more), of length one if `unit`, then the places (P, n) of who asks.

    From (b, n, C) it makes (b, n, D + P), and the lengths before, (b, n, 1).
    """
    width = len(weight)
    made = x.new_empty(*x.shape[:2], width + (0 if here is None else len(here)))
    queries, length = made[..., :width], None
    torch.addmm(bias, x.reshape(-1, x.shape[2]), weight.t(), out=made.flatten(0, 1)[:, :width])
    if more is not None:
        queries += more
    queries.relu_()
    if unit:
        length = torch.linalg.vector_norm(queries, dim=2, keepdim=True).clamp_(min=torch.finfo(made.dtype).tiny)
        queries /= length
    if here is not None:
        made[..., width:] = here.t()
    return made, length


def _empty_tokens(like: Tensor, channels: int) -> Tensor:
    """(B, N, channels) in the memory layout of `like`: channels-last, or channels-first seen as tokens."""
    batch, tokens, _ = like.shape
    if like.stride(2) == 1 and like.stride(1) != 1:
        return like.new_empty(batch, tokens, channels)
    return like.new_empty(batch, channels, tokens).transpose(1, 2)


def _accumulate(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b; the total of half-precision products is kept in float32."""
    if total.dtype == a.dtype:
        total.baddbmm_(a, b)
    else:
        total += torch.bmm(a, b)


class _ChunkedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        tokens: Tensor,
        weight: Tensor,
        bias: Tensor,
        keys: Tensor,
        values: Tensor,
        more: Tensor | None,
        here: Tensor | None,
        unit: bool,
    ) -> Tensor:
        ctx.save_for_backward(tokens, weight, bias, keys, values, more, here)
        ctx.unit = unit
        out = _empty_tokens(tokens, values.shape[1])
        with torch.autocast(tokens.device.type, enabled=False):
            for b, n in _chunks(tokens, keys):
                queries, _ = _queries(tokens[b, n], weight, bias, _part(more, b, n), _places(here, n), unit)
                logits = queries @ keys[b]  # (b, n, M)
                out[b, n] = torch.softmax(logits, dim=-1) @ values[b].transpose(1, 2)
                del logits  # or it would live until the next chunk's are made
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        tokens, weight, bias, keys, values, more, here = ctx.saved_tensors
        total, width = torch.promote_types(tokens.dtype, torch.float32), len(weight)
        d_keys, d_values, d_weight = (torch.zeros_like(t, dtype=total) for t in (keys, values, weight[None]))
        d_bias = torch.zeros_like(bias, dtype=total)
        d_tokens = _empty_tokens(tokens, tokens.shape[2]) if ctx.needs_input_grad[0] else None
        d_more = None if more is None else _empty_tokens(tokens, more.shape[2])
        d_here = None if here is None else torch.zeros_like(here, dtype=total)
        with torch.autocast(tokens.device.type, enabled=False):
            for b, n in _chunks(tokens, keys):
                x, g = tokens[b, n], grad[b, n]
                queries, length = _queries(x, weight, bias, _part(more, b, n), _places(here, n), ctx.unit)
                matrix = torch.softmax(queries @ keys[b], dim=-1)  # (b, n, M)
                _accumulate(d_values[b], g.transpose(1, 2), matrix)
                d_logits = torch._softmax_backward_data(g @ values[b], matrix, 2, matrix.dtype)
                _accumulate(d_keys[b], queries.transpose(1, 2), d_logits)
                d_queries = d_logits @ keys[b].transpose(1, 2)  # (b, n, D + P)
                if d_here is not None:
                    d_here[:, n] += d_queries[..., width:].sum(0, dtype=total).t()
                queries, d_queries = queries[..., :width], d_queries[..., :width]
                if length is not None:  # what changes a query's length changes nothing
                    d_queries = (d_queries - queries * (queries * d_queries).sum(2, keepdim=True)) / length
                d_queries = d_queries * (queries > 0)
                _accumulate(d_weight, d_queries.flatten(0, 1).t()[None], x.reshape(-1, x.shape[2])[None])
                d_bias += d_queries.sum((0, 1), dtype=total)
                if d_tokens is not None:
                    d_tokens[b, n] = d_queries @ weight
                if d_more is not None:
                    d_more[b, n] = d_queries
        found = (d_tokens, d_weight[0], d_bias, d_keys, d_values, d_more, d_here)
        return (*(None if t is None else t.to(tokens.dtype) for t in found), None)


def _part(more: Tensor | None, samples: slice, places: slice) -> Tensor | None:
    return None if more is None else more[samples, places]


def _places(here: Tensor | None, places: slice) -> Tensor | None:
    return None if here is None else here[:, places]
