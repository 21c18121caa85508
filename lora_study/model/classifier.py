"""The LightningModule: trains and scores a classifier that is handed to it, whatever its mode."""

import lightning as L
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn import functional as F
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassAUROC, MulticlassF1Score
from torchmetrics.utilities.distributed import gather_all_tensors

from lora_study.config import TrainConfig
from lora_study.lora import parameter_groups

Batch = dict[str, Tensor]

OPTIMIZERS: dict[str, type[torch.optim.Adam]] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


class ReviewClassifier(L.LightningModule):
    """Cross-entropy training of a two-class text classifier.

    A batch is a dict with labels (batch,), index (batch,) and the model's own inputs, such as input_ids and
    attention_mask (batch, seq). The model returns an object with logits (batch, 2).

    Args:
        model: A built model in its fine-tuning mode: what requires gradients is trained.
        config: Optimizer settings.
        lr_ratio: Learning rate of LoRA's B divided by that of everything else.
    """

    def __init__(self, model: nn.Module, config: TrainConfig, *, lr_ratio: float = 1.0) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.lr_ratio = lr_ratio
        # Measured while training: with dropout, on weights that still move, over this device's reviews alone.
        self.train_accuracy = MulticlassAccuracy(num_classes=2, average="micro", sync_on_compute=False)
        self.val_accuracy, self.val_loss = _accuracy(), MeanMetric()
        self.test_loss = MeanMetric()
        self.test_scores = MetricCollection(
            {
                "accuracy": _accuracy(),
                "f1": MulticlassF1Score(num_classes=2, average="macro"),
                "auroc": MulticlassAUROC(num_classes=2),
            }
        )
        self.test_predictions: list[tuple[Tensor, Tensor]] = []
        self.trained_in_train_mode: bool | None = None  # known after the first step, and recorded

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
            self.model.train(self.config.dropout_active)

    def on_train_epoch_start(self) -> None:
        """Forget the last epoch's accuracy."""
        self.train_accuracy.reset()

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """The loss of one optimizer step."""
        if batch_index == 0:
            modes = {module.training for module in self.model.modules()}
            if modes != {self.config.dropout_active}:
                raise RuntimeError("dropout is not as train.dropout_active says at an epoch's first training step")
            self.trained_in_train_mode = self.config.dropout_active
        loss, logits = self.step(batch)
        self.train_accuracy.update(logits.detach(), batch["labels"])
        progress = {"loss": loss.detach(), "accuracy": self.train_accuracy.compute()}
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
        self.val_loss.update(loss, weight=len(batch["labels"]))
        self.val_accuracy.update(logits, batch["labels"])

    def on_validation_epoch_end(self) -> None:
        """Publish val_loss and val_accuracy (a fraction)."""
        self.log_dict({"val_loss": self.val_loss.compute(), "val_accuracy": self.val_accuracy.compute()}, prog_bar=True)
        self.val_loss.reset()
        self.val_accuracy.reset()

    def on_test_epoch_start(self) -> None:
        """Forget the predictions of an earlier test."""
        self.test_predictions = []

    def test_step(self, batch: Batch, batch_index: int) -> None:
        """Score a test batch and keep its probabilities."""
        loss, logits = self.step(batch)
        self.test_loss.update(loss, weight=len(batch["labels"]))
        self.test_scores.update(logits.softmax(-1), batch["labels"])
        self.test_predictions.append((batch["index"], logits.softmax(-1)[:, 1]))

    def on_test_epoch_end(self) -> None:
        """Publish loss, accuracy, f1 and auroc; gather the predictions of all devices."""
        self.log_dict({"loss": self.test_loss.compute(), **self.test_scores.compute()})
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

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimizer over the parameters that require gradients, and no others."""
        groups = parameter_groups(self.model, self.config.learning_rate, self.lr_ratio)
        # One pass over memory instead of several: 1.2x on full fine-tuning on a CPU.
        fused = groups[0]["params"][0].device.type in ("cpu", "cuda")
        return OPTIMIZERS[self.config.optimizer](groups, weight_decay=self.config.weight_decay, fused=fused)


def _accuracy() -> MulticlassAccuracy:
    return MulticlassAccuracy(num_classes=2, average="micro")
