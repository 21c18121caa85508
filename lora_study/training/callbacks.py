"""What watches a run: its signals, the best epoch, the learning curves with their clock."""

import math
import signal
import threading
import time
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lora_study.base.machine import PeakMemory
from lora_study.training.devices import spread_like, whole


class OwnSignals(Callback):
    """Leaves SIGTERM to what handled it before: Lightning's own handler first lets the devices talk to one another."""

    def __init__(self) -> None:
        self._handler = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the handler back."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._handler)

    on_test_start = on_train_start


class BestEpoch(Callback):
    """Keeps the trainable parameters of the epoch with the best validation accuracy (the first, if several tie).

    Attributes:
        epoch: That epoch, counted from 1; 0 before the first validation.
        scores: Its accuracy and loss in validation.
        weights: Its trainable parameters by name, whole on every device.
    """

    def __init__(self) -> None:
        self.epoch = 0
        self.scores = {"accuracy": -math.inf, "loss": math.inf}
        self.weights: dict[str, Tensor] = {}

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare this epoch with the best so far."""
        scores = {name: float(trainer.callback_metrics[f"val/{name}"]) for name in ("accuracy", "loss")}
        if scores["accuracy"] > self.scores["accuracy"]:
            self.epoch, self.scores = trainer.current_epoch + 1, scores
            self.weights = {name: whole(value.detach()).clone() for name, value in trainable(pl_module)}

    @torch.no_grad()
    def restore(self, pl_module: L.LightningModule) -> None:
        """Put the best epoch's parameters back."""
        for name, parameter in trainable(pl_module):
            parameter.copy_(spread_like(self.weights[name].to(parameter.device), parameter))


class TrainingPeak(Callback):
    """The most memory in use while the first epoch trains, before anything is scored.

    Scoring takes larger batches, and memory that it freed may stay with the process, so later readings would count
    both. Later epochs do the same work; the copy of the best weights that then lies beside is not counted.

    Args:
        memory: Counts from before the model was built.

    Attributes:
        peak_bytes: That peak; None before it was read, and where the system does not tell.
    """

    def __init__(self, memory: PeakMemory) -> None:
        self.peak_bytes: int | None = None
        self._memory = memory
        self._is_read = False

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Read it, once; the peak of an interrupted run is the highest of its pieces."""
        if not self._is_read:
            self._is_read = True
            found = self._memory.read()["peak_bytes"]
            self.peak_bytes = max(found, self.peak_bytes or 0) if found else self.peak_bytes


class Curves(Callback):
    """Learning curves and the time that training takes without validation.

    Attributes:
        rows: One per logging interval (train_loss, the mean over the interval) and one per validation.
        train_seconds: Seconds in training epochs, validation excluded.
        cpu_seconds: Processor time of this process in them, all threads together. Well below train_seconds times the
            threads, it tells that other work had the processor meanwhile.
    """

    COLUMNS = ("step", "epoch", "train_loss", "val_loss", "val_accuracy", "learning_rate", "seconds")
    POINTS_PER_EPOCH = 25

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.train_seconds = 0.0
        self.cpu_seconds = 0.0
        self._epoch_start = self._epoch_start_cpu = 0.0
        self._losses: list[Tensor] = []
        self._learning_rate = 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clocks."""
        self._epoch_start, self._epoch_start_cpu = time.perf_counter(), time.process_time()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note the learning rate of the step; at its end a schedule has moved on."""
        self._learning_rate = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Collect the loss; at the end of an interval, check it and note its mean."""
        self._losses.append(outputs["loss"].detach())  # stays on the device: no wait for it at every step
        batches = int(trainer.num_training_batches)
        interval = max(1, batches // self.POINTS_PER_EPOCH)
        if (batch_idx + 1) % interval and batch_idx + 1 < batches:
            return
        losses, self._losses = torch.stack(self._losses), []
        losses = trainer.strategy.reduce(losses, reduce_op="mean")  # each device weights its share, so this is the loss
        finite = losses.isfinite().tolist()
        if not all(finite):
            step = trainer.global_step - len(finite) + finite.index(False) + 1
            raise FloatingPointError(f"the loss is not finite at step {step}; lower train.learning_rate or lora.alpha")
        seconds = self.train_seconds + time.perf_counter() - self._epoch_start
        self._note(trainer, seconds, train_loss=float(losses.mean()))

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the clocks: Lightning validates inside the training epoch."""
        self.train_seconds += time.perf_counter() - self._epoch_start
        self.cpu_seconds += time.process_time() - self._epoch_start_cpu

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note the validation scores."""
        scores = {f"val_{name}": float(trainer.callback_metrics[f"val/{name}"]) for name in ("loss", "accuracy")}
        self._note(trainer, self.train_seconds, **scores)

    def _note(self, trainer: L.Trainer, seconds: float, **values: float) -> None:
        row = {"step": trainer.global_step, "epoch": trainer.current_epoch + 1, "learning_rate": self._learning_rate}
        self.rows.append(row | values | {"seconds": seconds})


def trainable(module: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    """The parameters that are trained, with their names."""
    return [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
