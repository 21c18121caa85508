"""Lightning's loggers, which write what a run finds out for other tools to show; no part of its results."""

import importlib.util
import os
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from lora_study.base.errors import ConfigError
from lora_study.config import ExperimentConfig

FOLDER = "logs"  # of a results folder, beside its experiments


def check_logger(name: str | None) -> None:
    """Refuse a logger whose package is missing.

    Raises:
        ConfigError: it is.
    """
    if name not in (None, "csv") and importlib.util.find_spec(name) is None:
        raise ConfigError(f"train.logger: {name!r} needs the package {name}; pip install 'lora-study[{name}]'")


def make_logger(config: ExperimentConfig, results_dir: Path) -> Logger | None:
    """The logger that a run's config names, for a `lightning.Trainer`, or None.

    A piece of an interrupted run, and a run that is repeated, is a version of its own. The environment variables of W&B
    and MLflow, such as MLFLOW_TRACKING_URI, work as usual.
    """
    folder, run = results_dir.resolve() / FOLDER, f"seed-{config.seed}"
    if config.train.logger == "csv":
        return CSVLogger(folder, name=f"{config.name}/{run}")
    if config.train.logger == "tensorboard":
        return TensorBoardLogger(folder, name=f"{config.name}/{run}")
    if config.train.logger == "wandb":
        folder.mkdir(parents=True, exist_ok=True)  # or it writes elsewhere
        project = os.environ.get("WANDB_PROJECT", "lora-study")
        silent = {"x_disable_meta": True, "console": "off"}  # a command line or its output may hold a secret
        return WandbLogger(name=f"{config.name}/{run}", project=project, save_dir=folder, settings=silent)
    if config.train.logger == "mlflow":
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # without a server it has nothing else to write to
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        return MLFlowLogger(config.name, run, tracking_uri=uri, save_dir=str(folder / "mlruns"))
    return None
