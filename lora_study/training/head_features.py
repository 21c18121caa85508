"""Training only the head: the frozen trunk's features are computed once and reused in every epoch.

With the trunk frozen and in eval mode its output for a review never changes, so running it again in every
epoch buys nothing. Without the trunk's dropout this is not what the article did; `train.cache_trunk` says so.
"""

import time
from collections.abc import Callable, Sequence

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import DistilBertForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutput

from lora_study.base.progress import progress
from lora_study.data.datamodule import Loader, ReviewDataModule


class HeadOnFeatures(nn.Module):
    """The head of a DistilBERT classifier, sharing its layers, on features of the trunk.

    Args:
        classifier: The whole classifier.
    """

    def __init__(self, classifier: DistilBertForSequenceClassification) -> None:
        super().__init__()
        self.pre_classifier = classifier.pre_classifier
        self.dropout = classifier.dropout
        self.classifier = classifier.classifier

    def forward(self, features: Tensor) -> SequenceClassifierOutput:
        """Logits (batch, 2) for features (batch, dim), as DistilBertForSequenceClassification computes them."""
        hidden = self.dropout(torch.relu(self.pre_classifier(features)))  # (batch, dim)
        return SequenceClassifierOutput(logits=self.classifier(hidden))


class FeatureDataModule(L.LightningDataModule):
    """The reviews of another data module as features, in the same batches and order.

    Args:
        reviews: A data module that is set up.
        classifier: The classifier whose trunk computes the features, on the device to compute on.
        autocast_dtype: Type to compute in; None is fp32.
        parts: The parts that are wanted.

    Attributes:
        features: Per part, the first token's hidden state: (reviews, dim), fp32.
        seconds: Per part, the seconds that took.
    """

    def __init__(
        self,
        reviews: ReviewDataModule,
        classifier: DistilBertForSequenceClassification,
        autocast_dtype: torch.dtype | None,
        parts: Sequence[str] = ("train", "val", "test"),
    ) -> None:
        super().__init__()
        self.reviews = reviews
        self.features: dict[str, Tensor] = {}
        self.seconds: dict[str, float] = {}
        with progress("features of ", sum(len(reviews.parts[part]) for part in parts)) as done:
            for part in parts:
                start = time.perf_counter()
                self.features[part] = trunk_features(classifier, reviews.eval_dataloader(part), autocast_dtype, done)
                self.seconds[part] = time.perf_counter() - start

    def train_dataloader(self) -> Loader:
        """The training reviews in the order the other data module would draw them."""
        return self._loader("train", self.reviews.train_dataloader())

    def val_dataloader(self) -> Loader:
        """The validation reviews."""
        return self.eval_dataloader("val")

    def eval_dataloader(self, part: str, most: int | None = None) -> Loader:
        """The reviews of a part, or only this many of its first, none shuffled."""
        return self._loader(part, self.reviews.eval_dataloader(part, most))

    def _loader(self, part: str, like: Loader) -> Loader:
        features, labels = self.features[part], torch.tensor(self.reviews.parts[part].labels)

        def collate(rows: Sequence[int]) -> dict[str, Tensor]:
            index = torch.as_tensor(rows)
            return {"features": features[index], "labels": labels[index], "index": index}

        return DataLoader(
            range(len(labels)),  # type: ignore[arg-type]
            batch_sampler=like.batch_sampler,
            collate_fn=collate,
            generator=like.generator,
        )


@torch.no_grad()  # not inference_mode: its tensors could not take part in training
def trunk_features(
    classifier: DistilBertForSequenceClassification,
    batches: Loader,
    autocast_dtype: torch.dtype | None,
    done: Callable[[int], None] = lambda _: None,
) -> Tensor:
    """The trunk's first-token output, in eval mode, of every review in the order of the reviews: (n, dim), fp32.

    ``done`` is called with the number of reviews of each batch.
    """
    device = next(classifier.parameters()).device
    classifier.train(mode=False)
    rows, values = [], []
    for batch in batches:
        with torch.autocast(device.type, autocast_dtype, enabled=autocast_dtype is not None):
            hidden = classifier.distilbert(
                input_ids=batch["input_ids"].to(device), attention_mask=batch["attention_mask"].to(device)
            ).last_hidden_state  # (batch, seq, dim), or (batch, 1, dim) where nothing else is computed
        rows.append(batch["index"])
        values.append(hidden[:, 0].float().cpu())
        done(len(batch["index"]))
    index = torch.cat(rows)
    features = torch.empty(len(index), values[0].shape[1])
    features[index] = torch.cat(values)
    return features
