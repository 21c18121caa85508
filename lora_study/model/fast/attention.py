"""Attention for training on a CPU: plain matrix products, a few reviews at a time.

torch's fused attention is designed for long sequences and wide heads: with 12 heads of width 32 its backward pass takes
three times as long as the products written out. Written out for a whole batch, though, the scores (batch, heads, seq,
seq) travel to memory and back between the products. Those of a few reviews stay in the processor's cache. Dropout on
the probabilities is applied there too, by `lora_study.model.fast.dropout`. The result is the same up to rounding.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from lora_study.model.fast.dropout import Masks

NAME = "matrix_products"
MASKED = -1e4  # exp of it is zero in every type, and unlike -inf it never makes a NaN
CHUNK = 2**20  # scores computed together: 2 MiB in bf16


def matrix_product_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """softmax(scaling · Q Kᵀ + mask) V, as transformers calls an attention function.

    Args:
        module: The layer; not used.
        query: (batch, heads, queries, width).
        key: (batch, heads, seq, width), as value.
        value: See key.
        attention_mask: True where a key may be attended to: (batch, 1, 1 or queries, seq), the same for all queries;
            None attends to every key.
        dropout: Dropout probability on the attention probabilities.
        scaling: Factor on Q Kᵀ; by default 1/sqrt(width).
        kwargs: What other attention functions take; not used.

    Returns:
        (batch, queries, heads, width), and None for the probabilities.
    """
    batch, _, seq, width = key.shape
    bias = query.new_zeros(batch, 1, 1, seq)
    if attention_mask is not None:
        bias = bias.masked_fill(~attention_mask[:, :, :1], MASKED)
    factor = width**-0.5 if scaling is None else scaling
    return MatrixProductAttention.apply(query, key, value, bias, factor, dropout), None  # type: ignore[no-untyped-call]


class MatrixProductAttention(torch.autograd.Function):
    """dropout(softmax(scaling · Q Kᵀ + bias)) V, computed over chunks of the batch in both directions."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scaling: float, dropout: float
    ) -> Tensor:
        """The mixed values, (batch, queries, heads, width); bias is (batch, 1, 1, seq), the rest as above."""
        (batch, heads, queries, width), seq = query.shape, key.shape[2]
        masks = Masks(dropout) if dropout > 0 else None
        trained = any(ctx.needs_input_grad)
        kept = query.new_empty(batch if trained else 0, heads, queries, seq)  # the probabilities, for the backward pass
        mixed = query.new_empty(batch, queries, heads, width).transpose(1, 2)
        for rows in _chunks(query, key):
            q, k, v = (_flat(x[rows]) for x in (query, key, value))
            scores = torch.baddbmm(_flat(bias[rows].expand(-1, heads, -1, -1)), q, k.transpose(1, 2), alpha=scaling)
            probabilities = torch.softmax(scores, -1, out=_flat(kept[rows]) if trained else scores)
            if masks:
                # Probabilities are not negative, so their sign can say which are dropped, at no cost in memory.
                probabilities.copysign_(masks.draw(probabilities.shape, probabilities.dtype).sub_(0.5))
                probabilities, v = probabilities.clamp_min(0), v / masks.keep
            mixed[rows] = torch.bmm(probabilities, v).view(-1, heads, queries, width)
        ctx.save_for_backward(query, key, value, kept)
        ctx.scaling, ctx.keep = scaling, masks.keep if masks else 1.0
        return mixed.transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of query, key and value."""
        query, key, value, kept = ctx.saved_tensors
        gradients = [torch.empty_like(x.transpose(1, 2)).transpose(1, 2) for x in (query, key, value)]
        for rows in _chunks(query, key):
            q, k, v, mixed = (_flat(x[rows]) for x in (query, key, value, gradient.transpose(1, 2)))
            probabilities = dropped = _flat(kept[rows])
            if ctx.keep < 1:
                mixed = mixed / ctx.keep
                dropped, probabilities = probabilities.clamp_min(0), probabilities.abs()
            to_probabilities = torch.bmm(mixed, v.transpose(1, 2))
            if ctx.keep < 1:
                to_probabilities.mul_(torch.gt(dropped, 0, out=torch.empty_like(dropped)))
            # The public softmax needs autograd's graph for its gradient; this is the function behind it.
            to_scores = torch._softmax_backward_data(to_probabilities, probabilities, -1, query.dtype)
            parts = (
                torch.bmm(to_scores, k * ctx.scaling),
                torch.bmm(to_scores.transpose(1, 2), q * ctx.scaling),
                torch.bmm(dropped.transpose(1, 2), mixed),
            )
            for whole, part in zip(gradients, parts, strict=True):
                whole[rows] = part.view(whole[rows].shape)
        return *gradients, None, None, None


def use_matrix_products(model: PreTrainedModel) -> None:
    """Make a model compute its attention as matrix products, in place."""
    AttentionInterface.register(NAME, matrix_product_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)


def _chunks(query: Tensor, key: Tensor) -> list[slice]:
    """The batch in pieces of at most `CHUNK` scores, or of one review."""
    batch, heads, queries, _ = query.shape
    size = max(1, CHUNK // (heads * queries * key.shape[2]))
    return [slice(start, min(start + size, batch)) for start in range(0, batch, size)]


def _flat(x: Tensor) -> Tensor:
    """(rows, heads, ...) as (rows * heads, ...), contiguous: the matrix library is slow on strided views."""
    return x.reshape(-1, *x.shape[2:]).contiguous()
