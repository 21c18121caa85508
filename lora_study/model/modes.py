"""Fine-tuning modes: which parameters of a DistilBERT classifier are trained, and how many there are."""

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import torch
from torch import nn

from lora_study.base.errors import ConfigError
from lora_study.config import ExperimentConfig
from lora_study.lora import LinearWithLoRA, inject_lora, lora_parameters
from lora_study.lora.dora import LinearWithDoRA

# The classification head of DistilBertForSequenceClassification: "the last two layers" of the article.
HEAD = ("pre_classifier", "classifier")
VARIANTS = {"lora": LinearWithLoRA, "dora": LinearWithDoRA}
BLOCK = re.compile(r"distilbert\.transformer\.layer\.\d+")


@dataclass(frozen=True)
class ParameterCounts:
    """How many numbers a model has, each tensor counted once.

    Attributes:
        trainable: Parameters that require gradients.
        total: All parameters.
        lora: Trainable parameters of LoRA updates, with the magnitudes of DoRA.
        head: Trainable parameters of the classification head.
        base: Trainable parameters of everything else.
    """

    trainable: int
    total: int
    lora: int
    head: int
    base: int

    def to_dict(self) -> dict[str, int]:
        """The counts by name."""
        return asdict(self)


def apply_mode(model: nn.Module, config: ExperimentConfig) -> list[str]:
    """Set which parameters of a DistilBERT classifier are trained, in place; mode "lora" injects the updates.

    "full" trains everything, "last_two_layers" the head, "lora" low-rank updates (and the head if lora.train_head),
    "partial" the last layer, the last two, or these and the last blocks.

    Args:
        model: A DistilBertForSequenceClassification, or a network with the same layer names.
        config: The mode, its settings and the seed of LoRA's A.

    Returns:
        The names of the layers that got an update.

    Raises:
        ConfigError: the mode's settings do not fit the model.
    """
    model.requires_grad_(config.mode == "full")
    if config.mode == "last_two_layers" or (config.mode == "lora" and config.lora.train_head):
        _train(model, HEAD)
    if config.mode == "partial":
        _train(model, HEAD if config.partial.pre_classifier else HEAD[1:])
        blocks = [name for name, _ in model.named_modules() if BLOCK.fullmatch(name)]
        if config.partial.blocks > len(blocks):
            raise ConfigError(f"partial.blocks: {config.partial.blocks} is not valid; the model has {len(blocks)}")
        _train(model, blocks[len(blocks) - config.partial.blocks :])
    if config.mode != "lora":
        return []
    try:
        return inject_lora(
            model,
            config.lora.targets,
            r=config.lora.r,
            alpha=config.lora.alpha,
            scaling=config.lora.scaling,
            dropout=config.lora.dropout,
            generator=torch.Generator().manual_seed(config.resolved_seeds()["lora_init"]),
            layer=VARIANTS[config.lora.variant],
        )
    except ValueError as error:
        raise ConfigError(f"lora: {error}") from error


def count_parameters(model: nn.Module) -> ParameterCounts:
    """Count a model's parameters; the one counter behind every table."""
    kinds = {id(parameter): "lora" for parameter in lora_parameters(model)}
    for name in HEAD:
        for parameter in model.get_submodule(name).parameters():
            kinds.setdefault(id(parameter), "head")  # an update beside a head layer counts as LoRA
    trainable = {"lora": 0, "head": 0, "base": 0}
    total = 0
    for parameter in model.parameters():  # torch yields a shared tensor once
        total += parameter.numel()
        if parameter.requires_grad:
            trainable[kinds.get(id(parameter), "base")] += parameter.numel()
    return ParameterCounts(trainable=sum(trainable.values()), total=total, **trainable)


def _train(model: nn.Module, names: Iterable[str]) -> None:
    for name in names:
        model.get_submodule(name).requires_grad_(True)
