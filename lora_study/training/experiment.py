"""One experiment: a config in, one record and its files out."""

import contextlib
import logging
import math
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor
from transformers import DistilBertForSequenceClassification

from lora_study.base import machine
from lora_study.base.errors import ConfigError, check
from lora_study.base.files import user_path
from lora_study.base.progress import PlainProgress
from lora_study.config import ExperimentConfig, flatten, to_dict
from lora_study.config_differences import NO_OTHER_RUN, deviations, without
from lora_study.data.datamodule import ReviewDataModule
from lora_study.model import encoder
from lora_study.model.classifier import ReviewClassifier
from lora_study.model.fast.levers import COMPUTE_DTYPE, make_fast
from lora_study.model.modes import HEAD, apply_mode, count_parameters
from lora_study.records.record import Record, read_record, rules_sha256, run_dir
from lora_study.records.run_folder import ADAPTER, locked, prepare_folder, write_run
from lora_study.training import devices
from lora_study.training.callbacks import BestEpoch, Curves, EpochSeed, OwnSignals, TrainingPeak, trainable
from lora_study.training.checkpoints import Checkpoints
from lora_study.training.devices import whole
from lora_study.training.finished import finished_run
from lora_study.training.head_features import FeatureDataModule, HeadOnFeatures
from lora_study.training.places import Place, find_place


@dataclass
class Built:
    """What a run trains and how: the model in its mode, the reviews and the way of computing.

    Attributes:
        data: The reviews, set up.
        model: The classifier, in its mode and arranged for its precision.
        head: The head's weights before that, in fp32.
        device: Where this process computes.
        precision: Lightning's name for the precision.
        dtype: The type autocast computes in; None for fp32.
        memory: Peak memory, counted from before the model was built.
    """

    data: ReviewDataModule
    model: DistilBertForSequenceClassification
    head: dict[str, Tensor]
    device: torch.device
    precision: str
    dtype: torch.dtype | None
    memory: machine.PeakMemory


@dataclass
class Trained:
    """What training leaves: the classifier at its best epoch, and what watched it on the way."""

    trainer: L.Trainer
    classifier: ReviewClassifier
    loaders: ReviewDataModule | FeatureDataModule
    best: BestEpoch
    curves: Curves
    peak: TrainingPeak


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
    a line on stderr says so. For several devices, a process is started for each, unless torchrun or srun has; then the
    first one writes.

    Args:
        config: What to run.
        results_dir: The study's results; the run goes to results_dir/NAME/seed-N/.
        command: What the user typed, for the record.
        overwrite: Run again and replace a completed run.
        resume: Go on from the run's checkpoint, if it was interrupted; it ends as if it had not been.

    Returns:
        The record, as written; its status is "failed" if training failed.

    Raises:
        ConfigError: the config, its data or its model cannot be used, the folder cannot be written, another
            process is running it, or holds a run of another config, other reviews or another encoder. Nothing has
            been written then.
        OSError: the run's folder cannot be written; what was there is as it was.
    """
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
        clock = time.perf_counter()
        record = _begun_record(config, command)
        checkpoint = folder.parent / f".{folder.name}.checkpoint" / "epoch.safetensors"
        files: dict[str, Any] = {}
        try:
            with _quiet(), _interruptible():
                built = _build(config, record, place)
                trained = _train(config, record, built, checkpoint, clock, resume)
                files = _score(config, record, built, trained)
            record.status = "completed"
        except ConfigError:
            raise
        except Exception as error:  # whatever went wrong, the record says so
            record.error = _reason(error)
            logging.getLogger(__name__).debug("%s", traceback.format_exc())
        record.timing["total_seconds"] = (record.timing.get("total_seconds") or 0.0) + time.perf_counter() - clock
        if writes:
            write_run(record, files, folder)
            if record.status == "completed":
                shutil.rmtree(checkpoint.parent, ignore_errors=True)
        return record


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
    except devices.DeviceError as error:  # of whichever process failed first; the others then failed for want of it
        return write_failed(config, results_dir, command, str(error), replaces=before)
    return read_record(path)


def _run_here(config: ExperimentConfig, results_dir: Path, command: str, overwrite: bool, resume: bool) -> None:
    """In the process of one device: run, and end all processes if the run failed in this one."""
    record = run_experiment(config, results_dir, command=command, overwrite=overwrite, resume=resume)
    if record.error:
        raise devices.DeviceError(record.error)


def write_failed(
    config: ExperimentConfig, results_dir: Path, command: str, error: str, *, replaces: bytes | None = None
) -> Record:
    """Write the record of a run that could not start, or whose process is gone.

    If it is gone since its record was written, it is completed, and that record is returned.

    Args:
        config: The run.
        results_dir: As `run_experiment`.
        command: As `run_experiment`.
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
        record = _begun_record(config, command)
        record.error = error
        with contextlib.suppress(ConfigError):  # the backbone may be what is wrong
            record.provenance["encoder"] = encoder.describe(config.model)
        write_run(record, {}, folder)
    return record


