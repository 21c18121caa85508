"""modes.py: exactly the parameters that each mode promises, on the article's shape."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from lora_study.base.errors import ConfigError
from lora_study.config import (
    ExperimentConfig,
    LoRAConfig,
    ModelConfig,
    PartialConfig,
    SeedsConfig,
    TrainConfig,
)
from lora_study.config_differences import deviations
from lora_study.config_files import experiment_from
from lora_study.lora import LinearWithLoRA, lora_layers
from lora_study.lora.dora import LinearWithDoRA
from lora_study.model.classifier import ReviewClassifier
from lora_study.model.encoder import build_skeleton
from lora_study.model.modes import apply_mode, count_parameters
from lora_study.training.experiment import run_experiment

BEST = ("query", "value", "mlp")


@pytest.mark.parametrize(
    ("mode", "lora", "trainable", "lora_count", "head", "base"),
    [
        ("last_two_layers", LoRAConfig(), 592_130, 0, 592_130, 0),
        ("lora", LoRAConfig(), 147_456, 147_456, 0, 0),
        ("lora", LoRAConfig(targets=BEST, alpha=1), 516_096, 516_096, 0, 0),
        ("lora", LoRAConfig(train_head=True), 739_586, 147_456, 592_130, 0),
        ("lora", LoRAConfig(variant="dora"), 147_456 + 12 * 768, 147_456 + 12 * 768, 0, 0),
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


@pytest.mark.parametrize(("scaling", "factor"), [("alpha", 6.0), ("alpha/r", 1.5), ("alpha/sqrt(r)", 3.0)])
def test_the_settings_of_lora_reach_every_layer(scaling, factor):
    model = build_skeleton(ModelConfig())
    apply_mode(model, ExperimentConfig(lora=LoRAConfig(r=4, alpha=6, scaling=scaling, dropout=0.25)))
    updates = [layer.lora for _, layer in lora_layers(model)]
    assert [(update.scaling, update.dropout.p) for update in updates] == 12 * [(factor, 0.25)]


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


def test_dora_starts_from_the_seed_of_the_updates_as_lora_does():
    def drawn(variant: str) -> LinearWithLoRA:
        model = nn.ModuleDict({"a": nn.Linear(4, 4)})
        apply_mode(model, ExperimentConfig(lora=LoRAConfig(variant=variant, r=2, targets=("a",))))
        return model["a"]

    assert isinstance(drawn("dora"), LinearWithDoRA)
    assert not isinstance(drawn("lora"), LinearWithDoRA)
    assert torch.equal(drawn("dora").lora.lora_A, drawn("lora").lora.lora_A)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("lr_ratio", 0, ["lora.lr_ratio: 0.0 ", "above 0"]),
        ("lr_ratio", -16.0, ["lora.lr_ratio: -16.0", "above 0"]),
        ("lr_ratio", float("inf"), ["lora.lr_ratio: inf"]),
        ("lr_ratio", float("nan"), ["lora.lr_ratio: nan"]),
        ("variant", "Dora", ["lora.variant: 'Dora'", "use lora, dora"]),
    ],
)
def test_a_mistake_in_a_variants_setting_is_one_line_that_names_it(field, value, words):
    with pytest.raises(ConfigError) as error:
        experiment_from({"lora": {field: value}})
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_the_variants_settings_are_departures_from_the_article_in_mode_lora_alone():
    variant = LoRAConfig(variant="dora", lr_ratio=16)
    departures = {entry["field"]: entry for entry in deviations(ExperimentConfig(lora=variant))}
    assert departures["lora.variant"] == {"field": "lora.variant", "article": "lora", "here": "dora"}
    assert departures["lora.lr_ratio"] == {"field": "lora.lr_ratio", "article": 1.0, "here": 16}
    assert not {"lora.variant", "lora.lr_ratio"} & {d["field"] for d in deviations(ExperimentConfig())}
    assert not [d for d in deviations(ExperimentConfig(mode="full", lora=variant)) if d["field"].startswith("lora.")]


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_the_classifier_trains_b_at_its_own_rate(optimizer):
    model = build_skeleton(ModelConfig())
    apply_mode(model, ExperimentConfig(lora=LoRAConfig(train_head=True)))
    train = TrainConfig(optimizer=optimizer, learning_rate=1e-3, weight_decay=0.1)
    alike, plus = (ExperimentConfig(train=train, lora=LoRAConfig(lr_ratio=ratio)) for ratio in (1, 16))
    (only,) = ReviewClassifier(model, alike).configure_optimizers().param_groups
    base, faster = ReviewClassifier(model, plus).configure_optimizers().param_groups
    assert (only["lr"], base["lr"], faster["lr"]) == (1e-3, 1e-3, 16e-3)
    assert only["weight_decay"] == base["weight_decay"] == faster["weight_decay"] == 0.1
    updates = [layer.lora for _, layer in lora_layers(model)]
    assert {id(p) for p in faster["params"]} == {id(update.lora_B) for update in updates}
    assert {id(p) for p in base["params"]} >= {id(update.lora_A) for update in updates}
    assert len(base["params"]) + len(faster["params"]) == len(only["params"])
    classes = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    assert type(ReviewClassifier(model, alike).configure_optimizers()) is classes[optimizer]


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_b_keeps_its_ratio_along_the_schedule(schedule):
    model = build_skeleton(ModelConfig())
    config = ExperimentConfig(train=TrainConfig(schedule=schedule, warmup=0.5), lora=LoRAConfig(lr_ratio=16))
    apply_mode(model, config)
    classifier = ReviewClassifier(model, config)
    classifier.trainer = SimpleNamespace(estimated_stepping_batches=10, global_step=0)
    found = classifier.configure_optimizers()
    for _ in range(9):
        found["optimizer"].step()
        found["lr_scheduler"]["scheduler"].step()
        base, faster = found["optimizer"].param_groups
        assert faster["lr"] == pytest.approx(16 * base["lr"])
        assert base["lr"] > 0


def test_the_ratio_of_the_config_is_what_a_run_trains_with(tiny, tmp_path):
    """After one step of Adam, every entry of B is as far from zero as its learning rate."""

    def largest_b(lr_ratio: float) -> float:
        one_step = {"data": {"sizes": {"train": 12}}, "train": {"epochs": 1, "learning_rate": 0.001}}
        config = tiny("lora", name=f"ratio-{lr_ratio}", lora={"lr_ratio": lr_ratio}, **one_step)
        record = run_experiment(config, tmp_path / "results")
        assert record.status == "completed", record.error
        weights = load_file(tmp_path / "results" / config.name / "seed-1" / "adapter.safetensors")
        return max(weight.abs().max().item() for name, weight in weights.items() if name.endswith("lora_B"))

    assert largest_b(1.0) == pytest.approx(0.001, rel=1e-3)
    assert largest_b(8.0) == pytest.approx(0.008, rel=1e-3)
