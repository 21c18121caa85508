"""Dropout whose random numbers cost a tenth of torch's on a CPU.

torch draws every mask on a CPU with one slow generator, number by number: with the article's dropout on attention
probabilities that takes longer than all matrix products of a training step. Here a generator made for speed, SFC64,
draws 64 random bits at a time, enough for four elements. Its seed is drawn from torch's generator, so seeding torch and
restoring its state work as usual.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

STEPS = 2**16  # a drop probability is rounded to a multiple of 1 / STEPS, and what is kept is scaled to match


class Masks:
    """A stream of random masks of one dropout probability.

    Args:
        p: Probability of dropping an element, below 1.

    Attributes:
        keep: The probability of keeping one, 1 - p rounded to a multiple of 1 / STEPS above 0.
    """

    def __init__(self, p: float) -> None:
        dropped = min(round(p * STEPS), STEPS - 1)  # what is kept, be it nothing, is divided by how likely that is
        self.keep = 1 - dropped / STEPS
        self._bits = np.random.SFC64(int(torch.randint(2**63 - 1, ())))
        self._lowest_kept = dropped - STEPS // 2  # as an int16

    def draw(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """The next mask: 1 where an element is kept and 0 where it is dropped."""
        numbers = math.prod(shape)
        with torch.profiler.record_function("dropout masks"):  # numpy's work has no name in a profile of torch's
            bits = torch.from_numpy(self._bits.random_raw(-(-numbers // 4)).view(np.int16))[:numbers].view(*shape)
        # Numbers of the type they will be multiplied with: on a CPU torch is many times slower with booleans.
        return torch.ge(bits, self._lowest_kept, out=torch.empty(*shape, dtype=dtype))


class CheapDropout(nn.Dropout):
    """nn.Dropout for tensors on a CPU: the same distribution, other random numbers."""

    def forward(self, x: Tensor) -> Tensor:
        """Zero each element with probability p and divide the others by 1 - p, while training; any shape."""
        if not self.training or self.p == 0:
            return x
        masks = Masks(self.p)
        return x * masks.draw(x.shape, x.dtype).div_(masks.keep)


def use_cheap_dropout(model: nn.Module) -> None:
    """Replace a model's dropout layers, in place."""
    for module in model.modules():
        for name, child in module.named_children():
            if type(child) is nn.Dropout and child.p < 1:
                setattr(module, name, CheapDropout(child.p).train(child.training))
