"""Attention as plain matrix products, for bf16 training on a CPU.

torch's fused attention is made for long sequences and wide heads. On two CPU cores in bf16, at 224 tokens and 12 heads
of width 32, its forward and backward pass took three times as long as the products written out, and two fifths of a
training step. The result is the same up to rounding.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "matrix_products"
MASKED = -1e4  # exp of it is zero in every type, and unlike -inf it never makes a NaN


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
        query: (batch, heads, seq, width), as key and value.
        key: See query.
        value: See query.
        attention_mask: True where a key may be attended to: (batch, 1, 1 or seq, seq), alike for all queries; None
            attends to all.
        dropout: Dropout probability on the attention probabilities.
        scaling: Factor on Q Kᵀ; by default 1/sqrt(width).
        kwargs: What other attention functions take; not used.

    Returns:
        (batch, seq, heads, width), and None for the probabilities.
    """
    batch, heads, seq, width = query.shape
    # Contiguous (batch * heads, seq, width): the matrix library is slow on strided views.
    q, k, v = (x.contiguous().view(batch * heads, seq, width) for x in (query, key, value))
    bias = q.new_zeros(batch, heads, 1, seq)
    if attention_mask is not None:
        bias = bias.masked_fill(~attention_mask[:, :, :1], MASKED)
    factor = width**-0.5 if scaling is None else scaling
    with torch.autocast(query.device.type, enabled=False):  # it would write the probabilities out in fp32
        # The mask is added inside the product, so that the (seq, seq) scores are not gone over again.
        scores = torch.baddbmm(bias.view(batch * heads, 1, seq), q, k.transpose(1, 2), alpha=factor)
        probabilities = F.dropout(scores.softmax(-1), dropout, training=dropout > 0)
        mixed = torch.bmm(probabilities, v)
    return mixed.view(batch, heads, seq, width).transpose(1, 2), None


def use_matrix_products(model: PreTrainedModel) -> None:
    """Let a model compute its attention so, in place."""
    AttentionInterface.register(NAME, matrix_product_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
