"""What a worker does with one run, and the record of a run whose worker was lost."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_study.base.errors import ConfigError, check
from lora_study.base.machine import pick_device, pick_precision
from lora_study.config import ExperimentConfig, TrainConfig
from lora_study.data.datamodule import check_reviews
from lora_study.data.sources import fetch_source
from lora_study.model.encoder import build_skeleton, fetch_encoder
from lora_study.model.modes import apply_mode
from lora_study.records.record import Record
from lora_study.records.run_folder import BusyError
from lora_study.training.experiment import run_experiment
from lora_study.training.loggers import check_logger
from lora_study.training.places import find_place
from lora_study.training.recording import write_failed


def work(config: ExperimentConfig, results_dir: Path, command: str) -> Record | None:
    """Run one experiment, from its checkpoint if it was interrupted; a user's mistake becomes a failed record.

    Returns:
        The record; None if another process holds the run, and will write its record.
    """
    try:
        return run_experiment(config, results_dir, command=command, resume=True)
    except BusyError:
        return None
    except ConfigError as error:
        return lost(config, results_dir, command, str(error))


def lost(config: ExperimentConfig, results_dir: Path, command: str, error: str) -> Record | None:
    """The record of a run that could not start or whose worker is gone; None if another process has taken over."""
    try:
        return write_failed(config, results_dir, command, error)
    except BusyError:
        return None


def label(config: ExperimentConfig) -> str:
    """A run as progress lines name it."""
    return f"{config.name} seed {config.seed}"


def check_inputs(runs: Sequence[ExperimentConfig]) -> None:
    """Have the encoders and the reviews of all runs on this machine, and refuse runs that could not be done with them.

    Raises:
        ConfigError: some are not to be had or are not reviews, or they or this machine do not fit a run's settings;
            that would otherwise be said once for every run, and of the last one after hours.
    """
    for model in {(run.model.backbone, run.model.revision): run.model for run in runs}.values():
        fetch_encoder(model)
    for data in {(run.data.source, run.data.revision): run.data for run in runs}.values():
        fetch_source(data)
    seen = set[Any]()
    for run in runs:
        mode = (run.model, run.mode, run.lora, run.partial)
        reviews = (run.model.backbone, run.model.revision, run.data)
        try:
            if run.train not in seen:
                _check_machine(run.train)
            if mode not in seen:
                apply_mode(build_skeleton(run.model), run)
            if reviews not in seen:
                check_reviews(run)
        except ConfigError as error:
            raise ConfigError(f"{run.name}: {error}") from error
        seen |= {run.train, mode, reviews}


def _check_machine(train: TrainConfig) -> None:
    """Refuse what this machine cannot do, or a logger whose package is missing."""
    find_place(train)
    pick_precision(train.precision, pick_device(train.accelerator, train.devices))
    check_logger(train.logger)


def check_one_device(runs: Sequence[ExperimentConfig]) -> None:
    """Refuse runs on several devices if each worker has only one."""
    for run in runs:
        remedy = "runs side by side get one device each; use 1, or --launcher local --workers 1"
        check(run.train.devices == 1, f"{run.name}: train.devices", run.train.devices, remedy)
