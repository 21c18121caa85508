"""A training run's lines in a log, where there is no terminal for a bar."""

import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from lora_study.base import progress


class PlainProgress(Callback):
    """Says every ten seconds how far training or scoring is, and after each validation how good the model is."""

    def __init__(self) -> None:
        self._start = self._printed = 0.0
        self._first_step = 0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._start = self._printed = time.perf_counter()
        self._first_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Print step, loss, accuracy, speed and time left."""
        now = time.perf_counter()
        if now - self._printed < progress.INTERVAL:
            return
        self._printed = now
        assert trainer.max_epochs is not None
        batches = int(trainer.num_training_batches)
        step, steps = trainer.global_step, trainer.max_epochs * batches
        speed = (step - self._first_step) / (now - self._start)
        loss, accuracy = (trainer.progress_bar_metrics[f"train/{name}"] for name in ("loss", "accuracy"))
        self._print(
            trainer,
            f"step {batch_idx + 1}/{batches}  loss {loss:.4f}  accuracy {100 * accuracy:.1f}%  "
            f"{speed:.1f} steps/s  about {progress.duration((steps - step) / speed)} left",
        )

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the validation scores."""
        metrics = trainer.callback_metrics
        self._print(trainer, f"val loss {metrics['val/loss']:.4f}  val accuracy {100 * metrics['val/accuracy']:.2f}%")

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start counting the reviews of the part being scored."""
        assert trainer.test_dataloaders is not None  # the one loader that trainer.test was given
        batches = trainer.test_dataloaders.batch_sampler  # of this device; the data set may hold more reviews
        self._meter = progress.Meter("scored ", sum(map(len, batches)) * trainer.world_size)

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Count a batch on every device."""
        if trainer.is_global_zero:
            self._meter.advance(len(batch["labels"]) * trainer.world_size)

    @staticmethod
    def _print(trainer: L.Trainer, text: str) -> None:
        if trainer.is_global_zero:
            print(f"  epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {text}", file=sys.stderr, flush=True)
