"""The sides of the benchmark: the same fine-tuning with this package, with PEFT + Trainer, and as a plain script.

Each is a function from a `Task` to what was `Measured`, to be called in a fresh process.
"""

import itertools
import logging
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import lightning as L
import numpy as np
import torch
from datasets import Dataset
from lightning.pytorch.callbacks import Callback
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode
from torchmetrics.classification import MulticlassAccuracy
from transformers import (
    DataCollatorWithPadding,
    DistilBertForSequenceClassification,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from lora_study.base.machine import PeakMemory, pick_device, pick_precision
from lora_study.config import ExperimentConfig
from lora_study.data.datamodule import ReviewDataModule
from lora_study.data.sources import load_reviews
from lora_study.data.splits import split_reviews
from lora_study.model.classifier import ReviewClassifier
from lora_study.model.encoder import build_model, build_skeleton, build_tokenizer
from lora_study.model.fast.levers import COMPUTE_DTYPE, make_fast
from lora_study.model.modes import apply_mode
from lora_study.training.head_features import FeatureDataModule, HeadOnFeatures

EPOCHS = 3

# What torch's operations on a CPU are for, in a profile.
KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"),
    "softmax": ("aten::_softmax", "aten::_softmax_backward_data"),
    "copies and conversions": ("aten::copy_", "aten::fill_"),
    "gelu": ("aten::gelu", "aten::gelu_backward"),
    "layer norms": ("aten::native_layer_norm", "aten::native_layer_norm_backward"),
    "additions and products by element": tuple(
        f"aten::{name}{end}" for name in ("add", "mul", "div") for end in ("", "_")
    ),
    "dropout masks": ("dropout masks", "aten::ge", "aten::gt"),
    "optimizer": ("aten::_fused_adam_",),
}


@dataclass(frozen=True)
class Task:
    """What a side has to do.

    Attributes:
        job: "train" (steps), "epochs" (three of them; the peers train steps, whose speed is that of epochs) or
            "evaluate" (the test part).
        config: The experiment.
        steps: Timed optimizer steps, after `WARMUP` untimed ones.
    """

    WARMUP: ClassVar[int] = 5

    job: str
    config: ExperimentConfig
    steps: int


@dataclass(frozen=True)
class Measured:
    """What was done, and in how many seconds.

    Attributes:
        reviews: Reviews that were trained on or scored.
        tokens: Their tokens, not counting padding.
        seconds: How long it took.
        peak_bytes: Most memory in use at once, from before the model was built.
        operations: Floating-point operations of the matrix products; None where not counted.
        matrix_rate: Operations per second of matrix products alone, measured right after.
    """

    reviews: int
    tokens: int
    seconds: float
    peak_bytes: int | None
    operations: float | None = None
    matrix_rate: float | None = None

    @property
    def speed(self) -> float:
        """Reviews per second."""
        return self.reviews / self.seconds


class Stopwatch(Callback):
    """Times the steps of a Lightning Trainer after the warm-up, and notes how long the reviews were."""

    def __init__(self) -> None:
        self.started = self.stopped = 0.0
        self.lengths: list[int] = []  # tokens of each review, without padding

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        """Start after the warm-up; note the time at every step after it."""
        _finish_gpu_work()
        if trainer.global_step == Task.WARMUP:
            self.started = time.perf_counter()
        elif trainer.global_step > Task.WARMUP:
            self._note(batch)

    def on_test_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        """Note a scored batch."""
        self._note(batch)

    def _note(self, batch: Any) -> None:
        mask = batch["attention_mask"] if isinstance(batch, dict) else batch[1]
        self.lengths += mask.sum(1).tolist()
        self.stopped = time.perf_counter()

    def measured(self, seconds: float, *measurements: Any) -> Measured:
        """What was timed, and what else was measured."""
        return Measured(len(self.lengths), sum(self.lengths), seconds, *measurements)


