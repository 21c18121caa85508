"""One experiment: a config in, one record and its files out."""

import contextlib
import logging
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import filelock
import lightning as L
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback, RichProgressBar
from safetensors.torch import save
from torch import Tensor
from transformers import DistilBertForSequenceClassification

from lora_study import backbones, provenance
from lora_study.attention import use_matrix_products
from lora_study.callbacks import BestEpoch, Curves, PlainProgress
from lora_study.config import ConfigError, ExperimentConfig, deviations, flatten, to_dict
from lora_study.data.datamodule import ReviewDataModule
from lora_study.features import FeatureDataModule, HeadOnFeatures
from lora_study.modes import HEAD, apply_mode, count_parameters, hold_frozen_linears_in
from lora_study.module import ReviewClassifier
from lora_study.records import Record, read_record, run_dir, write_record

COMPUTE_DTYPE = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16, "32-true": None}


class BusyError(ConfigError):
    """Another process is running this very run."""


def run_experiment(
    config: ExperimentConfig, results_dir: Path, *, command: str = "", overwrite: bool = False
) -> Record:
    """Train and test one experiment and write its run folder.

    A completed run of the same config is not repeated: its record is returned as it stands.

    Args:
        config: What to run.
        results_dir: The study's results; the run goes to results_dir/NAME/seed-N/.
        command: What the user typed, for the record.
        overwrite: Run again and replace a completed run.

    Returns:
        The record, as written; its status is "failed" if training failed.

    Raises:
        ConfigError: the config, its data or its model cannot be used, the folder cannot be written, another
            process is running it, or holds a run of another config. Nothing has been written then.
        OSError: the run's folder cannot be written; what was there is as it was.
    """
    folder = run_dir(results_dir, config.name, config.seed)
    with locked(results_dir, config.name, config.seed):
        if not overwrite and (done := completed_run(folder, config)):
            return done
        started, clock = datetime.now(UTC), time.perf_counter()
        record = new_record(config, command)
        record.provenance |= {
            **provenance.code_state(),
            "versions": provenance.versions(),
            "seeds": config.resolved_seeds(),
            "started": started.isoformat(timespec="seconds"),
        }
        files: dict[str, Any] = {}
        try:
            with _quiet():
                files = _train_and_test(config, record)
            record.status = "completed"
        except ConfigError:
            raise
        except Exception as error:  # whatever went wrong, the record says so
            record.error = f"{type(error).__name__}: {_first_line(error)}"
            logging.getLogger(__name__).debug("%s", traceback.format_exc())
        record.timing["total_seconds"] = time.perf_counter() - clock
        try:
            _write(record, files, folder)
        except OSError as error:
            reason = error.strerror or error
            raise OSError(f"{folder} cannot be written: {reason}; free space or use another --results-dir") from error
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


def completed_run(folder: Path, config: ExperimentConfig) -> Record | None:
    """The record of a completed run of this config in a run folder, if there is one.

    Raises:
        ConfigError: the folder holds a completed run of another config, or a damaged record.
    """
    path = folder / "record.json"
    if not path.exists():
        return None
    try:
        record = read_record(path)
    except ValueError as error:
        raise ConfigError(f"{error}; move it away, or run with another results folder") from error
    if record.status != "completed":
        return None
    if changed := changed_fields(record, config):
        raise ConfigError(
            f"{folder} holds a completed run with other settings ({', '.join(changed)}); "
            "choose another name or results folder, or pass --overwrite"
        )
    return record


def changed_fields(record: Record, config: ExperimentConfig) -> list[str]:
    """Fields in which a record's config differs from a config, folders aside."""
    then, now = flatten(record.config), flatten(to_dict(config))
    return [
        f"{key}: {then.get(key)!r} then, {now.get(key)!r} now"
        for key in sorted(then.keys() | now.keys())
        if then.get(key) != now.get(key) and key != "data.cache_dir"
    ]


