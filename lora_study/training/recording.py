"""The record of a run, assembled here alone: of a completed one, a failed one, and one whose process is gone."""

import contextlib
import dataclasses
import math
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from lora_study.base import machine
from lora_study.base.errors import ConfigError
from lora_study.config import ExperimentConfig, to_dict
from lora_study.config_differences import deviations
from lora_study.model import encoder
from lora_study.records.record import Record, rules_sha256, run_dir
from lora_study.records.run_folder import locked, prepare_folder, write_run
from lora_study.training.callbacks import Curves
from lora_study.training.checks import NOT_CHECKED
from lora_study.training.finished import finished_run
from lora_study.training.stages import Built, Computer, Reviews, Scored, Training


@dataclass
class Run:
    """What is known of a run, from its beginning on; what a stage returns is None until the run has got that far.

    Attributes:
        config: What is run.
        origin: Where it comes from, for the record: command, commit, versions, seeds, rules and time.
        fit_seconds: What `stages.train` returned.
        checked: What LoRA promises, as measured on this run (see `checks.check_lora`).
        error: Why it failed, one line.
    """

    config: ExperimentConfig
    origin: dict[str, Any]
    computer: Computer | None = None
    reviews: Reviews | None = None
    built: Built | None = None
    training: Training | None = None
    fit_seconds: float | None = None
    scored: Scored | None = None
    checked: dict[str, float | None] = field(default_factory=NOT_CHECKED.copy)
    error: str | None = None


def begin(config: ExperimentConfig, command: str) -> Run:
    """A run that begins now, with the code as it is now."""
    origin = {
        "command": command,
        **machine.code_state(),
        "versions": machine.versions(),
        "seeds": config.resolved_seeds(),
        "rules_sha256": rules_sha256(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return Run(config, origin)


def new_record(config: ExperimentConfig, command: str, error: str | None = None) -> Record:
    """The record of a run of which only what was asked for is known: it counts as failed until it is completed."""
    return Record(
        name=config.name,
        mode=config.mode,
        seed=config.seed,
        status="failed",
        error=error,
        config=to_dict(config),
        deviations=deviations(config),
        provenance={"command": command},
    )


def record_of(run: Run, seconds: float | None) -> Record:
    """The record of a run, completed or failed, as far as it got.

    Args:
        run: The run, at its end.
        seconds: How long it took since it began or was resumed; None if that is not known.
    """
    return dataclasses.replace(
        new_record(run.config, run.origin["command"], run.error),
        status="failed" if run.error or not run.scored else "completed",
        parameters=run.built.parameters if run.built else {},
        metrics=_metrics(run.training, run.scored) | {"lora": run.checked} if run.training and run.scored else {},
        timing=_timing(run, seconds),
        memory=_memory(run.training, run.scored) if run.training and run.scored else {},
        data=run.reviews.description if run.reviews else {},
        provenance=_provenance(run),
    )


def files_of(run: Run) -> dict[str, Any]:
    """What goes into a run's other files (see `run_folder.write_run`); nothing of a failed run."""
    if run.error or not run.training or not run.scored:
        return {}
    files = {
        "curves": pd.DataFrame(run.training.curves.rows, columns=Curves.COLUMNS),
        "predictions": run.scored.predictions,
        "adapter": run.scored.weights,
    }
    return {name: content for name, content in files.items() if content is not None}


def write_failed(
    config: ExperimentConfig, results_dir: Path, command: str, error: str, *, replaces: bytes | None = None
) -> Record:
    """Write the record of a run that could not start, or whose process is gone.

    If its process died after the record was written, the run is completed, and that record is returned.

    Args:
        config: The run.
        results_dir: As `experiment.run_experiment`.
        command: As `experiment.run_experiment`.
        error: Why it failed, one line.
        replaces: The file of the record that the run was to replace, if there was one.

    Raises:
        ConfigError: another process holds the run, or the folder holds a run of something else.
        OSError: the run's folder cannot be written.
    """
    folder = run_dir(results_dir, config.name, config.seed)
    path = folder / "record.json"
    with locked(results_dir, config.name, config.seed):
        prepare_folder(folder)
        written = path.exists() and path.read_bytes() != replaces
        if written and (done := finished_run(folder, config)):
            return done
        run = begin(config, command)
        run.error = error
        with contextlib.suppress(ConfigError):  # the backbone may be what is wrong
            run.origin["encoder"] = encoder.describe(config.model)
        record = record_of(run, seconds=None)
        write_run(record, {}, folder)
    return record


# On a CPU torch raises a RuntimeError, of its own or of oneDNN's, which computes its products and says no more.
NO_MEMORY = ("DefaultCPUAllocator", "could not create a primitive", "could not execute a primitive")


def reason(error: Exception) -> str:
    """Why a run failed, in one line."""
    first_line = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
    text = f"{type(error).__name__}: {first_line}"
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(words in text for words in NO_MEMORY):
        text += "; lower data.batch_size or data.max_length, or set train.precision to bf16-mixed"
    return text


def _metrics(training: Training, scored: Scored) -> dict[str, Any]:
    return {
        "best_epoch": training.best.epoch,
        **{part: _storable(found) for part, found in scored.metrics.items()},
        "train_mode": training.classifier.trained_in_train_mode,
    }


def _storable(scores: dict[str, Any] | None) -> dict[str, Any] | None:
    """Scores as a record can hold them: one that is not finite is None, as if it had not been measured."""
    if scores is None:
        return None
    return {name: value if math.isfinite(value) else None for name, value in scores.items()}


def _timing(run: Run, seconds: float | None) -> dict[str, float | None]:
    training, timing = run.training, dict[str, float | None]()
    if seconds is not None:
        before = training.checkpoints.seconds["total"] if training else 0.0  # of the pieces of an interrupted run
        timing["total_seconds"] = before + seconds
    if run.fit_seconds is not None:
        timing["fit_seconds"] = run.fit_seconds
    if not run.reviews or not training or not run.scored:
        return timing
    scoring, examples = run.scored.seconds, run.config.train.epochs * run.reviews.description["sizes"]["train"]
    train_seconds = training.curves.train_seconds + training.feature_seconds("train")
    return timing | {
        "train_seconds": train_seconds,
        "train_cpu_seconds": training.curves.cpu_seconds,
        "test_seconds": scoring["test"] + training.feature_seconds("test") if "test" in scoring else None,
        "score_train_seconds": scoring["train"],
        "train_examples_per_second": examples / train_seconds,
    }


def _memory(training: Training, scored: Scored) -> dict[str, Any]:
    whole_run, peak = scored.memory, training.peak.peak_bytes
    # Not below the other: a resumed run's pieces had readings of their own, and Linux counts with a little delay.
    with_scoring = whole_run["peak_bytes"] and max(whole_run["peak_bytes"], peak or 0)
    return whole_run | {"peak_bytes": peak, "peak_bytes_with_scoring": with_scoring}


def _provenance(run: Run) -> dict[str, Any]:
    provenance = dict(run.origin)
    if run.computer:
        attention = {"attention": run.built.model.config._attn_implementation} if run.built else {}
        provenance["hardware"] = run.computer.hardware | attention
    if run.built:
        provenance["encoder"] = run.built.encoder
    if run.training:
        provenance["resumed_after_epochs"] = run.training.checkpoints.resumed_epochs
    return provenance