class StepTimes(TrainerCallback):
    """The same for transformers' Trainer."""

    def __init__(self) -> None:
        self.started = self.stopped = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Read the clock when the last warm-up step and when the last step has been computed."""
        _finish_gpu_work()
        if state.global_step == Task.WARMUP:
            self.started = time.perf_counter()
        self.stopped = time.perf_counter()


def ours(task: Task) -> Measured:
    """This package."""
    config, device, precision, memory = _start(task)
    data, model = _our_data_and_model(config, device, precision)
    stopwatch = Stopwatch()
    classifier = ReviewClassifier(model, config)
    if task.job == "epochs":
        model.to(device)  # type: ignore[arg-type]
        start = time.perf_counter()
        features = FeatureDataModule(data, model, COMPUTE_DTYPE[precision])
        unused = features.seconds["val"] + features.seconds["test"]
        trainer = _trainer(config, precision, max_epochs=EPOCHS)
        trainer.fit(ReviewClassifier(HeadOnFeatures(model), config), features.train_dataloader())
        seconds = time.perf_counter() - start - unused
        train = data.parts["train"]
        return Measured(EPOCHS * len(train), EPOCHS * int(train.lengths.sum()), seconds, memory.read()["peak_bytes"])
    if task.job == "evaluate":
        trainer = _trainer(config, precision, callbacks=[stopwatch])
        start = _test_twice(trainer, classifier, data.eval_dataloader("val"), data.eval_dataloader("test"), stopwatch)
        seconds = time.perf_counter() - start
    else:
        _trainer(config, precision, callbacks=[stopwatch], max_steps=Task.WARMUP + task.steps).fit(
            classifier, data.train_dataloader()
        )
        seconds = stopwatch.stopped - stopwatch.started
    peak = memory.read()["peak_bytes"]
    counted = operations(classifier, stopwatch.lengths, precision, train=task.job == "train")
    rate = matrix_rate(config, device, COMPUTE_DTYPE[precision] or torch.float32)
    return stopwatch.measured(seconds, peak, counted, rate)


def profile(task: Task) -> dict[str, float]:
    """Shares of our training's time by kind of operation; "the rest" is Python, Lightning and small operations."""
    config, device, precision, _ = _start(task)
    data, model = _our_data_and_model(config, device, precision)
    trainer = _trainer(config, precision, max_steps=Task.WARMUP + task.steps)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        trainer.fit(ReviewClassifier(model, config), data.train_dataloader())
    own = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
    whole = sum(own.values())
    shares = {kind: sum(own.get(name, 0.0) for name in names) / whole for kind, names in KINDS.items()}
    return {**shares, "the rest": 1 - sum(shares.values())}


def peft_trainer(task: Task) -> Measured:
    """Hugging Face's PEFT and Trainer, as their users would write it.

    The same parameters are trained as in the study. Everything else is Trainer's default, or what its tutorials use:
    AdamW, freely shuffled batches, each padded to its longest review.
    """
    config, device, precision, memory = _start(task)
    tokenizer = build_tokenizer(config.model)
    splits = split_reviews(load_reviews(config.data), config.data)
    encoded = {}
    for part in ("train", "test"):
        texts, labels = splits[part]["text"].tolist(), splits[part]["label"].tolist()
        tokens = tokenizer(texts, truncation=True, max_length=config.data.max_length)
        encoded[part] = Dataset.from_dict({**tokens, "labels": labels})
    times = StepTimes()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=with_peft(config),
            args=TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=config.data.batch_size,
                per_device_eval_batch_size=config.data.eval_batch_size,
                dataloader_drop_last=task.job != "evaluate",
                use_cpu=device.type == "cpu",
                dataloader_pin_memory=device.type == "cuda",
                max_steps=Task.WARMUP + task.steps,
                learning_rate=config.train.learning_rate,
                bf16=precision == "bf16-mixed",
                fp16=precision == "16-mixed",
                seed=config.seed,
                eval_strategy="no",
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=encoded["train"],
            data_collator=DataCollatorWithPadding(tokenizer),
            callbacks=[times],
        )
        trainer.remove_callback(PrinterCallback)
        if task.job == "evaluate":
            trainer.predict(encoded["train"])  # the warm-up
            start = time.perf_counter()
            trainer.predict(encoded["test"])
            return _of_part(encoded["test"]["input_ids"], time.perf_counter() - start, memory)
        trainer.train()
    reviews = task.steps * config.data.batch_size
    tokens = sum(len(ids) for ids in encoded["train"]["input_ids"]) * reviews // len(encoded["train"])
    return Measured(reviews, tokens, times.stopped - times.started, memory.read()["peak_bytes"])