def _train_and_test(config: ExperimentConfig, record: Record) -> dict[str, Any]:
    """Run the experiment, filling the record; returns what goes into the run's other files."""
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    device = pick_device(config)
    precision = pick_precision(config, device)
    record.provenance["hardware"] = provenance.hardware(device) | {"precision": precision}

    # Every random choice has its own seed, so that none depends on how many numbers another has drawn.
    seeds = config.resolved_seeds()
    data = ReviewDataModule(config.data, backbones.build_tokenizer(config.model), order_seed=seeds["data_order"])
    data.setup()
    record.data = data.describe()
    memory = provenance.PeakMemory(device)  # from here on: what training takes, not what reading the reviews took
    model = backbones.build_model(config.model, head_seed=seeds["head_init"])
    record.provenance["encoder"] = backbones.describe(config.model)  # after loading: the hub's commit is known now
    apply_mode(model, config)
    record.parameters = count_parameters(model).to_dict()
    _announce(config, record)
    head = {name: value.clone() for name, value in model.state_dict().items() if name.startswith(HEAD)}
    dtype = make_fast(model, device, precision)
    record.provenance["hardware"]["attention"] = model.config._attn_implementation

    best, curves = BestEpoch(), Curves()
    trainer = _trainer(config, device, precision, [best, curves])
    L.seed_everything(seeds["dropout"], verbose=False)
    started = time.perf_counter()
    loaders: ReviewDataModule | FeatureDataModule = data
    if config.train.cache_trunk:
        model.to(device)  # type: ignore[arg-type]
        loaders = FeatureDataModule(data, model, dtype)
        classifier = ReviewClassifier(HeadOnFeatures(model), config.train)
    else:
        classifier = ReviewClassifier(model, config.train)
    trainer.fit(classifier, train_dataloaders=loaders.train_dataloader(), val_dataloaders=loaders.val_dataloader())
    fit_seconds = time.perf_counter() - started
    best.restore(classifier)
    started = time.perf_counter()
    train_scores = trainer.test(classifier, loaders.eval_dataloader("train"), verbose=False)[0]
    score_train_seconds = time.perf_counter() - started
    started = time.perf_counter()
    test_scores = trainer.test(classifier, loaders.eval_dataloader("test"), verbose=False)[0]
    test_seconds = time.perf_counter() - started

    cached = loaders.seconds if isinstance(loaders, FeatureDataModule) else {}
    train_seconds = curves.train_seconds + cached.get("train", 0.0)
    rows, probabilities = (values.numpy() for values in classifier.predictions())
    tested = data.parts["test"]
    record.timing = {
        "train_seconds": train_seconds,
        "fit_seconds": fit_seconds - cached.get("test", 0.0),
        "test_seconds": test_seconds + cached.get("test", 0.0),
        "score_train_seconds": score_train_seconds,
        "train_examples_per_second": config.train.epochs * len(data.parts["train"]) / train_seconds,
    }
    record.memory = memory.read()
    record.metrics = {
        "best_epoch": best.epoch,
        "train": {**train_scores, "n": data.scored("train")},
        "val": {**best.scores, "n": data.scored("val")},
        "test": {**test_scores, "n": data.scored("test")},
        "train_mode": classifier.trained_in_train_mode,
    }
    return {
        "curves": pd.DataFrame(curves.rows, columns=Curves.COLUMNS),
        "predictions": pd.DataFrame(
            {"id": [tested.ids[row] for row in rows], "label": tested.labels[rows], "probability": probabilities}
        ),
        "adapter": {**head, **_trained(model)} if config.mode != "full" else None,
    }


def pick_device(config: ExperimentConfig) -> torch.device:
    """The device an experiment trains on."""
    choice = config.train.accelerator
    if choice in ("auto", "gpu") and torch.cuda.is_available():
        return torch.device("cuda", 0)
    if choice in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return torch.device("mps")
    if choice in ("gpu", "mps"):
        raise ConfigError(f"train.accelerator: {choice!r} is not available on this machine; use auto or cpu")
    return torch.device("cpu")