def _skip(record: Record, folder: Path, place: Place) -> None:
    """Say that a run is not repeated, and what one might miss."""
    if place.rank == 0:
        missing = "" if (folder / ADAPTER).exists() else " and keeps no weights"
        print(
            f"{record.name} seed {record.seed}: already completed in {folder}{missing}; nothing is trained "
            "(--overwrite trains it again)",
            file=sys.stderr,
            flush=True,
        )


def _begun_record(config: ExperimentConfig, command: str) -> Record:
    """The record of a run that begins now: failed, until it is completed."""
    record = new_record(config, command)
    record.provenance |= {
        **machine.code_state(),
        "versions": machine.versions(),
        "seeds": config.resolved_seeds(),
        "rules_sha256": rules_sha256(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return record


def new_record(config: ExperimentConfig, command: str, error: str | None = None) -> Record:
    """The record of a run of which nothing is known yet but what was asked for: failed, until it is completed."""
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


def _build(config: ExperimentConfig, record: Record, place: Place) -> Built:
    """Read the reviews and build the model in its mode, filling the record."""
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    device = machine.pick_device(config.train.accelerator, config.train.devices, place.local_rank)
    precision = machine.pick_precision(config.train.precision, device)
    record.provenance["hardware"] = machine.hardware(device) | {"precision": precision}

    # Every random choice has its own seed, so that none depends on how many numbers another has drawn.
    seeds = config.resolved_seeds()
    tokenizer = encoder.build_tokenizer(config.model)
    encoder.check_tables(config.model, tokenizer, config.data.max_length)
    data = ReviewDataModule(config.data, tokenizer, order_seed=seeds["data_order"])
    data.setup()
    record.data = data.describe()
    smallest = min(len(part) for part in data.parts.values())
    check(
        smallest >= config.train.processes,
        "train.devices",
        config.train.devices,
        f"a part of the data has {smallest} reviews",
    )
    memory = machine.PeakMemory(device)  # from here on: what training takes, not what reading the reviews took
    model = encoder.build_model(config.model, head_seed=seeds["head_init"])
    record.provenance["encoder"] = encoder.describe(config.model)  # after loading: the hub's commit is known now
    apply_mode(model, config)
    record.parameters = count_parameters(model).to_dict()
    if place.rank == 0:
        _announce(config, record)
    head = {name: value.clone() for name, value in model.state_dict().items() if name.startswith(HEAD)}
    if config.train.fast and config.train.strategy != "fsdp":  # FSDP shares out weights of one type only
        make_fast(model, device, precision)
    record.provenance["hardware"]["attention"] = model.config._attn_implementation
    return Built(data, model, head, device, precision, COMPUTE_DTYPE[precision], memory)


def _train(
    config: ExperimentConfig, record: Record, built: Built, checkpoint: Path, clock: float, resume: bool
) -> Trained:
    """Train the model to its best epoch, from its checkpoint if it is to be resumed, and note the time it took."""
    best, curves, peak = BestEpoch(), Curves(), TrainingPeak(built.memory)
    identity = without(flatten(record.config), NO_OTHER_RUN) | {
        "data.fingerprint": record.data["fingerprint"],
        **{f"encoder.{key}": record.provenance["encoder"][key] for key in ("sha256", "settings_sha256")},
    }
    checkpoints = Checkpoints(checkpoint, identity, best, curves, peak, clock)
    callbacks: list[Callback] = [EpochSeed(config.resolved_seeds()["dropout"]), peak, best, curves, OwnSignals()]
    if not config.train.cache_trunk:  # with it an epoch takes no time
        callbacks.append(checkpoints)
    trainer = _trainer(config, built.device, built.precision, callbacks)
    built.data.trainer = trainer  # which knows this process's share of the batches
    started = time.perf_counter()
    loaders: ReviewDataModule | FeatureDataModule = built.data
    if config.train.cache_trunk:
        built.model.to(built.device)  # type: ignore[arg-type]
        loaders = FeatureDataModule(built.data, built.model, built.dtype)
        classifier = ReviewClassifier(HeadOnFeatures(built.model), config.train)
    else:
        classifier = ReviewClassifier(built.model, config.train, lr_ratio=config.lora.lr_ratio)
    if resume:
        checkpoints.resume(trainer, classifier)
    record.provenance["resumed_after_epochs"] = checkpoints.resumed_epochs
    record.timing["total_seconds"] = checkpoints.seconds["total"]
    trainer.fit(classifier, train_dataloaders=loaders.train_dataloader(), val_dataloaders=loaders.val_dataloader())
    record.timing["fit_seconds"] = checkpoints.seconds["fit"] + time.perf_counter() - started
    best.restore(classifier)
    return Trained(trainer, classifier, loaders, best, curves, peak)


def _score(config: ExperimentConfig, record: Record, built: Built, trained: Trained) -> dict[str, Any]:
    """Score the trained model, filling the record; returns what goes into the run's other files."""
    data, classifier, best, curves = built.data, trained.classifier, trained.best, trained.curves
    scores: dict[str, dict[str, Any] | None] = {"val": {**best.scores, "n": data.scored("val")}, "test": None}
    seconds: dict[str, float] = {}
    for part in ("train", "test") if config.score_test else ("train",):
        started = time.perf_counter()
        found = trained.trainer.test(classifier, trained.loaders.eval_dataloader(part), verbose=False)[0]
        scores[part] = {**found, "n": data.scored(part)}
        seconds[part] = time.perf_counter() - started

    cached = trained.loaders.seconds if isinstance(trained.loaders, FeatureDataModule) else {}
    train_seconds = curves.train_seconds + cached.get("train", 0.0)
    record.timing |= {
        "train_seconds": train_seconds,
        "train_cpu_seconds": curves.cpu_seconds,
        "fit_seconds": (record.timing["fit_seconds"] or 0.0) - cached.get("test", 0.0),
        "test_seconds": seconds["test"] + cached.get("test", 0.0) if config.score_test else None,
        "score_train_seconds": seconds["train"],
        "train_examples_per_second": config.train.epochs * len(data.parts["train"]) / train_seconds,
    }
    whole_run, training = built.memory.read(), trained.peak.peak_bytes
    # Not below the other: a resumed run's pieces had readings of their own, and Linux counts with a little delay.
    with_scoring = whole_run["peak_bytes"] and max(whole_run["peak_bytes"], training or 0)
    record.memory = whole_run | {"peak_bytes": training, "peak_bytes_with_scoring": with_scoring}
    record.metrics = {
        "best_epoch": best.epoch,
        **{part: _storable(found) for part, found in scores.items()},
        "train_mode": classifier.trained_in_train_mode,
    }
    files: dict[str, Any] = {"curves": pd.DataFrame(curves.rows, columns=Curves.COLUMNS)}
    if config.score_test:
        tested = data.parts["test"]
        rows, probabilities = (values.numpy() for values in classifier.predictions())
        files["predictions"] = pd.DataFrame(
            {"id": [tested.ids[row] for row in rows], "label": tested.labels[rows], "probability": probabilities}
        )
    weights = {name: whole(value).cpu().contiguous() for name, value in trainable(built.model)}
    if config.mode != "full" or config.train.keep_weights:
        files["adapter"] = {**built.head, **weights}
    return files


def _storable(scores: dict[str, Any] | None) -> dict[str, Any] | None:
    """Scores as a record can hold them: one that is not finite is None, as if it had not been measured."""
    if scores is None:
        return None
    return {name: value if math.isfinite(value) else None for name, value in scores.items()}


def _trainer(config: ExperimentConfig, device: torch.device, precision: str, callbacks: list[Callback]) -> L.Trainer:
    in_terminal = sys.stderr.isatty()
    return L.Trainer(
        max_epochs=config.train.epochs,
        accelerator={"cuda": "gpu"}.get(device.type, device.type),
        devices=config.train.devices,
        num_nodes=config.train.num_nodes,
        strategy=_strategy(config),
        plugins=[devices.environment(config.train)],
        use_distributed_sampler=False,  # the data module shares batches out itself
        precision=precision,  # type: ignore[arg-type]
        callbacks=[*callbacks, RichProgressBar(leave=True) if in_terminal else PlainProgress()],
        enable_progress_bar=in_terminal,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )


def _strategy(config: ExperimentConfig) -> Strategy | str:
    """How the devices work together."""
    if config.train.processes == 1:
        return "auto"
    if config.train.strategy == "fsdp":
        return ModelParallelStrategy(
            data_parallel_size=config.train.processes, tensor_parallel_size=1, timeout=devices.PATIENCE
        )
    # No buffer of the model changes. Sent around at every step, validation too, they would have a device wait for
    # another that has one batch less.
    return DDPStrategy(broadcast_buffers=False, timeout=devices.PATIENCE)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C be Ctrl-C where Python raises it: Lightning would ignore the next one and exit with status 1."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as ended:
        if not isinstance(ended.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's banner and its advice on data workers: the reviews are in memory."""
    loggers = [logging.getLogger(f"lightning.{name}") for name in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning uses a deprecated name of torch's
        warnings.filterwarnings("ignore", message=".*sync_dist=True.*")  # torchmetrics has seen to it
        warnings.filterwarnings("ignore", message=".*broadcast_buffers.*")  # its new name is unknown to older torch
        # ReviewClassifier sets the mode itself and checks it.
        warnings.filterwarnings("ignore", message=".*eval mode at the start of training.*")
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _announce(config: ExperimentConfig, record: Record) -> None:
    counts, sizes = record.parameters, record.data["sizes"]
    print(
        f"{config.name} (mode {config.mode}, seed {config.seed}) on {record.provenance['encoder']['name']}: "
        f"{counts['trainable']:,} of {counts['total']:,} parameters trainable; "
        f"{sizes['train']:,} train, {sizes['val']:,} val, {sizes['test']:,} test reviews",
        file=sys.stderr,
        flush=True,
    )


def _reason(error: Exception) -> str:
    """Why a run failed, in one line."""
    text = f"{type(error).__name__}: {_first_line(error)}"
    # On a CPU torch raises a RuntimeError.
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "DefaultCPUAllocator" in text:
        text += "; lower data.batch_size or data.max_length, or set train.precision to bf16-mixed"
    return text


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
