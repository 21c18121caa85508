"""What LoRA meets in the networks of other libraries, kept out of the mathematics.

Networks ask a linear layer for more than its output, store its weight transposed, compute in several number types, and
read a layer's weight instead of calling it.
"""

import re
import sys
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Number = TypeVar("Number", int, float)

SPEECH = ("wav2vec2", "wav2vec2_bert", "wav2vec2_conformer", "wavlm", "unispeech_sat")
# Modules that read the weight of one of their layers and never call the layer. They are listed by their forward, by
# name: only torch is needed, and a subclass with a forward of its own is not taken for its base class.
ONLY_READ = {
    "torch.nn.modules.activation.MultiheadAttention.forward": ("out_proj",),
    "transformers.models.data2vec.modeling_data2vec_audio.TDNNLayer.forward": ("kernel",),
    **{
        f"transformers.models.{module}.modeling_{module}.{name}.forward": layers
        for module, name, *layers in (
            ("wavlm", "WavLMAttention", "q_proj", "k_proj", "v_proj", "out_proj"),
            *((name, "TDNNLayer", "kernel") for name in SPEECH),
            ("longcat_flash", "LongcatFlashTopkRouter", "classifier"),
            ("mamba", "MambaMixer", "dt_proj"),
            ("falcon_mamba", "FalconMambaMixer", "dt_proj"),
            ("jamba", "JambaMambaMixer", "dt_proj"),
            ("detr", "DetrMHAttentionMap", "k_proj"),
            ("maskformer", "MaskFormerDetrMHAttentionMap", "k_proj"),
            ("conditional_detr", "ConditionalDetrMHAttentionMap", "k_proj"),
            ("dab_detr", "DabDetrMHAttentionMap", "k_linear"),
            ("mobilebert", "MobileBertLMPredictionHead", "decoder", "dense"),
            ("layoutlmv2", "LayoutLMv2Encoder", "rel_pos_bias", "rel_pos_x_bias", "rel_pos_y_bias"),
            ("layoutlmv3", "LayoutLMv3Encoder", "rel_pos_bias", "rel_pos_x_bias", "rel_pos_y_bias"),
            ("pp_doclayout_v2", "PPDocLayoutV2ReadingOrderEncoder", "rel_pos_bias"),
            ("neomme", "NeoMMEForMaskedLM", "unembedding_projection"),
        )
    },
}

# The feed-forward blocks of T5 and its relatives, which read the weight of a layer that they then call, for its type.
ASKS_FOR_TYPE = re.compile(r"transformers\.models\.\w+\.modeling_\w+\.\w+Dense(Gated)?ActDense\.forward")


class StandsForLinear(nn.Module):
    """A module in the place of a linear layer, with all that other code expects of one.

    Args:
        linear: The layer it stands for; nn.Linear, or the Conv1D of GPT-2.
    """

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear = linear

    def adapted_weight(self) -> Tensor:
        """The weight that would make a plain layer compute the same, in fp32 or fp64."""
        raise NotImplementedError

    @property
    def weight(self) -> Tensor:
        """The adapted weight in the linear layer's type, for networks that read it instead of calling the layer.

        torch's own TransformerEncoderLayer and MultiheadAttention do; without this they would bypass LoRA.

        It is computed on every access: a weight that is kept could be out of date, since writing through `.data`
        leaves no trace. T5's feed-forward block, which asks for nothing but its type, and does so for every token, is
        known by name and gets the plain weight, of the same type.
        """
        plain = weight_of(self.linear)
        # A compiler sees for itself that nothing uses the numbers; it cannot look at the caller.
        if not torch.compiler.is_compiling():
            caller = sys._getframe(1)
            if ASKS_FOR_TYPE.fullmatch(f"{caller.f_globals.get('__name__')}.{caller.f_code.co_qualname}"):
                return plain
        return self.adapted_weight().to(plain.dtype)

    @property
    def bias(self) -> Tensor | None:
        """The bias of the linear layer; LoRA has none."""
        return self.linear.bias  # type: ignore[return-value]

    @property
    def in_features(self) -> int:
        """Width of the input."""
        return widths(self.linear)[0]

    @property
    def out_features(self) -> int:
        """Width of the output."""
        return widths(self.linear)[1]

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Hand a new weight or bias to the linear layer, as when transformers ties it to an embedding.

        Raises:
            ValueError: it is of another shape, as after resize_token_embeddings().
        """
        if name not in ("weight", "bias"):
            super().register_parameter(name, param)
            return
        own = getattr(self.linear, name)
        if own is not None and param is not None and own.shape != param.shape:
            raise ValueError(
                f"a layer with LoRA cannot exchange its {name} of shape {tuple(own.shape)} for one of "
                f"{tuple(param.shape)}; merge_lora first, or change the model's shape before inject_lora"
            )
        setattr(self.linear, name, param)


def weight_of(linear: nn.Module) -> Tensor:
    """The weight of a linear layer."""
    weight = linear.weight
    assert isinstance(weight, Tensor)
    return weight


def widths(linear: nn.Module) -> tuple[int, int]:
    """(in_features, out_features) of a linear layer; a Conv1D stores its weight transposed."""
    rows, columns = weight_of(linear).shape
    return (columns, rows) if isinstance(linear, nn.Linear) else (rows, columns)


def is_only_read(owner: nn.Module, key: str) -> bool:
    """Whether a module is known to read the weight of one of its layers and never call the layer.

    The update works either way, through the layer's `weight`; dropout and PEFT's updates need the call.
    """
    forward = type(owner).forward
    return key in ONLY_READ.get(f"{forward.__module__}.{forward.__qualname__}", ())


def in_one_type(x: Tensor, *factors: Tensor) -> tuple[Tensor, ...]:
    """The factors of a product, in a type that holds them all; unchanged where autocast chooses the type."""
    device = x.device.type
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    if autocast and x.dtype != torch.float64:  # it leaves fp64 alone
        return (x, *factors)
    dtype = torch.promote_types(x.dtype, factors[0].dtype)
    return tuple(tensor.to(dtype) for tensor in (x, *factors))


def plain_number(name: str, value: Any, kind: type[Number]) -> Number:
    """A Python number, which any file can hold, from any library's number.

    Raises:
        ValueError: it is not a number, not whole where it must be, or not finite.
    """
    plain = value.item() if getattr(value, "ndim", None) == 0 else value
    if isinstance(plain, bool) or not isinstance(plain, int | kind) or not abs(plain) < 1e38:  # NaN is not, either
        raise ValueError(f"{name}={value!r} is not valid; use a {'whole' if kind is int else 'finite'} number")
    return kind(plain)
