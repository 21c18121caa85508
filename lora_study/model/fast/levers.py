"""What makes a run fast without changing what it computes, except for rounding: each lever and its gain.

`train.fast: false` turns all of it off; the tests compare the two. Gains are those of a LoRA training step on two CPU
cores (stand-in encoder, 256 tokens, batch 12, bf16), each measured with the ones above it in place.

Two levers are pulled before torch is loaded, so not here: threads wait briefly for one another, and few prepared matrix
products are kept (base/torch_environment.py).
"""

import contextlib
import ctypes
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DistilBertForSequenceClassification
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.distilbert.modeling_distilbert import TransformerBlock

from lora_study.model.fast.dropout import use_cheap_dropout
from lora_study.model.fast.packing import skip_padding

# The type autocast computes in, for each of Lightning's precisions; None is fp32 without autocast.
COMPUTE_DTYPE = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16, "32-true": None}

# glibc's mallopt: parameters and values.
ONE_ARENA = (-8, 1)
NO_MAPPINGS = (-4, 0)
NO_TRIMMING = (-1, 2**31 - 1)


def make_fast(model: DistilBertForSequenceClassification, device: torch.device, precision: str) -> None:
    """Prepare a model, already in its mode, for the device and precision it will be trained in; in place."""
    dtype = COMPUTE_DTYPE[precision]
    if dtype is not None:
        hold_frozen_linears_in(model, dtype)
        cast_once(model, dtype)
    if device.type == "cpu":
        use_cheap_dropout(model)
    compute_what_is_read(model, device)


def compute_what_is_read(model: DistilBertForSequenceClassification, device: torch.device) -> None:
    """The part of `make_fast` that speeds up classification, too; in place."""
    finish_first_token_only(model)
    if device.type == "cpu":
        keep_freed_memory()
        skip_padding(model)


def hold_frozen_linears_in(model: nn.Module, dtype: torch.dtype) -> None:
    """Store the weights of frozen linear layers in the type that autocast computes them in, in place.

    Autocast would convert the same fp32 weights at every step; converting them once gives the same products.
    Embeddings and layer norms stay fp32, as autocast leaves them.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear) and not any(parameter.requires_grad for parameter in module.parameters()):
            module.to(dtype)


def cast_once(model: DistilBertForSequenceClassification, dtype: torch.dtype) -> None:
    """Convert the input of each attention block to autocast's type once, in place: 1.08x.

    Left alone, autocast converts it again for query, key, value and each LoRA update, and converts each gradient back.
    """

    def low(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    def cast(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return tuple(low(value) for value in args), {name: low(value) for name, value in kwargs.items()}

    for block in model.distilbert.transformer.layer:
        block.get_submodule("attention").register_forward_pre_hook(cast, with_kwargs=True)


def finish_first_token_only(model: DistilBertForSequenceClassification) -> None:
    """Compute the last block's output for the first token alone, in place.

    The head reads no other token. What the last block computes for the others, beyond their keys and values, reaches
    neither the loss nor a gradient, so both stay the same.
    """
    block = model.distilbert.transformer.layer[-1]
    assert isinstance(block, TransformerBlock)
    block.forward = partial(_first_token, block)  # type: ignore[method-assign]


def _first_token(
    block: TransformerBlock,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    first: Tensor | None = None,
    **kwargs: Any,
) -> Tensor:
    """A transformer block's output for the first token: (batch, 1, dim), from hidden states (batch, seq, dim).

    For the reviews of a batch in one row (packing.py) ``first`` is where each begins, (reviews,), and the output is
    (1, reviews, dim).
    """
    attention, where = block.attention, slice(1) if first is None else first

    def heads(x: Tensor) -> Tensor:
        return x.view(len(x), -1, attention.n_heads, attention.attention_head_size).transpose(1, 2)

    # Convert once for keys and values, as `cast_once` does for the other blocks.
    device = hidden_states.device.type
    read = hidden_states.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else hidden_states
    mixed, _ = ALL_ATTENTION_FUNCTIONS[attention.config._attn_implementation](
        attention,
        heads(attention.q_lin(read[:, where])),
        heads(attention.k_lin(read)),
        heads(attention.v_lin(read)),
        None if attention_mask is None else attention_mask[:, :, :1],
        dropout=attention.dropout.p if block.training else 0.0,
        scaling=attention.scaling,
        **kwargs,
    )
    attended = block.sa_layer_norm(attention.out_lin(mixed.flatten(2)) + hidden_states[:, where])
    finished: Tensor = block.output_layer_norm(block.ffn(attended) + attended)
    return finished


def keep_freed_memory() -> None:
    """Have glibc keep the memory of freed tensors for the next ones: 1.06x; other C libraries are left as they are.

    Left alone, it hands large blocks back to the system at once, which must then clear every page again: 24,000 page
    faults per step. The change holds for the whole process.
    """
    with contextlib.suppress(AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in (ONE_ARENA, NO_MAPPINGS, NO_TRIMMING):
            mallopt(parameter, value)
