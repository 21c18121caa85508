"""Experiments that take about a second each; the fixture `tiny` of conftest.py fills in the paths of those by mode."""

from pathlib import Path

from lora_study.config import ExperimentConfig
from lora_study.config_files import experiment_from, overlay

FAST = {"learning_rate": 0.01, "epochs": 3, "precision": "32-true", "accelerator": "cpu", "threads": 1}
DIVERGES = {"optimizer": "adamw", "weight_decay": 3e38}  # overflows at the first step
MODES = {
    "lora": {"mode": "lora", "lora": {"r": 4, "alpha": 1, "targets": ["query", "value", "mlp"]}},
    "lora_with_head": {"mode": "lora", "lora": {"r": 4, "alpha": 1, "train_head": True}},
    "last_two_layers": {"mode": "last_two_layers"},
    "cached": {"mode": "last_two_layers", "train": {"cache_trunk": True}},
    "partial": {"mode": "partial", "partial": {"blocks": 1}},
    "full": {"mode": "full", "train": {"learning_rate": 0.003}},
    "bf16": {"mode": "lora", "lora": {"alpha": 1}, "train": {"precision": "bf16-mixed"}},
}


def tiny_experiment(backbone: Path, reviews: Path, cache: Path, variant: str, **changes) -> ExperimentConfig:
    """An experiment of one of the modes on a tiny encoder and a few reviews, with changes laid over it."""
    base = {
        "name": variant,
        "model": {"backbone": str(backbone), "attention_dropout": 0.0},
        "data": {
            "source": str(reviews),
            "sizes": {"train": 240, "val": 60, "test": 100},
            "max_length": 48,
            "bucket_window": 4,
            "cache_dir": str(cache),
        },
        "train": FAST,
    }
    return experiment_from(overlay(overlay(base, MODES[variant]), changes))


def tiny_content(
    backbone: Path, reviews: Path, cache: Path, sizes: tuple[int, int, int], *, max_length: int = 16, **train
) -> dict:
    """The content of an experiment of one epoch that trains, validates and tests on this many reviews."""
    return {
        "model": {"backbone": str(backbone)},
        "data": {
            "source": str(reviews),
            "sizes": dict(zip(("train", "val", "test"), sizes, strict=True)),
            "max_length": max_length,
            "cache_dir": str(cache),
        },
        "train": {"epochs": 1, "precision": "32-true", "accelerator": "cpu", "threads": 1, **train},
    }
