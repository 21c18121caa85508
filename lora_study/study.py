"""A study: many experiments and seeds, each in its own process, then the report."""

import contextlib
import dataclasses
import multiprocessing
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from lora_study.backbones import describe
from lora_study.config import ConfigError, ExperimentConfig, StudyConfig
from lora_study.experiment import BusyError, completed_run, new_record, run_experiment, writing_to
from lora_study.records import Record, read_record, run_dir, write_record

BUSY = 75  # exit status of a run's process whose run another process holds (sysexits' EX_TEMPFAIL)


def run_study(
    study: StudyConfig, experiments: Sequence[ExperimentConfig], results_dir: Path, *, command: str = ""
) -> list[Record]:
    """Run every experiment with every seed, skipping completed runs; a failed run does not stop the others.

    Returns:
        One record per run, in order.

    Raises:
        ConfigError: the folder cannot be written, or holds a completed run of an experiment with other settings.
            Nothing has been run then.
    """
    with writing_to(results_dir):  # refuse a folder that cannot be written before anything is run
        results_dir.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=results_dir).close()
    runs = [dataclasses.replace(experiment, seed=seed) for seed in study.seeds for experiment in experiments]
    done = [completed_run(run_dir(results_dir, run.name, run.seed), run) for run in runs]
    records = []
    for number, (run, finished) in enumerate(zip(runs, done, strict=True), start=1):
        state = "is done already" if finished else ""
        print(f"[{number}/{len(runs)}] {run.name} seed {run.seed} {state}", file=sys.stderr, flush=True)
        record = finished or run_apart(run, results_dir, command)
        print(f"    {outcome(record)}", file=sys.stderr, flush=True)
        records.append(record)
    return records


def run_apart(config: ExperimentConfig, results_dir: Path, command: str) -> Record:
    """Run one experiment in a process of its own.

    So its peak memory is its own, and a run the system kills (for memory, say) leaves a record and the study goes on.
    """
    # spawn: a forked copy of a process that has used threads may hang.
    process = multiprocessing.get_context("spawn").Process(target=_work, args=(config, results_dir, command))
    process.start()
    try:
        process.join()
    except BaseException:  # Ctrl-C reaches the child too; wait for it, or its lock would outlive this process
        process.terminate()
        process.join()
        raise
    folder = run_dir(results_dir, config.name, config.seed)
    if process.exitcode == 0:
        return read_record(folder / "record.json")
    if process.exitcode == BUSY:
        return failed_record(config, "it is being run by another process; start again when that has ended", command)
    code = process.exitcode or 0
    ending = f"killed by signal {-code}" if code < 0 else f"exit status {code}"
    hint = "; if memory ran out, lower data.batch_size or data.max_length" if code == -9 else ""
    record = failed_record(config, f"the run's process ended without a record: {ending}{hint}", command)
    write_record(record, folder)
    return record


def failed_record(config: ExperimentConfig, error: str, command: str) -> Record:
    """The record of a run that could not start or vanished."""
    record = new_record(config, command, error)
    # The backbone may be what is wrong.
    with contextlib.suppress(ConfigError):
        record.provenance["encoder"] = describe(config.model)
    return record


def outcome(record: Record) -> str:
    """One line on how a run ended."""
    if record.status == "failed":
        return f"failed: {record.error}"
    test = record.metrics["test"]
    return (
        f"test accuracy {100 * test['accuracy']:.2f}% on {test['n']:,} reviews "
        f"(epoch {record.metrics['best_epoch']}), trained in {record.timing['train_seconds']:.0f} s"
    )


def _work(config: ExperimentConfig, results_dir: Path, command: str) -> None:
    """In the child process: run, and turn a user's mistake into a failed record."""
    try:
        try:
            run_experiment(config, results_dir, command=command)
        except BusyError:
            sys.exit(BUSY)  # the record is the other process's to write
        except ConfigError as error:
            write_record(failed_record(config, str(error), command), run_dir(results_dir, config.name, config.seed))
    except OSError as error:  # a full disk, say: no record can be written either
        sys.exit(f"lora-study: error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
