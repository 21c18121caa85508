"""Attention for a CPU: plain matrix products, a few reviews at a time, and no padding.

torch's fused attention is designed for long sequences and wide heads: with 12 heads of width 32 its backward pass takes
three times as long as the products written out. Written out for a whole batch, though, the scores (batch, heads, seq,
seq) travel to memory and back between the products, and many are those of padding. Here the reviews lie end to end in
one row of tokens (`lora_study.model.fast.packing`) and are taken a few at a time, whose scores stay in the processor's
cache. Dropout on the probabilities is applied there too, by `lora_study.model.fast.dropout`. The result is the same up
to rounding.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lora_study.model.fast.dropout import Masks

NAME = "matrix_products"
CHUNK = 2**20  # scores computed together: 2 MiB in bf16


class Piece(NamedTuple):
    """Neighbouring reviews of one length, whose attention is computed together."""

    reviews: slice  # which of the batch
    tokens: slice  # where they lie in the row, one after the other


def pieces(lengths: Sequence[int], heads: int) -> list[Piece]:
    """The reviews of a batch in pieces of at most `CHUNK` scores, or of one review.

    Args:
        lengths: Tokens of each review, in the order in which they lie in the row.
        heads: Attention heads.
    """
    found, review, token = [], 0, 0
    for length, equal in itertools.groupby(lengths):
        left, most = len(list(equal)), max(1, CHUNK // (heads * length**2))
        while left:
            many = min(left, most)
            found.append(Piece(slice(review, review + many), slice(token, token + many * length)))
            review, token, left = review + many, token + many * length, left - many
    return found


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    *,
    pieces: Sequence[Piece],
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """softmax(scaling · Q Kᵀ) V of each review by itself, as transformers calls an attention function.

    Args:
        module: The layer; not used.
        query: (1, heads, tokens, width), or (1, heads, reviews, width) for one query per review.
        key: (1, heads, tokens, width), as value.
        value: See key.
        attention_mask: Not used: no token is padding.
        dropout: Dropout probability on the attention probabilities.
        scaling: Factor on Q Kᵀ; by default 1/sqrt(width).
        pieces: Where the reviews lie.
        kwargs: What other attention functions take; not used.

    Returns:
        (1, tokens or reviews, heads, width), and None for the probabilities.
    """
    factor = query.shape[-1] ** -0.5 if scaling is None else scaling
    rows = (x[0].transpose(0, 1) for x in (query, key, value))
    return PackedAttention.apply(*rows, pieces, factor, dropout)[None], None  # type: ignore[no-untyped-call]


class PackedAttention(torch.autograd.Function):
    """dropout(softmax(scaling · Q Kᵀ)) V of each review, computed piece by piece in both directions."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, pieces: Sequence[Piece], scaling: float, dropout: float
    ) -> Tensor:
        """The mixed values, (queries, heads, width); query is of that shape, key and value (tokens, heads, width)."""
        masks = Masks(dropout) if dropout > 0 else None
        keep, trained = masks.keep if masks else 1.0, any(ctx.needs_input_grad)
        kept = []  # the probabilities, for the backward pass
        mixed = torch.empty_like(query)
        for asking, answering, count in _places(pieces, query, key):
            q, k, v = _heads(query, asking, count), _heads(key, answering, count), _heads(value, answering, count)
            probabilities = torch.softmax(torch.bmm(q * scaling, k.transpose(1, 2)), -1)
            if trained:
                kept.append(probabilities)
            if masks:
                # Probabilities are not negative, so their sign can say which are dropped, at no cost in memory.
                probabilities.copysign_(masks.draw(probabilities.shape, probabilities.dtype).sub_(0.5))
                probabilities, v = probabilities.clamp_min(0), v / keep
            _put(mixed, asking, count, torch.bmm(probabilities, v))
        ctx.save_for_backward(query, key, value, *kept)
        ctx.pieces, ctx.scaling, ctx.keep = pieces, scaling, keep
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of query, key and value."""
        query, key, value, *kept = ctx.saved_tensors
        gradients = [torch.empty_like(x) for x in (query, key, value)]
        places = _places(ctx.pieces, query, key)
        for (asking, answering, count), signed in zip(places, kept, strict=True):
            q, k, v = _heads(query, asking, count), _heads(key, answering, count), _heads(value, answering, count)
            mixed, dropped, probabilities = _heads(gradient, asking, count), signed, signed
            if ctx.keep < 1:
                mixed, dropped, probabilities = mixed / ctx.keep, signed.clamp_min(0), signed.abs()
            to_probabilities = torch.bmm(mixed, v.transpose(1, 2))
            # The functions behind the gradients of relu and softmax: the public ones need autograd's graph.
            if ctx.keep < 1:
                to_probabilities = torch.ops.aten.threshold_backward(to_probabilities, signed, 0)
            to_scores = torch._softmax_backward_data(to_probabilities, probabilities, -1, query.dtype)
            parts = (
                (asking, torch.bmm(to_scores, k * ctx.scaling)),
                (answering, torch.bmm(to_scores.transpose(1, 2), q * ctx.scaling)),
                (answering, torch.bmm(dropped.transpose(1, 2), mixed)),
            )
            for whole, (where, part) in zip(gradients, parts, strict=True):
                _put(whole, where, count, part)
        return *gradients, None, None, None


def _places(pieces: Sequence[Piece], query: Tensor, key: Tensor) -> list[tuple[slice, slice, int]]:
    """Per piece: where its queries lie, where its keys and values lie, and how many reviews it has."""
    every = len(query) == len(key)  # token asks, not one per review
    return [
        (piece.tokens if every else piece.reviews, piece.tokens, piece.reviews.stop - piece.reviews.start)
        for piece in pieces
    ]


def _heads(x: Tensor, where: slice, reviews: int) -> Tensor:
    """Of x (tokens, heads, width) some reviews, as (reviews * heads, length, width).

    Contiguous: the matrix library is slow on strided views.
    """
    return x[where].view(reviews, -1, *x.shape[1:]).transpose(1, 2).flatten(0, 1).contiguous()


def _put(x: Tensor, where: slice, reviews: int, part: Tensor) -> None:
    """Write what `_heads` has the shape of to its place in x."""
    x[where].view(reviews, -1, *x.shape[1:]).transpose(1, 2).copy_(part.view(reviews, -1, *part.shape[1:]))
