"""DoRA: LoRA that learns the length of each row of a weight separately from its direction.

DoRA (Liu et al., arXiv 2402.09353, section 4) writes the weight as a magnitude m times a direction, trains m itself
and lets LoRA turn the direction:

    W' = m · (W + Δ) / ‖W + Δ‖        Δ = scaling · (A B)ᵀ: (out, in)    ‖·‖: length of each row    m: (out,)

m starts as ‖W‖ and Δ at zero, so training starts from the unchanged model, as with LoRA. It costs one more number per
output and, at every step, a few passes over the weight to compute the lengths.

    inject_lora(model, ["query", "value"], scaling="alpha/r", layer=LinearWithDoRA)
"""

import torch
from torch import Tensor, nn

from lora_study.lora.layers import LinearWithLoRA, LoRALayer


class LinearWithDoRA(LinearWithLoRA):
    """A linear layer, the low-rank update beside it, and the length of each row of their sum.

    Dropout acts on the update alone, as in LoRA. (PEFT, when training with dropout, also drops inputs of
    (m / ‖W + Δ‖ - 1) W x, at the price of a second product with W.)

    Args:
        linear: The layer that is adapted; nn.Linear, or the Conv1D of GPT-2.
        lora: The update, of the same width.

    Attributes:
        magnitude: The lengths m: (out,), fp32, or fp64 beside a layer of fp64.
    """

    def __init__(self, linear: nn.Module, lora: LoRALayer) -> None:
        super().__init__(linear, lora)
        self.magnitude = nn.Parameter(self._lengths(super().adapted_weight().detach()))

    def forward(self, x: Tensor) -> Tensor:
        """The adapted layer's output: (..., in_features) -> (..., out_features)."""
        y, scale = super().forward(x), self._scale(super().adapted_weight())
        # The bias is not scaled. All of this is in fp32, whatever y is: bf16 cannot tell a scale of 1.003 from 1.
        scaled = scale * y if self.bias is None else scale * y + (1 - scale) * self.bias
        return scaled.to(y.dtype)

    def adapted_weight(self) -> Tensor:
        """W' in fp32, or fp64 beside fp64."""
        adapted = super().adapted_weight()
        scale = self._scale(adapted)
        return adapted * (scale[:, None] if isinstance(self.linear, nn.Linear) else scale)

    def _scale(self, adapted: Tensor) -> Tensor:
        """The factor m / ‖W + Δ‖: (out,). The length counts as a constant (section 4.3), which saves memory."""
        return self.magnitude / self._lengths(adapted.detach())

    def _lengths(self, adapted: Tensor) -> Tensor:
        """The length of the weights that lead to each output: (out,)."""
        lengths: Tensor = torch.linalg.vector_norm(adapted, dim=1 if isinstance(self.linear, nn.Linear) else 0)
        return lengths.clamp_min(torch.finfo(lengths.dtype).tiny)  # zeros have no direction; they stay zeros, not NaN
