"""LoRA from scratch, and a reproduction study of the article "Code LoRA from Scratch".

The names below are what other code imports. Each is looked up when it is first used, so that `import lora_study`
loads neither torch nor anything else.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora_study.base.errors import ConfigError
    from lora_study.config import ExperimentConfig, ModelConfig
    from lora_study.config_files import load_experiment
    from lora_study.data.datamodule import ReviewDataModule
    from lora_study.lora import (
        LinearWithLoRA,
        LoRALayer,
        inject_lora,
        lora_disabled,
        lora_layers,
        lora_parameters,
        merge_lora,
        parameter_groups,
        unmerge_lora,
    )
    from lora_study.lora.adapters import Adapters, load_adapter, save_adapter
    from lora_study.lora.dora import LinearWithDoRA
    from lora_study.model.classifier import ReviewClassifier
    from lora_study.model.encoder import build_model
    from lora_study.records.record import Record, read_records
    from lora_study.sharing.predict import Prediction, predict, prepare
    from lora_study.sharing.trained import TrainedModel, load_run

__all__ = [
    "Adapters",
    "ConfigError",
    "ExperimentConfig",
    "LinearWithDoRA",
    "LinearWithLoRA",
    "LoRALayer",
    "ModelConfig",
    "Prediction",
    "Record",
    "ReviewClassifier",
    "ReviewDataModule",
    "TrainedModel",
    "build_model",
    "inject_lora",
    "load_adapter",
    "load_experiment",
    "load_run",
    "lora_disabled",
    "lora_layers",
    "lora_parameters",
    "merge_lora",
    "parameter_groups",
    "predict",
    "prepare",
    "read_records",
    "run",
    "save_adapter",
    "unmerge_lora",
]

_MODULES = {
    "lora.adapters": ("Adapters", "load_adapter", "save_adapter"),
    "data.datamodule": ("ReviewDataModule",),
    "model.classifier": ("ReviewClassifier",),
    "model.encoder": ("build_model",),
    "base.errors": ("ConfigError",),
    "config": ("ExperimentConfig", "ModelConfig"),
    "config_files": ("load_experiment",),
    "lora.dora": ("LinearWithDoRA",),
    "sharing.predict": ("Prediction", "predict", "prepare"),
    "lora": (
        *("LinearWithLoRA", "LoRALayer", "inject_lora", "lora_disabled", "lora_layers", "lora_parameters"),
        *("merge_lora", "parameter_groups", "unmerge_lora"),
    ),
    "records.record": ("Record", "read_records"),
    "sharing.trained": ("TrainedModel", "load_run"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def run(config: "ExperimentConfig", results_dir: str | Path = "results/single", *, overwrite: bool = False) -> "Record":
    """Train and test one experiment; its files go to results_dir/NAME/seed-N/.

    A completed run of the same config, reviews and encoder is not repeated: its record is returned as it stands, and
    a line on stderr says so.

    Args:
        config: What to run, as `load_experiment` returns it.
        results_dir: Folder of results.
        overwrite: Run again and replace a completed run.

    Returns:
        The record, as written; its status is "failed", and its error says why, if training failed.

    Raises:
        ConfigError: the config, its data or its model cannot be used, or the folder holds a run of another config,
            other reviews or another encoder.
        OSError: the run's folder cannot be written.
    """
    from lora_study.training import places

    places.check_environment()  # before Lightning is imported, which reads it

    from lora_study.training.experiment import run_experiment

    return run_experiment(config, results_dir, overwrite=overwrite)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
