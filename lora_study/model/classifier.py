"""The LightningModule: trains and scores a classifier that is handed to it, whatever its mode."""

import math
from collections.abc import Callable
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassAUROC, MulticlassF1Score
from torchmetrics.utilities.distributed import gather_all_tensors
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from lora_study.base.errors import ConfigError, check
from lora_study.base.redaction import without_secrets
from lora_study.config import ExperimentConfig, flatten, to_dict
from lora_study.lora import parameter_groups
from lora_study.model.encoder import build_model
from lora_study.model.modes import HEAD, apply_mode

Batch = dict[str, Tensor]

FALLING: dict[str, Callable[..., LambdaLR]] = {
    "linear": get_linear_schedule_with_warmup,
    "cosine": get_cosine_schedule_with_warmup,
}
OPTIMIZERS: dict[str, type[torch.optim.Adam]] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


class ReviewClassifier(L.LightningModule):
    """Cross-entropy training of a two-class text classifier.

    A batch is a dict with labels (batch,), index (batch,) and the model's own inputs, such as input_ids and
    attention_mask (batch, seq). The model returns an object with logits (batch, 2).

    Each epoch's dropout masks are drawn from a seed of their own, and those of each device from another. So they
    depend on nothing that was drawn before, and training that goes on from a checkpoint ends as if it had never been
    interrupted. Lightning's checkpoints hold only what is trained, and the head; `from_config` reads the rest again.

    Args:
        model: A built model in its fine-tuning mode: what requires gradients is trained.
        config: The experiment. Number of epochs, precision and devices are the Trainer's.
    """

    def __init__(self, model: nn.Module, config: ExperimentConfig) -> None:
        super().__init__()
        self.save_hyperparameters(without_secrets(to_dict(config)))  # for checkpoints and loggers
        self.strict_loading = False  # see `on_save_checkpoint`
        self.model = model
        self.config = config
        # Measured while training: with dropout, on weights that still move, over this device's reviews alone.
        self.train_accuracy = MulticlassAccuracy(num_classes=2, average="micro", sync_on_compute=False)
        self.val_accuracy, self.val_loss = _accuracy(), MeanMetric()
        self.test_loss = MeanMetric()
        self.test_scores = MetricCollection(
            {
                "accuracy": _accuracy(),
                "f1": MulticlassF1Score(num_classes=2, average="macro"),
                "auroc": MulticlassAUROC(num_classes=2),
            },
            prefix="test/",
        )
        self.test_predictions: list[tuple[Tensor, Tensor]] = []
        self.trained_in_train_mode: bool | None = None  # known after the first step, and recorded

    @classmethod
    def from_config(cls, config: ExperimentConfig) -> "ReviewClassifier":
        """The classifier of an experiment, ready for any `lightning.Trainer`: pretrained encoder, new head and mode.

        It computes with torch's and transformers' own layers, as a run does with ``train.fast`` false.

        Raises:
            ConfigError: the encoder cannot be had or does not suit the mode, or ``train.cache_trunk`` is set.
        """
        caches = config.train.cache_trunk
        check(not caches, "train.cache_trunk", caches, "only lora_study.run can cache features; set it to false")
        model = build_model(config.model, head_seed=config.resolved_seeds()["head_init"])
        apply_mode(model, config)
        return cls(model, config)

    def step(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The mean loss (scalar) and the logits (batch, 2) of a batch; shared by training and scoring."""
        inputs = {name: value for name, value in batch.items() if name not in ("labels", "index")}
        logits = self.model(**inputs).logits.float()
        return F.cross_entropy(logits, batch["labels"]), logits

    def configure_model(self) -> None:
        """Spread the weights over the devices if train.strategy is fsdp; Lightning calls this before fit and test."""
        if self.device_mesh is None or isinstance(self.model, FSDPModule):
            return
        mesh = self.device_mesh["data_parallel"]
        for block in self.model.get_submodule("distilbert.transformer.layer").children():  # one whole block at a time
            fully_shard(block, mesh=mesh)
        # By default the root stays gathered after a forward pass, and changes made to it then would be lost.
        fully_shard(self.model, mesh=mesh, reshard_after_forward=True)

    def setup(self, stage: str) -> None:
        """Switch dropout on: from_pretrained returns a model in eval mode, and Lightning >= 2.2 keeps it there."""
        if stage == "fit":
            self.model.train(self.config.train.dropout_active)

    def on_train_epoch_start(self) -> None:
        """Forget the last epoch's accuracy; seed the epoch's dropout."""
        self.train_accuracy.reset()
        seed = self.config.resolved_seeds()["dropout"]
        entropy = np.random.SeedSequence((seed, self.current_epoch, self.global_rank))
        torch.manual_seed(int(entropy.generate_state(1, np.uint64)[0]))
        if self.current_epoch > 0:  # the masks are to stay those of published runs, where a DataLoader drew a number
            torch.empty((), dtype=torch.int64).random_()

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """The loss of one optimizer step."""
        if batch_index == 0:
            modes = {module.training for module in self.model.modules()}
            if modes != {self.config.train.dropout_active}:
                raise RuntimeError("dropout is not as train.dropout_active says at an epoch's first training step")
            self.trained_in_train_mode = self.config.train.dropout_active
        loss, logits = self.step(batch)
        self.train_accuracy.update(logits.detach(), batch["labels"])
        progress = {"train/loss": loss.detach(), "train/accuracy": self.train_accuracy.compute()}
        self.log_dict(progress, prog_bar=True, batch_size=len(batch["labels"]))
        return loss if self.trainer.world_size == 1 else loss * self._weight(batch)

    def _weight(self, batch: Batch) -> Tensor:
        """Factor on this device's mean loss (scalar) that makes the mean over devices the mean over reviews.

        The devices' shares of a batch may differ by one review. A device that would have none is given the first review
        of the whole batch, which belongs to another device and counts for that one only.
        """
        index = batch["index"]
        shares = gather_all_tensors(torch.stack([index[0], index.new_tensor(len(index))]))
        first, reviews = torch.stack(shares).unbind(1)  # each (devices,)
        reviews = reviews * ((first != first[0]) | (torch.arange(len(first), device=first.device) == 0))
        return len(reviews) * reviews[self.global_rank] / reviews.sum()

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Score a validation batch."""
        loss, logits = self.step(batch)
        _check_finite(logits)
        self.val_loss.update(loss, weight=len(batch["labels"]))
        self.val_accuracy.update(logits, batch["labels"])

    def on_validation_epoch_end(self) -> None:
        """Publish val/loss and val/accuracy (a fraction)."""
        self.log_dict({"val/loss": self.val_loss.compute(), "val/accuracy": self.val_accuracy.compute()}, prog_bar=True)
        self.val_loss.reset()
        self.val_accuracy.reset()

    def on_test_epoch_start(self) -> None:
        """Forget the predictions of an earlier test."""
        self.test_predictions = []

    def test_step(self, batch: Batch, batch_index: int) -> None:
        """Score a test batch and keep its probabilities."""
        loss, logits = self.step(batch)
        _check_finite(logits)
        self.test_loss.update(loss, weight=len(batch["labels"]))
        self.test_scores.update(logits.softmax(-1), batch["labels"])
        self.test_predictions.append((batch["index"], logits.softmax(-1)[:, 1]))

    def on_test_epoch_end(self) -> None:
        """Publish test/loss, test/accuracy, test/f1 and test/auroc; gather the predictions of all devices."""
        self.log_dict({"test/loss": self.test_loss.compute(), **self.test_scores.compute()})
        self.test_loss.reset()
        self.test_scores.reset()
        if self.trainer.world_size > 1:
            rows, probabilities = (
                gather_all_tensors(torch.cat(own)) for own in zip(*self.test_predictions, strict=True)
            )
            self.test_predictions = list(zip(rows, probabilities, strict=True))

    def predictions(self) -> tuple[Tensor, Tensor]:
        """Row in the part and probability of class 1 of each review of the last test, by row: both (n,)."""
        rows = torch.cat([index for index, _ in self.test_predictions]).cpu()
        probabilities = torch.cat([probability for _, probability in self.test_predictions]).cpu()
        order = rows.argsort()
        return rows[order], probabilities[order]

    def predict_step(self, batch: Batch, batch_index: int) -> Batch:
        """Row in the part (index) and probability of class 1 of each review of a batch: both (batch,)."""
        return {"index": batch["index"], "probability": self.step(batch)[1].softmax(-1)[:, 1]}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what is trained and the head, which may be frozen as it was drawn."""
        checkpoint["state_dict"] = {name: checkpoint["state_dict"][name] for name in self._kept()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint that would leave weights as they are, or has some for which there is no place.

        Raises:
            ConfigError: it is of another mode or other adapters.
        """
        then, now = (flatten(dict(found)) for found in (checkpoint.get("hyper_parameters", {}), self.hparams))
        of_lora = [f"lora.{name}" for name in ("r", "alpha", "scaling", "variant")]
        for name in ("mode", *(of_lora if self.config.mode == "lora" else ())):
            if name in then and then[name] != now[name]:
                raise ConfigError(
                    f"the checkpoint is of another config: {name} is {then[name]!r} there and {now[name]!r} here; make "
                    "the classifier from the config that was trained"
                )
        if others := sorted(checkpoint["state_dict"].keys() ^ self._kept()):
            raise ConfigError(
                f"the checkpoint is of another config: only one of the two keeps {others[0]}; make the classifier from "
                "the config that was trained"
            )

    def _kept(self) -> set[str]:
        head = tuple(f"model.{layer}." for layer in HEAD)
        return {name for name, value in self.named_parameters() if value.requires_grad or name.startswith(head)}

    def configure_optimizers(self) -> torch.optim.Optimizer | OptimizerLRSchedulerConfig:
        """The optimizer over the parameters that require gradients, and no others; the schedule, where there is one."""
        train = self.config.train
        groups = parameter_groups(self.model, train.learning_rate, self.config.lora.lr_ratio)
        # One pass over memory instead of several: 1.2x on full fine-tuning on a CPU.
        fused = groups[0]["params"][0].device.type in ("cpu", "cuda")
        optimizer = OPTIMIZERS[train.optimizer](groups, weight_decay=train.weight_decay, fused=fused)
        if train.schedule == "constant" and train.warmup == 0:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self._schedule(optimizer), "interval": "step"}}

    def _schedule(self, optimizer: torch.optim.Optimizer) -> LambdaLR:
        """The learning rate's course from the step on that the Trainer has come to."""
        train, steps, done = self.config.train, self.trainer.estimated_stepping_batches, self.trainer.global_step
        check(math.isfinite(steps), "train.schedule", train.schedule, "set the Trainer's max_epochs or max_steps")
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        warmup = math.ceil(train.warmup * steps)
        if train.schedule == "constant":
            rising: LambdaLR = get_constant_schedule_with_warmup(optimizer, warmup, last_epoch=done - 1)
            return rising
        return FALLING[train.schedule](optimizer, warmup, int(steps), last_epoch=done - 1)


def _accuracy() -> MulticlassAccuracy:
    return MulticlassAccuracy(num_classes=2, average="micro")


def _check_finite(logits: Tensor) -> None:
    """Refuse scores of numbers that are none: metrics leave them out, or give one all the same."""
    if not logits.isfinite().all():
        raise FloatingPointError(
            "logits are not finite; lower train.learning_rate or lora.alpha, or use another train.precision"
        )
