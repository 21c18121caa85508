"""modes.py: exactly the parameters that each mode promises, on the article's shape."""

import pytest
import torch
from torch import nn

from lora_study.backbones import build_skeleton
from lora_study.config import ConfigError, ExperimentConfig, LoRAConfig, ModelConfig, PartialConfig, SeedsConfig
from lora_study.modes import apply_mode, count_parameters, hold_frozen_linears_in

BEST = ("query", "value", "mlp")


@pytest.mark.parametrize(
    ("mode", "lora", "trainable", "lora_count", "head", "base"),
    [
        ("last_two_layers", LoRAConfig(), 592_130, 0, 592_130, 0),
        ("lora", LoRAConfig(), 147_456, 147_456, 0, 0),
        ("lora", LoRAConfig(targets=BEST, alpha=1), 516_096, 516_096, 0, 0),
        ("lora", LoRAConfig(train_head=True), 739_586, 147_456, 592_130, 0),
        ("lora", LoRAConfig(targets=("head",)), 8 * (768 + 768) + 8 * (768 + 2), 18_448, 0, 0),
        ("full", LoRAConfig(), 66_955_010, 0, 592_130, 66_362_880),
    ],
)
def test_counts_on_distilbert_base_are_exactly_the_articles(mode, lora, trainable, lora_count, head, base):
    model = build_skeleton(ModelConfig())
    apply_mode(model, ExperimentConfig(mode=mode, lora=lora))
    counts = count_parameters(model)
    assert (counts.trainable, counts.lora, counts.head, counts.base) == (trainable, lora_count, head, base)
    assert counts.total == 66_955_010 + lora_count


@pytest.mark.parametrize(
    ("partial", "trainable"),
    [
        (PartialConfig(pre_classifier=False), 1_538),
        (PartialConfig(), 592_130),
        *((PartialConfig(blocks=blocks), 592_130 + blocks * 7_087_872) for blocks in range(1, 7)),
    ],
)
def test_partial_trains_the_top_of_the_model_and_nothing_below(partial, trainable):
    model = build_skeleton(ModelConfig())
    apply_mode(model, ExperimentConfig(mode="partial", partial=partial))
    assert count_parameters(model).trainable == trainable
    trained = [block.ffn.lin1.weight.requires_grad for block in model.distilbert.transformer.layer]
    assert trained == [False] * (6 - partial.blocks) + [True] * partial.blocks
    assert not any(parameter.requires_grad for parameter in model.distilbert.embeddings.parameters())


def test_more_blocks_than_there_are_is_a_config_error():
    with pytest.raises(ConfigError, match=r"partial\.blocks: 7 is not valid; the model has 6"):
        apply_mode(build_skeleton(ModelConfig()), ExperimentConfig(mode="partial", partial=PartialConfig(blocks=7)))


def test_the_seed_of_the_updates_is_their_own():
    def drawn(seed: int, lora_init: int | None) -> torch.Tensor:
        model = nn.ModuleDict({name: nn.Linear(4, 4) for name in ("a", "pre_classifier", "classifier")})
        config = ExperimentConfig(
            seed=seed, seeds=SeedsConfig(lora_init=lora_init), lora=LoRAConfig(r=2, targets=("a",))
        )
        apply_mode(model, config)
        return model["a"].lora.lora_A

    assert torch.equal(drawn(1, 7), drawn(2, 7))
    assert torch.equal(drawn(7, None), drawn(1, 7))
    assert not torch.equal(drawn(1, None), drawn(2, None))


def test_arithmetic_of_the_articles_examples():
    """A d=1000, r=10 layer needs 20,000 parameters; a 5,000 x 10,000 layer with r=8 needs 120,000."""
    for shape, r, count in (((1000, 1000), 10, 20_000), ((5_000, 10_000), 8, 120_000)):
        model = nn.ModuleDict({"layer": nn.Linear(*shape, device="meta")})
        model.update({name: nn.Linear(2, 2, device="meta") for name in ("pre_classifier", "classifier")})
        apply_mode(model, ExperimentConfig(lora=LoRAConfig(r=r, targets=("layer",))))
        assert count_parameters(model).lora == count


def test_a_tied_tensor_counts_once():
    model = nn.ModuleDict({name: nn.Linear(4, 4) for name in ("a", "b", "pre_classifier", "classifier")})
    model["b"].weight = model["a"].weight
    assert count_parameters(model).total == 4 * (16 + 4) - 16


def test_updates_that_do_not_fit_are_a_config_error_that_lists_the_layers():
    with pytest.raises(ConfigError, match=r"lora: target 'qery'.*attention\.q_lin"):
        apply_mode(build_skeleton(ModelConfig()), ExperimentConfig(lora=LoRAConfig(targets=("qery",))))
    with pytest.raises(ConfigError, match="r=769"):
        apply_mode(build_skeleton(ModelConfig()), ExperimentConfig(lora=LoRAConfig(r=769)))


def test_frozen_linears_held_in_bf16_give_what_autocast_gives():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.LayerNorm(16), nn.Linear(16, 4))
    model[0].requires_grad_(False)
    x = torch.randn(3, 16)
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(x)
        hold_frozen_linears_in(model, torch.bfloat16)
        assert torch.equal(model(x), expected)
    assert [module.weight.dtype for module in model] == [torch.bfloat16, torch.float32, torch.float32]
