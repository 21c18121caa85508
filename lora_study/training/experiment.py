"""One experiment: a config in, one record and its files out."""

import contextlib
import logging
import shutil
import sys
import time
import traceback
from functools import partial
from pathlib import Path

from lora_study.base.errors import ConfigError
from lora_study.base.files import user_path
from lora_study.config import ExperimentConfig
from lora_study.records.record import ADAPTER, Record, read_record, run_dir
from lora_study.records.run_folder import locked, prepare_folder, write_run
from lora_study.training import devices
from lora_study.training.checks import check_lora
from lora_study.training.finished import finished_run
from lora_study.training.loggers import check_logger
from lora_study.training.places import Place, find_place
from lora_study.training.recording import Run, begin, files_of, reason, record_of, write_failed
from lora_study.training.stages import Built, Reviews, build, pick_computer, prepare, read_reviews, score, train
from lora_study.training.trainer import interruptible, quiet


def run_experiment(
    config: ExperimentConfig,
    results_dir: str | Path,
    *,
    command: str = "",
    overwrite: bool = False,
    resume: bool = False,
) -> Record:
    """Train and test one experiment and write its run folder.

    A completed run of the same config, reviews and encoder is not repeated: its record is returned as it stands, and
    a line on stderr says so. With several devices, a process is started for each, unless torchrun or srun has done
    that; the first one writes.

    Args:
        config: What to run.
        results_dir: The study's results; the run goes to results_dir/NAME/seed-N/.
        command: What the user typed, for the record.
        overwrite: Run again and replace a completed run.
        resume: Go on from the run's checkpoint if it was interrupted; the result is that of an uninterrupted run.

    Returns:
        The record, as written; its status is "failed" if training failed.

    Raises:
        ConfigError: the config, its data or its model cannot be used; another process is running it; or the folder
            cannot be written, or holds a run of another config, other reviews or another encoder. Nothing has been
            written then.
        OSError: the run's folder cannot be written; what was there is as it was.
    """
    check_logger(config.train.logger)
    results_dir, place = user_path(results_dir), find_place(config.train)
    if place is None:
        return _run_on_each_device(config, results_dir, command, overwrite, resume)
    folder = run_dir(results_dir, config.name, config.seed)
    writes = place.rank == 0
    with locked(results_dir, config.name, config.seed) if writes else contextlib.nullcontext():
        if writes:
            prepare_folder(folder)
        if not overwrite and (done := finished_run(folder, config)):
            _skip(done, folder, place)
            return done
        clock, run = time.perf_counter(), begin(config, command)
        checkpoint = checkpoint_of(folder)
        if writes and not resume and checkpoint.exists():
            words = (
                "has a checkpoint of an earlier try, from which --resume would go on; the run starts at its beginning"
            )
            print(f"{folder} {words}", file=sys.stderr)
        _go_through_stages(run, place, results_dir, checkpoint, clock, resume)
        record = record_of(run, time.perf_counter() - clock)
        if writes:
            write_run(record, files_of(run), folder)
            if record.status == "completed":
                shutil.rmtree(checkpoint.parent, ignore_errors=True)
        return record


def checkpoint_of(folder: Path) -> Path:
    """The checkpoint from which the run of a folder would go on."""
    return folder.parent / f".{folder.name}.checkpoint" / "epoch.safetensors"


def _go_through_stages(run: Run, place: Place, results_dir: Path, checkpoint: Path, clock: float, resume: bool) -> None:
    """Do a run's stages in their order; if one fails, the run says why and keeps what the earlier ones returned."""
    config = run.config
    try:
        with quiet(), interruptible():
            run.computer = pick_computer(config, place)
            run.reviews = read_reviews(config)
            run.built = build(config, run.computer)
            if place.rank == 0:
                _announce(config, run.reviews, run.built)
            run.training = prepare(
                config,
                run.computer,
                run.reviews,
                run.built,
                results_dir=results_dir,
                checkpoint=checkpoint,
                clock=clock,
                resume=resume,
            )
            run.fit_seconds = train(run.training)
            run.scored = score(config, run.reviews, run.built, run.training)
            # Not a trial of a sweep, which is one of many, and not FSDP, where no process has the whole model.
            if config.mode == "lora" and config.score_test and config.train.strategy != "fsdp" and place.rank == 0:
                run.checked = check_lora(config, run.reviews, run.built)
    except ConfigError:
        raise
    except Exception as error:  # whatever went wrong, the record says so
        run.error = reason(error)
        logging.getLogger(__name__).debug("%s", traceback.format_exc())


def _run_on_each_device(
    config: ExperimentConfig, results_dir: Path, command: str, overwrite: bool, resume: bool
) -> Record:
    """Run one experiment in a process per device of this machine; see `run_experiment`."""
    folder = run_dir(results_dir, config.name, config.seed)
    if not overwrite and (done := finished_run(folder, config)):
        _skip(done, folder, Place())
        return done
    path = folder / "record.json"
    before = path.read_bytes() if path.exists() else None
    try:
        devices.start(config.train.devices, partial(_run_here, config, results_dir, command, overwrite, resume))
    except devices.DeviceError as error:  # of the process that failed first; the others failed because it was gone
        return write_failed(config, results_dir, command, str(error), replaces=before)
    return read_record(path)


def _run_here(config: ExperimentConfig, results_dir: Path, command: str, overwrite: bool, resume: bool) -> None:
    """In the process of one device: run, and end all processes if the run failed in this one."""
    record = run_experiment(config, results_dir, command=command, overwrite=overwrite, resume=resume)
    if record.error:
        raise devices.DeviceError(record.error)


def _skip(record: Record, folder: Path, place: Place) -> None:
    """Say that a run is not repeated, and what its folder lacks."""
    if place.rank == 0:
        missing = "" if (folder / ADAPTER).exists() else " and keeps no weights"
        print(
            f"{record.name} seed {record.seed}: already completed in {folder}{missing}; nothing is trained "
            "(--overwrite trains it again)",
            file=sys.stderr,
            flush=True,
        )


def _announce(config: ExperimentConfig, reviews: Reviews, built: Built) -> None:
    """Say what is about to be trained, and on what."""
    counts, sizes = built.parameters, reviews.description["sizes"]
    print(
        f"{config.name} (mode {config.mode}, seed {config.seed}) on {built.encoder['name']}: "
        f"{counts['trainable']:,} of {counts['total']:,} parameters trainable; "
        f"{sizes['train']:,} train, {sizes['val']:,} val, {sizes['test']:,} test reviews",
        file=sys.stderr,
        flush=True,
    )
