"""The mathematics of LoRA: a low-rank update, and a linear layer with one beside it.

A linear layer computes y = x Wᵀ + b. LoRA (Hu et al., arXiv 2106.09685, section 4.1) freezes W and learns an
update of rank r beside it:

    y = x Wᵀ + b + scaling · (x A B)        A: (in, r)    B: (r, out)

A starts random and B at zero, so training starts from the unchanged model; r is small, so there are only
r · (in + out) new numbers instead of in · out. After training, scaling · (A B)ᵀ can be added to W, and the
adapted layer costs nothing extra.
"""

import math
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

Scaling = Literal["alpha", "alpha/r", "alpha/sqrt(r)"]
Number = TypeVar("Number", int, float)


class LoRALayer(nn.Module):
    """The low-rank update, scaling · (x A B).

    A and B are fp32, whatever the layer beside them is: small steps would be lost in half precision.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        r: Rank, 1 up to in_features.
        alpha: Strength of the update.
        scaling: Factor on the update: "alpha" as in the article, "alpha/r" as in the LoRA paper and PEFT,
            "alpha/sqrt(r)" as in rsLoRA (Kalajdzievski, arXiv 2312.03732).
        dropout: Dropout probability on the input of this branch, while training.
        generator: Source of A's random numbers; None takes torch's global one.

    Raises:
        ValueError: r, alpha, scaling or dropout is out of range.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        r: int,
        alpha: float,
        *,
        scaling: Scaling = "alpha",
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        r, alpha, dropout = _number("r", r, int), _number("alpha", alpha, float), _number("dropout", dropout, float)
        # Only the input side bounds r: the article's grid adapts the two-class output layer with r up to 32.
        if not 1 <= r <= in_features:
            raise ValueError(f"rank r={r} does not fit a layer with {in_features} inputs; use 1 to {in_features}")
        factors = {"alpha": alpha, "alpha/r": alpha / r, "alpha/sqrt(r)": alpha / math.sqrt(r)}
        if scaling not in factors:
            raise ValueError(f"scaling {scaling!r} is unknown; use one of {', '.join(factors)}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout} is not valid; use a probability in [0, 1)")
        self.scaling = factors[scaling]
        start = torch.randn(in_features, r, generator=generator, dtype=torch.float32) / math.sqrt(r)  # N(0, 1/r)
        self.lora_A = nn.Parameter(start)
        self.lora_B = nn.Parameter(torch.zeros(r, out_features, dtype=torch.float32))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """The update for x: (..., in_features) -> (..., out_features); of fp32 where x is of lower precision."""
        a: Tensor = self.lora_A
        b: Tensor = self.lora_B
        if x.dtype != a.dtype and not _autocast_converts(x):
            dtype = torch.promote_types(x.dtype, a.dtype)
            x, a, b = x.to(dtype), a.to(dtype), b.to(dtype)
        update: Tensor = self.scaling * (self.dropout(x) @ a @ b)
        return update

    def delta(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The same update as a matrix, scaling · A B: (in_features, out_features)."""
        return self.scaling * (self.lora_A.to(dtype) @ self.lora_B.to(dtype))

    def extra_repr(self) -> str:
        """What is printed of it."""
        (in_features, r), out_features = self.lora_A.shape, self.lora_B.shape[1]
        return (
            f"in_features={in_features}, out_features={out_features}, r={r}, scaling={self.scaling:g}, "
            f"dropout={self.dropout.p:g}"
        )


class LinearWithLoRA(nn.Module):
    """A linear layer and the low-rank update beside it.

    It answers what code around a model asks of a linear layer: weight, bias, in_features and out_features.

    Args:
        linear: The layer that is adapted; nn.Linear, or the Conv1D of GPT-2, which stores its weight transposed.
        lora: The update, of the same width.
    """

    def __init__(self, linear: nn.Module, lora: LoRALayer) -> None:
        super().__init__()
        self.linear = linear
        self.lora = lora.to(_weight(linear).device)

    def forward(self, x: Tensor) -> Tensor:
        """The adapted layer's output: (..., in_features) -> (..., out_features), of the linear layer's type."""
        y: Tensor = self.linear(x)
        update: Tensor = self.lora(x)
        return (y + update).to(y.dtype)

    @property
    def weight(self) -> Tensor:
        """The adapted weight, for networks that reach into a layer instead of calling it.

        torch's own TransformerEncoderLayer and MultiheadAttention do; without this they would pass LoRA by.
        """
        return self._adapted().to(_weight(self.linear).dtype)

    @property
    def bias(self) -> Tensor | None:
        """The bias of the linear layer; LoRA has none."""
        return self.linear.bias  # type: ignore[return-value]

    @property
    def in_features(self) -> int:
        """Width of the input."""
        return self.lora.lora_A.shape[0]

    @property
    def out_features(self) -> int:
        """Width of the output."""
        return self.lora.lora_B.shape[1]

    @property
    def nx(self) -> int:
        """Width of the input, as Conv1D calls it; nn.Linear does not."""
        return self.linear.nx  # type: ignore[return-value]

    @property
    def nf(self) -> int:
        """Width of the output, as Conv1D calls it."""
        return self.linear.nf  # type: ignore[return-value]

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

    def _adapted(self) -> Tensor:
        """The adapted weight, W + scaling · (A B)ᵀ, in fp32 or W's fp64, and in the linear layer's own layout."""
        weight = _weight(self.linear)
        dtype = torch.promote_types(weight.dtype, torch.float32)
        delta = self.lora.delta(dtype)
        return weight.to(dtype) + (delta.T if isinstance(self.linear, nn.Linear) else delta)


def _weight(linear: nn.Module) -> Tensor:
    weight = linear.weight
    assert isinstance(weight, Tensor)
    return weight


def _autocast_converts(x: Tensor) -> bool:
    """Whether autocast brings x and what it is multiplied with to one type; it leaves fp64 alone."""
    device = x.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device) and x.dtype != torch.float64


def _number(name: str, value: Any, kind: type[Number]) -> Number:
    """A number of Python's, which any file can hold, from one of any library's."""
    plain = value.item() if getattr(value, "ndim", None) == 0 else value
    if isinstance(plain, bool) or not isinstance(plain, int | kind) or not abs(plain) < 1e38:  # NaN is not, either
        raise ValueError(f"{name}={value!r} is not valid; use a {'whole' if kind is int else 'finite'} number")
    return kind(plain)
