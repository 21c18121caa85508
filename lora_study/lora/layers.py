"""The mathematics of LoRA: a low-rank update, and a linear layer with one beside it.

A linear layer computes y = x Wᵀ + b. LoRA (Hu et al., arXiv 2106.09685, section 4.1) freezes W and learns an
update of rank r beside it:

    y = x Wᵀ + b + scaling · (x A B)        A: (in, r)    B: (r, out)

A starts random and B at zero, so training starts from the unchanged model; r is small, so there are only
r · (in + out) new numbers instead of in · out. After training, scaling · (A B)ᵀ can be added to W, and the
adapted layer costs nothing extra.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from lora_study.lora.compatibility import StandsForLinear, in_one_type, plain_number, weight_of

Scaling = Literal["alpha", "alpha/r", "alpha/sqrt(r)"]


class LoRALayer(nn.Module):
    """The low-rank update, scaling · (x A B).

    A and B are fp32, whatever the layer beside them is: small steps would be lost in half precision.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        r: Rank, from 1 to in_features. (The article adapts a layer of two outputs with r up to 32.)
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
        r = plain_number("r", r, int)
        alpha, dropout = plain_number("alpha", alpha, float), plain_number("dropout", dropout, float)
        if not 1 <= r <= in_features:
            raise ValueError(f"rank r={r} does not fit a layer with {in_features} inputs; use 1 to {in_features}")
        factors = {"alpha": alpha, "alpha/r": alpha / r, "alpha/sqrt(r)": alpha / math.sqrt(r)}
        if scaling not in factors:
            raise ValueError(f"scaling {scaling!r} is unknown; use one of {', '.join(factors)}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout} is not valid; use a probability in [0, 1)")
        self.scaling = factors[scaling]
        device = generator.device if generator else None  # None is torch's default, where the generator need not be
        start = torch.randn(in_features, r, generator=generator, dtype=torch.float32, device=device)
        self.lora_A = nn.Parameter(start / math.sqrt(r))  # N(0, 1/r)
        self.lora_B = nn.Parameter(torch.zeros(r, out_features, dtype=torch.float32, device=device))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """The update for x: (..., in_features) -> (..., out_features), in fp32 if x is of lower precision."""
        x, A, B = in_one_type(x, self.lora_A, self.lora_B)
        update: Tensor = (self.scaling * (self.dropout(x) @ A)) @ B  # scaled where it is narrow
        return update

    def delta(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The same update as a matrix, scaling · A B: (in_features, out_features)."""
        A, B = self.lora_A.to(dtype), self.scaling * self.lora_B.to(dtype)
        # Laid out like nn.Linear's weight, since adding a transposed matrix takes several times as long.
        return (B.T @ A.T).T

    def extra_repr(self) -> str:
        """What printing the module shows."""
        (in_features, r), (_, out_features) = self.lora_A.shape, self.lora_B.shape
        return f"in_features={in_features}, out_features={out_features}, r={r}, scaling={self.scaling:g}"


class LinearWithLoRA(StandsForLinear):
    """A linear layer and the low-rank update beside it.

    Args:
        linear: The layer that is adapted; nn.Linear, or the Conv1D of GPT-2, which stores its weight transposed.
        lora: The update, of the same widths.
    """

    def __init__(self, linear: nn.Module, lora: LoRALayer) -> None:
        super().__init__(linear)
        self.lora = lora.to(weight_of(linear).device)

    def forward(self, x: Tensor) -> Tensor:
        """The adapted layer's output: (..., in_features) -> (..., out_features), in the linear layer's type."""
        y: Tensor = self.linear(x)
        update: Tensor = self.lora(x)
        return (y + update).to(y.dtype)

    def adapted_weight(self) -> Tensor:
        """W + scaling · (A B)ᵀ in fp32, or in fp64 beside fp64; laid out like W."""
        weight = weight_of(self.linear)
        dtype = torch.promote_types(weight.dtype, torch.float32)
        delta = self.lora.delta(dtype)
        return weight.to(dtype) + (delta.T if isinstance(self.linear, nn.Linear) else delta)