def lightning_script(task: Task) -> Measured:
    """A plain Lightning script in the article's manner: every review padded to max_length, in shuffled batches."""
    config, _, precision, memory = _start(task)
    tokenizer = build_tokenizer(config.model)
    splits = split_reviews(load_reviews(config.data), config.data)

    def loader(part: str, batch_size: int, shuffle: bool) -> DataLoader[Any]:
        rows = splits[part]
        found = tokenizer(
            rows["text"].tolist(),
            truncation=True,
            padding="max_length",
            max_length=config.data.max_length,
            return_tensors="pt",
        )
        labels = torch.tensor(rows["label"].tolist())
        return DataLoader(
            TensorDataset(found["input_ids"], found["attention_mask"], labels), batch_size=batch_size, shuffle=shuffle
        )

    model = build_model(config.model, head_seed=config.seed)
    apply_mode(model, config)
    script, stopwatch = PlainScript(model, config.train.learning_rate), Stopwatch()
    if task.job == "evaluate":
        trainer = _trainer(config, precision, callbacks=[stopwatch])
        size = config.data.eval_batch_size
        start = _test_twice(trainer, script, loader("val", size, False), loader("test", size, False), stopwatch)
        seconds = time.perf_counter() - start
    else:
        steps = Task.WARMUP + task.steps
        _trainer(config, precision, callbacks=[stopwatch], max_steps=steps).fit(
            script, loader("train", config.data.batch_size, True)
        )
        seconds = stopwatch.stopped - stopwatch.started
    return stopwatch.measured(seconds, memory.read()["peak_bytes"])


SIDES: dict[str, Callable[[Task], Measured]] = {
    "ours": ours,
    "peft_trainer": peft_trainer,
    "lightning_script": lightning_script,
}


class PlainScript(L.LightningModule):
    """What a tutorial's LightningModule around a transformers classifier looks like."""

    def __init__(self, model: nn.Module, learning_rate: float) -> None:
        super().__init__()
        self.model = model.train()
        self.learning_rate = learning_rate
        self.train_accuracy = MulticlassAccuracy(num_classes=2)
        self.test_accuracy = MulticlassAccuracy(num_classes=2)

    def training_step(self, batch: list[Tensor], batch_index: int) -> Tensor:
        """Loss, with the accuracy so far."""
        outputs = self.model(input_ids=batch[0], attention_mask=batch[1], labels=batch[2])
        self.train_accuracy(outputs.logits.argmax(-1), batch[2])
        self.log("train_accuracy", self.train_accuracy, on_epoch=True, on_step=False)
        loss: Tensor = outputs.loss
        return loss

    def test_step(self, batch: list[Tensor], batch_index: int) -> None:
        """Accuracy."""
        outputs = self.model(input_ids=batch[0], attention_mask=batch[1], labels=batch[2])
        self.test_accuracy(outputs.logits.argmax(-1), batch[2])
        self.log("test_accuracy", self.test_accuracy)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam over everything, as in the article."""
        return torch.optim.Adam(self.model.parameters(), lr=self.learning_rate)


def with_peft(config: ExperimentConfig) -> nn.Module:
    """The classifier with the mode's parameters trainable; in mode "lora" by PEFT."""
    classifier = build_model(config.model, head_seed=config.seed)
    if config.mode == "lora":
        torch.manual_seed(config.seed)
        targets = apply_mode(build_skeleton(config.model), config)
        # The article's update is alpha (x A B): in PEFT's terms lora_alpha = alpha * r. Without a task type PEFT
        # trains only its own matrices; SEQ_CLS would train the head too.
        lora = config.lora
        alpha: Any = lora.alpha * lora.r  # declared a whole number, though fractions work
        return get_peft_model(classifier, LoraConfig(r=lora.r, lora_alpha=alpha, target_modules=targets))
    if config.mode == "last_two_layers":
        classifier.distilbert.requires_grad_(False)
    return classifier