def pick_precision(config: ExperimentConfig, device: torch.device) -> str:
    """The precision an experiment trains in; "auto" is bf16 where the device has it."""
    choice = config.train.precision
    if choice == "auto":
        return "bf16-mixed" if provenance.computes_in_bf16(device) else "32-true"
    if choice == "16-mixed" and device.type == "cpu":
        raise ConfigError("train.precision: '16-mixed' needs a GPU and there is none; use auto, bf16-mixed or 32-true")
    return choice


def make_fast(model: DistilBertForSequenceClassification, device: torch.device, precision: str) -> torch.dtype | None:
    """Arrange a model, already in its mode, for the precision it is trained in, in place; results change by rounding.

    Returns:
        The type autocast computes in; None for fp32.
    """
    dtype = COMPUTE_DTYPE[precision]
    if dtype is not None:
        hold_frozen_linears_in(model, dtype)
    if device.type == "cpu" and dtype is torch.bfloat16:
        use_matrix_products(model)
    return dtype


def _trainer(config: ExperimentConfig, device: torch.device, precision: str, callbacks: list[Callback]) -> L.Trainer:
    in_terminal = sys.stderr.isatty()
    return L.Trainer(
        max_epochs=config.train.epochs,
        accelerator={"cuda": "gpu"}.get(device.type, device.type),
        devices=config.train.devices,
        use_distributed_sampler=False,  # the data module shares batches out itself
        precision=precision,  # type: ignore[arg-type]
        callbacks=[*callbacks, RichProgressBar(leave=True) if in_terminal else PlainProgress()],
        enable_progress_bar=in_terminal,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )


@contextlib.contextmanager
def locked(results_dir: Path, name: str, seed: int) -> Iterator[None]:
    """Hold one run of a study for this process alone.

    Raises:
        BusyError: another process holds it.
        ConfigError: the results folder cannot be written.
    """
    # The lock lies beside the runs and stays: removing a lock file lets two processes hold it at once.
    path = results_dir / ".locks" / f"{name}-seed-{seed}.lock"
    with writing_to(results_dir):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(path, timeout=0)
        try:
            lock.acquire()
        except filelock.Timeout:
            message = f"{name} seed {seed} in {results_dir} is being run by another process; wait for it"
            raise BusyError(message) from None
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def writing_to(results_dir: Path) -> Iterator[None]:
    """Turn the failure to write into a results folder into a `ConfigError` that names it."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"results folder {results_dir} cannot be written: {error.strerror}; choose another"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's banner and its advice on data workers: the reviews are in memory."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning uses a deprecated name of torch's
        # ReviewClassifier sets the mode itself and checks it.
        warnings.filterwarnings("ignore", message=".*eval mode at the start of training.*")
        try:
            yield
        finally:
            logger.setLevel(level)


def _trained(model: DistilBertForSequenceClassification) -> dict[str, Tensor]:
    """What training changed, by name: the parameters that require gradients."""
    return {
        name: parameter.detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def _announce(config: ExperimentConfig, record: Record) -> None:
    counts, sizes = record.parameters, record.data["sizes"]
    print(
        f"{config.name} (mode {config.mode}, seed {config.seed}) on {record.provenance['encoder']['name']}: "
        f"{counts['trainable']:,} of {counts['total']:,} parameters trainable; "
        f"{sizes['train']:,} train, {sizes['val']:,} val, {sizes['test']:,} test reviews",
        file=sys.stderr,
        flush=True,
    )


def _write(record: Record, files: dict[str, Any], folder: Path) -> None:
    """Write a run's folder whole, beside its place, and put it there; what stood there before goes only then."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        staged = Path(temporary) / folder.name
        staged.mkdir()
        if "curves" in files:
            files["curves"].to_csv(staged / "curves.csv", index=False)
            files["predictions"].to_parquet(staged / "predictions.parquet", index=False)
        if files.get("adapter"):
            (staged / "adapter.safetensors").write_bytes(save(files["adapter"], metadata={"format": "pt"}))
        write_record(record, staged)
        if folder.exists():
            folder.replace(Path(temporary) / "replaced")
        staged.replace(folder)


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
