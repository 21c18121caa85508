"""The cap on confidence that a frozen head sets: against brute force, by hand, and what lifts it."""

import math

import pytest
import torch
from torch.nn.functional import layer_norm
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from lora_study.config import ExperimentConfig, LoRAConfig
from lora_study.model.confidence import confidence_cap, upper_bound
from lora_study.model.encoder import initialise_head
from lora_study.model.modes import apply_mode

DIM = 8


def small(seed: int, config: ExperimentConfig) -> DistilBertForSequenceClassification:
    """A classifier in its mode, with a head as it is drawn, but large, under an uneven layer norm."""
    shape = {"dim": DIM, "n_heads": 2, "n_layers": 2, "hidden_dim": 8, "vocab_size": 10, "max_position_embeddings": 8}
    model = DistilBertForSequenceClassification(DistilBertConfig(**shape, initializer_range=0.5)).eval()
    initialise_head(model, seed)
    random = torch.Generator().manual_seed(100 + seed)
    norm = model.distilbert.transformer.layer[-1].output_layer_norm
    norm.weight.data = 0.5 + torch.rand(DIM, generator=random)
    norm.bias.data = 0.3 * torch.randn(DIM, generator=random)
    apply_mode(model, config)
    return model


def found_by_force(model: DistilBertForSequenceClassification, sign: int) -> float:
    """The largest of sign times the logits' difference, climbing from 500 outputs of the last block."""
    norm = model.distilbert.transformer.layer[-1].output_layer_norm
    x, best, steps = torch.randn(500, DIM, generator=torch.Generator().manual_seed(0)), -math.inf, 200
    for step in range(steps):
        x.requires_grad_()
        logits = model.classifier(torch.relu(model.pre_classifier(norm(x))))
        reached = sign * (logits[:, 1] - logits[:, 0])
        best = max(best, reached.max().item())
        (slope,) = torch.autograd.grad(reached.sum(), x)
        away = slope / slope.norm(dim=1, keepdim=True).clamp(min=1e-9)
        x = layer_norm(x.detach(), (DIM,)) + (1 - step / steps) * away
    return best


@pytest.mark.parametrize("seed", range(6))
def test_nothing_gets_beyond_and_something_gets_there(seed):
    model = small(seed, ExperimentConfig(mode="lora", lora=LoRAConfig(r=2, targets=("query", "mlp"))))
    low, high, cap = -found_by_force(model, -1), found_by_force(model, 1), confidence_cap(model)
    slack = 0.02 * (high - low)
    assert low - slack < cap.low < low + 1e-5 and high - 1e-5 < cap.high < high + slack
    assert abs(cap.low + cap.high) > 2 * slack  # so that the two sides cannot be mistaken for one another
    assert cap.probabilities == pytest.approx([1 / (1 + math.exp(-cap.low)), 1 / (1 + math.exp(-cap.high))])


def test_the_bias_of_the_last_layer_shifts_both_sides():
    model = small(0, ExperimentConfig(mode="lora"))
    before = confidence_cap(model)
    model.classifier.bias.data = torch.tensor([0.5, -1.0])
    after = confidence_cap(model)
    assert (after.low - before.low, after.high - before.high) == pytest.approx((-1.5, -1.5))


@pytest.mark.parametrize(("weight", "limit"), [(2.0, 2 * (1 + 0.25)), (-2.0, 0.0)])
def test_one_unit_on_two_numbers_by_hand(weight, limit):
    """The unit is z·(0.5, -0.5) + 0.25, largest at z = (1, -1), and silent at (-1, 1)."""
    slope, offset, weights = (torch.tensor(x, dtype=torch.float64) for x in ([[0.5, -0.5]], [0.25], [weight]))
    assert upper_bound(slope, offset, weights) == pytest.approx(limit, abs=1e-3)


@pytest.mark.parametrize(
    "config",
    [
        ExperimentConfig(mode="full"),
        ExperimentConfig(mode="last_two_layers"),
        ExperimentConfig(mode="lora", lora=LoRAConfig(r=2, train_head=True)),
        ExperimentConfig(mode="lora", lora=LoRAConfig(r=2, targets=("query", "head"))),
    ],
)
def test_a_head_that_is_trained_has_no_cap(config):
    assert confidence_cap(small(1, config)) is None
