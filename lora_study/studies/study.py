"""A study: many experiments and seeds, each run by a launcher, then the report."""

import dataclasses
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from lora_study.base.errors import ConfigError
from lora_study.base.files import user_path, write_text
from lora_study.base.plain_yaml import dump_yaml
from lora_study.base.progress import duration
from lora_study.config import ExperimentConfig
from lora_study.config_files import read_yaml
from lora_study.config_studies import STUDY_FILE, WORDS, StudyConfig
from lora_study.evidence.summary import measured
from lora_study.evidence.trials import SWEEP_FILE
from lora_study.records.record import Record, run_dir
from lora_study.records.run_folder import BusyError, locked, put_back_if_refused, writing_to
from lora_study.studies.launchers import Launcher
from lora_study.studies.launchers.worker import label
from lora_study.training.finished import finished_run

POLL = 2.0  # seconds between looks at runs that other processes hold
REMIND = 30  # looks between messages on how long that has taken


def run_study(
    study: StudyConfig,
    experiments: Sequence[ExperimentConfig],
    results_dir: str | Path,
    launcher: Launcher,
    *,
    command: str = "",
) -> list[Record]:
    """Run every experiment with every seed, skipping completed runs; a failed run does not stop the others.

    Returns:
        One record per run, in order.

    Raises:
        ConfigError: see `run_all`; or the folder holds a sweep or another study.
    """
    results_dir = user_path(results_dir)
    _check_holds_no_other(results_dir, [experiment.name for experiment in experiments])
    runs = [dataclasses.replace(experiment, seed=seed) for seed in study.seeds for experiment in experiments]
    content: dict[str, Any] = {name: text for name in WORDS if (text := getattr(study, name))}
    content |= {"experiments": [experiment.name for experiment in experiments], "seeds": list(study.seeds)}
    path = results_dir / STUDY_FILE
    with put_back_if_refused(path):
        with writing_to(results_dir):  # before the runs: a report has to know which are missing
            write_text(path, dump_yaml(content))
        return run_all(runs, results_dir, launcher, command)


def _check_holds_no_other(results_dir: Path, names: Sequence[str]) -> None:
    """Refuse a folder of a sweep, and one whose study shares no experiment with this one: its file would be lost."""
    if (results_dir / SWEEP_FILE).exists():
        raise ConfigError(f"{results_dir} holds a sweep; choose another --results-dir")
    try:
        there = read_yaml(results_dir / STUDY_FILE).get("experiments")
    except ConfigError:  # none is there, or one that says nothing
        return
    if isinstance(there, list) and there and not any(name in there for name in names):
        listed = ", ".join(map(str, there))
        raise ConfigError(f"{results_dir} holds another study, of {listed}; choose another --results-dir")


def run_all(runs: Sequence[ExperimentConfig], results_dir: Path, launcher: Launcher, command: str) -> list[Record]:
    """Run experiments, skipping finished ones; those that another process holds come last, once it has ended.

    Returns:
        One record per run, in order.

    Raises:
        ConfigError: the folder cannot be written, or holds a completed run of an experiment with other settings, on
            other reviews or from another encoder; nothing has been run.
    """
    with writing_to(results_dir):  # refuse a folder that cannot be written before anything is run
        results_dir.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=results_dir).close()
    records: dict[ExperimentConfig, Record] = {}
    looks = 0

    def note(run: ExperimentConfig, record: Record, state: str = "") -> None:
        records[run] = record
        where = f"; see {run_dir(results_dir, run.name, run.seed)}" if record.status == "failed" else ""
        print(
            f"[{len(records)}/{len(runs)}] {label(run)}: {state}{outcome(record)}{where}", file=sys.stderr, flush=True
        )

    while waiting := [run for run in runs if run not in records]:
        done = [finished_run(run_dir(results_dir, run.name, run.seed), run) for run in waiting]
        for run, record in zip(waiting, done, strict=True):
            if record:
                note(run, record, "already completed; ")
        waiting = [run for run in waiting if run not in records]
        if free := [run for run in waiting if not _is_held(run, results_dir)]:
            with closing(launcher.run(free, results_dir, command)) as ended:
                for run, record in ended:
                    if record:
                        note(run, record)
        elif waiting:
            if looks % REMIND == 0:
                names = ", ".join(label(run) for run in waiting)
                so_far = f" ({duration(looks * POLL)} so far; it holds a file of {results_dir}/.locks)" if looks else ""
                print(f"waiting for another process, which is running {names}{so_far}", file=sys.stderr, flush=True)
            looks += 1
            time.sleep(POLL)
    return [records[run] for run in runs]


def outcome(record: Record) -> str:
    """One line on how a run ended."""
    if record.status == "failed":
        return f"failed: {record.error}"
    part = "test" if record.metrics.get("test") else "val"
    accuracy, reviews = (measured(record, f"metrics.{part}.{name}") for name in ("accuracy", "n"))
    if accuracy is None or reviews is None:  # a record that something else wrote
        return "completed, without an accuracy"
    return (
        f"{'test' if part == 'test' else 'validation'} accuracy {100 * accuracy:.2f}% on {reviews:,} reviews "
        f"(epoch {record.metrics.get('best_epoch')}), trained in {duration(record.timing.get('train_seconds') or 0)}"
    )


def _is_held(run: ExperimentConfig, results_dir: Path) -> bool:
    """Whether another process is running a run."""
    try:
        with locked(results_dir, run.name, run.seed):
            return False
    except BusyError:
        return True
