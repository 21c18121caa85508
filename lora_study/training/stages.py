"""The stages of a run, in their order; each takes what the ones before it returned, and returns what it made."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from transformers import DistilBertForSequenceClassification

from lora_study.base import machine
from lora_study.base.errors import check
from lora_study.config import NAMED_SOURCES, ExperimentConfig, flatten, to_dict
from lora_study.config_differences import NO_OTHER_RUN, without
from lora_study.data.datamodule import MOST_TRAIN, ReviewDataModule
from lora_study.model import encoder
from lora_study.model.classifier import ReviewClassifier
from lora_study.model.fast.levers import COMPUTE_DTYPE, make_fast
from lora_study.model.modes import HEAD, apply_mode, count_parameters
from lora_study.training.callbacks import BestEpoch, Curves, OwnSignals, TrainingPeak, trainable
from lora_study.training.checkpoints import Checkpoints
from lora_study.training.devices import whole
from lora_study.training.head_features import FeatureDataModule, HeadOnFeatures
from lora_study.training.loggers import make_logger
from lora_study.training.places import Place
from lora_study.training.trainer import make_trainer


@dataclass(frozen=True)
class Computer:
    """Where and how this process computes.

    Attributes:
        device: Its device.
        precision: Lightning's name for the precision.
        hardware: What the record says of the machine.
    """

    device: torch.device
    precision: str
    hardware: dict[str, Any]

    @property
    def dtype(self) -> torch.dtype | None:
        """The type autocast computes in; None for fp32."""
        return COMPUTE_DTYPE[self.precision]


@dataclass(frozen=True)
class Reviews:
    """The reviews, split and tokenised, and what the record says of them."""

    batches: ReviewDataModule
    description: dict[str, Any]


@dataclass(frozen=True)
class Built:
    """The model in its mode, arranged for its precision.

    Attributes:
        model: The classifier.
        head: The head's weights before it was arranged, in fp32.
        encoder: What the record says of the encoder.
        parameters: How many there are of each kind.
        memory: Peak memory, counted from before the model was built.
    """

    model: DistilBertForSequenceClassification
    head: dict[str, Tensor]
    encoder: dict[str, Any]
    parameters: dict[str, int]
    memory: machine.PeakMemory


@dataclass(frozen=True)
class Training:
    """A training that can begin or go on from a checkpoint, and what watches it.

    Attributes:
        trainer: Runs the epochs.
        classifier: What is trained.
        batches: The reviews, or the trunk's features of them.
        best: Keeps the best epoch.
        curves: Keeps the learning curves.
        peak: Reads the peak memory of training.
        checkpoints: Writes checkpoints; knows how long the earlier pieces took.
        started: `time.perf_counter` when it was prepared, features included.
    """

    trainer: L.Trainer
    classifier: ReviewClassifier
    batches: ReviewDataModule | FeatureDataModule
    best: BestEpoch
    curves: Curves
    peak: TrainingPeak
    checkpoints: Checkpoints
    started: float

    def feature_seconds(self, part: str) -> float:
        """The seconds that computing the trunk's features of a part took; 0 where there are none."""
        return self.batches.seconds.get(part, 0.0) if isinstance(self.batches, FeatureDataModule) else 0.0


@dataclass(frozen=True)
class Scored:
    """How good the trained model is, and what else is kept of it.

    Attributes:
        metrics: Per part its scores and the number of reviews; None for a part that is not scored.
        seconds: Per part how long scoring it took.
        memory: Peak memory of the whole run.
        predictions: One row per test review; None where they are not scored.
        weights: The head and what was trained, by name; None where they are not kept.
    """

    metrics: dict[str, dict[str, Any] | None]
    seconds: dict[str, float]
    memory: dict[str, Any]
    predictions: pd.DataFrame | None
    weights: dict[str, Tensor] | None


def pick_computer(config: ExperimentConfig, place: Place) -> Computer:
    """Find the device and the precision that the config asks for."""
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    device = machine.pick_device(config.train.accelerator, config.train.devices, place.local_rank)
    precision = machine.pick_precision(config.train.precision, device)
    return Computer(device, precision, machine.hardware(device) | {"precision": precision})


def read_reviews(config: ExperimentConfig) -> Reviews:
    """Read, split and tokenise the reviews."""
    batches = ReviewDataModule.from_config(config)
    batches.setup()
    smallest = min(len(part) for part in batches.parts.values())
    check(
        smallest >= config.train.processes,
        "train.devices",
        config.train.devices,
        f"a part of the data has {smallest} reviews",
    )
    return Reviews(batches, batches.describe())