def operations(classifier: ReviewClassifier, lengths: list[int], precision: str, *, train: bool) -> float:
    """Operations of the matrix products for reviews of given lengths without padding, as torch counts them.

    They are a polynomial of degree 2 in the length (attention is quadratic), so that counting at three short lengths
    gives them all.
    """
    device, dtype = next(classifier.parameters()).device, COMPUTE_DTYPE[precision]
    classifier.model.train(train)
    short, counts = (16, 32, 48), []
    for length in short:
        ones = torch.ones(1, length, dtype=torch.int64, device=device)
        batch = {"input_ids": ones, "attention_mask": ones, "labels": ones[:, 0]}
        counter = FlopCounterMode(display=False)
        with counter, torch.set_grad_enabled(train), torch.autocast(device.type, dtype, enabled=dtype is not None):
            loss, _ = classifier.step(batch)
            if train:
                torch.autograd.backward(loss)
        counts.append(counter.get_total_flops())
    per_review = np.polynomial.Polynomial.fit(short, counts, 2)
    return float(per_review(np.array(lengths)).sum())


def matrix_rate(config: ExperimentConfig, device: torch.device, dtype: torch.dtype, seconds: float = 1.0) -> float:
    """Operations per second of the encoder's own matrix products, on as many tokens as a batch has."""
    shape = build_skeleton(config.model).config
    tokens = config.data.batch_size * config.data.max_length
    sizes = [(shape.dim, shape.dim), (shape.dim, shape.hidden_dim), (shape.hidden_dim, shape.dim)]
    pairs = [(torch.randn(tokens, n).to(device, dtype), torch.randn(m, n).to(device, dtype)) for n, m in sizes]
    rounds = sum(2 * tokens * n * m for n, m in sizes)
    done, start = 0, 0.0
    for turn in itertools.count():
        if turn == 3:  # the first turns choose and compile the products
            _finish_gpu_work()
            start = time.perf_counter()
        for x, weight in pairs:
            F.linear(x, weight)
        _finish_gpu_work()
        done = turn - 2
        if turn >= 3 and time.perf_counter() - start > seconds:
            return done * rounds / (time.perf_counter() - start)
    raise AssertionError("unreachable")


def _start(task: Task) -> tuple[ExperimentConfig, torch.device, str, PeakMemory]:
    """Settings every side starts from."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    config = task.config
    L.seed_everything(config.seed, verbose=False)
    device = pick_device(config.train.accelerator)
    return config, device, pick_precision(config.train.precision, device), PeakMemory(device)


def _our_data_and_model(
    config: ExperimentConfig, device: torch.device, precision: str
) -> tuple[ReviewDataModule, DistilBertForSequenceClassification]:
    data, model = ReviewDataModule.from_config(config), build_model(config.model, head_seed=config.seed)
    data.setup()
    apply_mode(model, config)
    make_fast(model, device, precision)
    return data, model


def _trainer(config: ExperimentConfig, precision: str, **options: Any) -> L.Trainer:
    return L.Trainer(
        max_epochs=options.pop("max_epochs", -1),
        accelerator=config.train.accelerator,
        devices=1,
        precision=precision,  # type: ignore[arg-type]
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        **options,
    )


def _test_twice(trainer: L.Trainer, module: Any, warmup: Any, loader: Any, stopwatch: Stopwatch) -> float:
    """Score a few reviews, then the test part; returns when the second began."""
    trainer.test(module, warmup, verbose=False)
    stopwatch.__init__()  # type: ignore[misc]
    start = time.perf_counter()
    trainer.test(module, loader, verbose=False)
    _finish_gpu_work()
    return start


def _of_part(encoded: list[list[int]], seconds: float, memory: PeakMemory) -> Measured:
    return Measured(len(encoded), sum(len(ids) for ids in encoded), seconds, memory.read()["peak_bytes"])


def _finish_gpu_work() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # a GPU computes asynchronously
