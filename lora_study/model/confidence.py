"""How sure a classifier can become while its head stays as it was drawn: a limit that is known before any training.

The head reads the last layer norm's output, γ ⊙ z + β, where z sums to zero and has a length of at most √dim. What is
trained below it changes z alone, so the difference of the two logits is never more than the maximum over that ball of

    f(z) = v · relu(A z + c),    A = W diag(γ),  c = W β + b,  v = difference of the classifier's two rows.
"""

import math
from dataclasses import asdict, dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor, nn
from transformers import DistilBertForSequenceClassification

from lora_study.config import ExperimentConfig
from lora_study.lora import lora_layers
from lora_study.model.encoder import build_model, describe
from lora_study.model.modes import HEAD

STEPS = 40  # of the search; for the stand-in, more gain less than 1%


@dataclass(frozen=True)
class ConfidenceCap:
    """The limits that no review can pass.

    Attributes:
        low: Least difference of the logits, that of class 1 less that of class 0.
        high: Largest difference.
    """

    low: float
    high: float

    @property
    def probabilities(self) -> tuple[float, float]:
        """The least and the largest probability of class 1."""
        return 1 / (1 + math.exp(-self.low)), 1 / (1 + math.exp(-self.high))

    def to_dict(self) -> dict[str, float]:
        """The four numbers by name."""
        least, most = self.probabilities
        return {**asdict(self), "least_probability": least, "most_probability": most}

    def __str__(self) -> str:
        """In words: a clause."""
        least, most = self.probabilities
        return (
            f"no review gets a probability of positive below {least:.3f} or above {most:.3f} "
            f"(difference of the logits {self.low:.2f} to {self.high:+.2f})"
        )


def cap_before_training(
    config: ExperimentConfig, skeleton: DistilBertForSequenceClassification
) -> ConfidenceCap | None:
    """The cap of an experiment; None where its head is trained, or the encoder's weights are not on this machine.

    Args:
        config: The experiment.
        skeleton: Its model in its mode, which needs no weights.

    Raises:
        ConfigError: the weights are here and cannot be used.
    """
    if not reads_frozen_head(skeleton) or describe(config.model)["sha256"] is None:
        return None
    return confidence_cap(
        build_model(config.model, head_seed=config.resolved_seeds()["head_init"]).requires_grad_(False)
    )


def reads_frozen_head(model: DistilBertForSequenceClassification) -> bool:
    """Whether nothing of the head and the last layer norm of a model in its mode is trained, nor has an update."""
    frozen = not any(parameter.requires_grad for module in _read(model) for parameter in module.parameters())
    return frozen and not any(name.startswith(HEAD) for name, _ in lora_layers(model))


def confidence_cap(model: DistilBertForSequenceClassification) -> ConfidenceCap | None:
    """The cap of a model in its mode, with its weights; None where the head is trained.

    It holds for exact arithmetic: a run in 16 bits may exceed it by rounding.
    """
    if not reads_frozen_head(model):
        return None
    names = ("weight", "bias")
    gain, shift, inner, inner_bias, outer, outer_bias = (
        module.get_parameter(name).detach().double().cpu() for module in _read(model) for name in names
    )
    slope, offset = inner * gain, inner @ shift + inner_bias  # (dim, dim), (dim,)
    slope = slope - slope.mean(dim=1, keepdim=True)  # the same on every z that sums to zero
    weight, bias = outer[1] - outer[0], float(outer_bias[1] - outer_bias[0])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the matrices are small: beside other work, more threads only wait for one another
    try:
        return ConfidenceCap(bias - upper_bound(slope, offset, -weight), bias + upper_bound(slope, offset, weight))
    finally:
        torch.set_num_threads(threads)


def _read(model: DistilBertForSequenceClassification) -> tuple[nn.Module, ...]:
    """The last layer norm and the head, in the order in which they compute."""
    norm = model.distilbert.transformer.layer[-1].get_submodule("output_layer_norm")
    return norm, *(model.get_submodule(name) for name in HEAD)


def upper_bound(slope: Tensor, offset: Tensor, weight: Tensor) -> float:
    """An upper limit of weight · relu(slope z + offset) for every z with |z|² <= dim, and hardly more than the maximum.

    With u = slope z + offset, relu(u) <= (u + t)² / 4t for every t > 0, and relu(u) >= θ u for every θ from 0 to 1.
    Used for positive and negative weights this leaves a quadratic, which is at most g · (λ - Q)⁻¹ g + λ |z|² + k for
    every λ above the eigenvalues of Q. That is a limit whatever t, θ and λ are, and we search for the lowest. It is
    the dual of the semidefinite relaxation of Raghunathan, Steinhardt & Liang 2018.

    Args:
        slope: (hidden, dim), double precision.
        offset: (hidden,).
        weight: (hidden,).
    """
    dim, up = slope.shape[1], weight > 0
    size = float(weight.abs() @ slope.norm(dim=1)) or 1.0
    weight = weight / size  # so that the search starts alike for every head
    rising, rising_offset, gain = slope[up], offset[up], weight[up]
    falling, falling_offset, loss = slope[~up], offset[~up], -weight[~up]
    gram = rising @ rising.T  # Q has the eigenvalues of a matrix of this size, and 0

    def bound(log_t: Tensor, theta: Tensor, log_gap: Tensor) -> Tensor:
        t = log_t.exp()
        scale = gain / (4 * t)
        root = scale.sqrt()
        g = rising.T @ (scale * (rising_offset + t)) - falling.T @ (loss * theta) / 2
        k = (scale * (rising_offset + t) ** 2).sum() - (loss * theta * falling_offset).sum()
        inside = root[:, None] * gram * root
        multiplier = torch.linalg.eigvalsh(inside)[-1].clamp(min=0) + log_gap.exp() if len(t) else log_gap.exp()
        part = root * (rising @ g)
        rest = torch.linalg.solve(multiplier * torch.eye(len(t), dtype=t.dtype) - inside, part)
        found: Tensor = (g @ g + part @ rest) / multiplier + multiplier * dim + k  # Woodbury
        return found

    def value_and_slope(point: np.ndarray) -> tuple[float, np.ndarray]:
        x = torch.tensor(point, requires_grad=True)
        found = bound(*torch.split(x, [len(gain), len(loss), 1])).sum()
        (gradient,) = torch.autograd.grad(found, x)
        return found.item(), gradient.numpy()

    log_t, log_gap = rising.norm(dim=1).clamp(min=1e-12).log().tolist(), -7.0
    start = [*log_t, *[0.5] * len(loss), log_gap]
    limits = [*((x - 9, x + 9) for x in log_t), *[(0, 1)] * len(loss), (log_gap - 9, log_gap + 9)]
    found = minimize(value_and_slope, start, jac=True, method="L-BFGS-B", bounds=limits, options={"maxiter": STEPS})
    return size * float(found.fun)