def build(config: ExperimentConfig, computer: Computer) -> Built:
    """Build the model in its mode, and arrange it for speed."""
    memory = machine.PeakMemory(computer.device)  # from here on: what training takes, not what reading reviews took
    model = encoder.build_model(config.model, head_seed=config.resolved_seeds()["head_init"])
    described = encoder.describe(config.model)  # after loading: the hub's commit is known now
    apply_mode(model, config)
    parameters = count_parameters(model).to_dict()
    head = {name: value.clone() for name, value in model.state_dict().items() if name.startswith(HEAD)}
    if config.train.fast and config.train.strategy != "fsdp":  # FSDP shares out weights of one type only
        make_fast(model, computer.device, computer.precision)
    return Built(model, head, described, parameters, memory)


def prepare(
    config: ExperimentConfig,
    computer: Computer,
    reviews: Reviews,
    built: Built,
    *,
    results_dir: Path,
    checkpoint: Path,
    clock: float,
    resume: bool,
) -> Training:
    """Put together what trains the model, and resume it from its checkpoint if that is asked for."""
    best, curves, peak = BestEpoch(), Curves(), TrainingPeak(built.memory)
    identity = _identity(config, reviews, built) | {"precision": computer.precision}  # auto may have been another
    checkpoints = Checkpoints(checkpoint, identity, best, curves, peak, clock)
    callbacks: list[Callback] = [peak, best, curves, OwnSignals()]
    if not config.train.cache_trunk:  # with it an epoch takes no time
        callbacks.append(checkpoints)
    trainer = make_trainer(
        config.train, computer.device, computer.precision, callbacks, make_logger(config, results_dir)
    )
    reviews.batches.trainer = trainer  # which knows this process's share of the batches
    started = time.perf_counter()
    batches: ReviewDataModule | FeatureDataModule = reviews.batches
    model: nn.Module = built.model
    if config.train.cache_trunk:
        built.model.to(computer.device)  # type: ignore[arg-type]
        parts = ("train", "val", "test") if config.score_test else ("train", "val")
        batches = FeatureDataModule(reviews.batches, built.model, computer.dtype, parts)
        model = HeadOnFeatures(built.model)
    classifier = ReviewClassifier(model, config)
    if resume:
        checkpoints.resume(trainer, classifier)
    return Training(trainer, classifier, batches, best, curves, peak, checkpoints, started)


def train(training: Training) -> float:
    """Train to the last epoch, and go back to the best one.

    Returns:
        The seconds of training and validation, over all pieces of an interrupted run.
    """
    batches = training.batches
    training.trainer.fit(
        training.classifier, train_dataloaders=batches.train_dataloader(), val_dataloaders=batches.val_dataloader()
    )
    seconds = training.checkpoints.seconds["fit"] + time.perf_counter() - training.started
    training.best.restore(training.classifier)
    # Features of test reviews are computed with the others; they are no part of training.
    return seconds - training.feature_seconds("test")


def score(config: ExperimentConfig, reviews: Reviews, built: Built, training: Training) -> Scored:
    """Score the trained model on the training and test reviews; those of validation chose it and are known."""
    batches = reviews.batches
    metrics: dict[str, dict[str, Any] | None] = {"val": {**training.best.scores, "n": batches.scored("val")}}
    metrics["test"] = None
    seconds: dict[str, float] = {}
    loggers = training.trainer.loggers
    for part in ("train", "test") if config.score_test else ("train",):
        started = time.perf_counter()
        most = MOST_TRAIN if part == "train" else None
        loader = training.batches.eval_dataloader(part, most)
        training.trainer.loggers = loggers if part == "test" else []  # where every part would be named test
        (found,) = training.trainer.test(training.classifier, loader, verbose=False)
        scores = {name.removeprefix("test/"): value for name, value in found.items()}
        metrics[part] = {**scores, "n": batches.scored(part, most)}
        seconds[part] = time.perf_counter() - started
    memory = built.memory.read()
    predictions = _predictions(reviews, training.classifier) if config.score_test else None
    weights = {name: whole(value).cpu().contiguous() for name, value in trainable(built.model)}
    kept = config.mode != "full" or config.train.keep_weights
    return Scored(metrics, seconds, memory, predictions, {**built.head, **weights} if kept else None)


def _identity(config: ExperimentConfig, reviews: Reviews, built: Built) -> dict[str, Any]:
    """What makes a checkpoint one of this very run; where its reviews and encoder lie does not."""
    places = {
        "data.source": config.data.source not in NAMED_SOURCES,
        "model.backbone": Path(config.model.backbone).is_absolute(),
    }
    settings = without(flatten(to_dict(config)), NO_OTHER_RUN)
    return {
        **{name: value for name, value in settings.items() if not places.get(name)},
        "data.fingerprint": reviews.description["fingerprint"],
        **{f"encoder.{key}": built.encoder[key] for key in ("sha256", "settings_sha256")},
    }


def _predictions(reviews: Reviews, classifier: ReviewClassifier) -> pd.DataFrame:
    tested = reviews.batches.parts["test"]
    rows, probabilities = (values.numpy() for values in classifier.predictions())
    return pd.DataFrame(
        {"id": [tested.ids[row] for row in rows], "label": tested.labels[rows], "probability": probabilities}
    )
