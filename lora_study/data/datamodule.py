"""The LightningDataModule: loads, splits and tokenises the reviews and hands out batches."""

from functools import partial
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import pyarrow
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from lora_study.base.errors import check
from lora_study.base.files import user_path
from lora_study.config import NAMED_SOURCES, DataConfig, ExperimentConfig, last_part
from lora_study.data.batching import Batches, BucketSampler, collate, evaluation_batches
from lora_study.data.cache import fingerprint
from lora_study.data.duplicates import deduplicate, overlap_report
from lora_study.data.sources import load_reviews
from lora_study.data.splits import split_reviews
from lora_study.data.tokens import TokenisedReviews, tokenise
from lora_study.model.encoder import build_tokenizer, check_tables

# Training reviews that are scored after training. The article scored all 35,000, which would take as long as a quarter
# of an epoch; the accuracy of 5,000 has a standard error of at most 0.7 points.
MOST_TRAIN = 5000

Loader = DataLoader[dict[str, Tensor]]


class ReviewDataModule(L.LightningDataModule):
    """Reviews as padded batches (see `lora_study.data.batching.collate`).

    Everything is in memory, so there are no worker processes, whose number could change results. A Trainer on
    several devices needs ``use_distributed_sampler=False``: the batches are shared out here.

    Args:
        config: Source, split, sizes, lengths and batches.
        tokenizer: A fast tokenizer with a padding token.
        order_seed: Seed of the training batches' order.

    Attributes:
        parts: After `setup`, the tokenised reviews of train, val and test.

    Raises:
        ConfigError: the tokenizer has no padding token.
    """

    def __init__(self, config: DataConfig, tokenizer: PreTrainedTokenizerFast, order_seed: int) -> None:
        super().__init__()
        check(tokenizer.pad_token_id is not None, "model.backbone", tokenizer.name_or_path, "it has no padding token")
        self.config = config
        self.tokenizer = tokenizer
        self.order_seed = order_seed
        self.parts: dict[str, TokenisedReviews] = {}
        self._identity: dict[str, Any] = {}

    @classmethod
    def from_config(cls, config: ExperimentConfig) -> "ReviewDataModule":
        """The reviews of an experiment, for the tokenizer of its encoder; nothing is read before `setup`.

        Raises:
            ConfigError: the tokenizer cannot be had, or the encoder is too small for it or for ``data.max_length``.
        """
        tokenizer = build_tokenizer(config.model)
        check_tables(config.model, tokenizer, config.data.max_length)
        return cls(config.data, tokenizer, order_seed=config.resolved_seeds()["data_order"])

    def setup(self, stage: str | None = None) -> None:
        """Load, split and tokenise the reviews, once; the stage is ignored.

        Raises:
            ConfigError: see `load_splits`.
        """
        if not self.parts:
            self.parts, self._identity = self._read()
            # What pandas' texts took, 0.3 GB of 50,000 reviews, is not needed any more; Arrow would hold on to it.
            pyarrow.default_memory_pool().release_unused()

    def train_dataloader(self) -> Loader:
        """Shuffled batches of train; a new order in every epoch."""
        lengths = self.parts["train"].lengths
        rank, world_size = self._devices()
        return self._loader(
            "train",
            BucketSampler(
                lengths, self.config.batch_size, self.config.bucket_window, self.order_seed, rank, world_size
            ),
        )

    def val_dataloader(self) -> Loader:
        """The reviews of val; see `eval_dataloader`."""
        return self.eval_dataloader("val")

    def test_dataloader(self) -> Loader:
        """The reviews of test; see `eval_dataloader`."""
        return self.eval_dataloader("test")

    def predict_dataloader(self) -> Loader:
        """The reviews of test; see `eval_dataloader`."""
        return self.eval_dataloader("test")

    def eval_dataloader(self, part: str, most: int | None = None) -> Loader:
        """Every review of train, val or test once, longest first (``drop_last`` leaves some out).

        Args:
            part: The part.
            most: If given, only this many of its first reviews: a random sample, since parts are shuffled.
        """
        lengths = self.parts[part].lengths[:most]
        return self._loader(
            part, evaluation_batches(lengths, self.config.eval_batch_size, *self._devices(), self.config.drop_last)
        )

    def scored(self, part: str, most: int | None = None) -> int:
        """How many reviews of a part `eval_dataloader` gives: all or ``most``, less what ``drop_last`` leaves out."""
        rows = len(self.parts[part].lengths[:most])
        return rows - rows % self.config.eval_batch_size if self.config.drop_last else rows

    def describe(self) -> dict[str, Any]:
        """What the reviews are, ready for JSON: the record's ``data``.

        Returns:
            source (of a path only the name, and ./hub of one called hub), revision, split, split_seed, deduplicate,
            max_length; sizes, labels (reviews per class), mean_tokens, share_truncated and fingerprints (of ids, texts
            and labels) per part; fingerprint over all parts; overlap (see `overlap_report`).
        """
        source = self.config.source
        return {
            "source": source if source in NAMED_SOURCES else last_part(str(user_path(source).resolve())),
            "revision": self.config.revision,
            "split": self.config.split,
            "split_seed": self.config.split_seed,
            "deduplicate": self.config.deduplicate,
            "max_length": self.config.max_length,
            "sizes": {part: len(tokens) for part, tokens in self.parts.items()},
            "labels": {
                part: {str(label): int(np.sum(tokens.labels == label)) for label in (0, 1)}
                for part, tokens in self.parts.items()
            },
            "mean_tokens": {part: float(tokens.lengths.mean()) for part, tokens in self.parts.items()},
            "share_truncated": {part: float(tokens.truncated.mean()) for part, tokens in self.parts.items()},
            **self._identity,
        }

    def _read(self) -> tuple[dict[str, TokenisedReviews], dict[str, Any]]:
        """The tokenised reviews of each part, and what `identity` says of them."""
        splits = load_splits(self.config)
        tokens = {
            part: tokenise(rows, self.tokenizer, self.config.max_length, self.config.cache_dir)
            for part, rows in splits.items()
        }
        return tokens, identity(splits)

    def _devices(self) -> tuple[int, int]:
        """This process's rank and the number of processes."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _loader(self, part: str, batches: BucketSampler | Batches) -> Loader:
        """A DataLoader whose data set is the row numbers: `collate` looks up a whole batch of them at once."""
        tokens = self.parts[part]
        rows: Any = range(len(tokens))
        pad_to = self.config.max_length if self.config.padding == "max_length" else None
        multiple = self.config.pad_to_multiple_of
        join = partial(collate, tokens, pad_id=self.tokenizer.pad_token_id, pad_to=pad_to, multiple=multiple)
        own = torch.Generator()  # or each pass over the reviews would draw from torch's, and so move dropout's masks
        return DataLoader(rows, batch_sampler=batches, collate_fn=join, generator=own)


def load_splits(config: DataConfig) -> dict[str, pd.DataFrame]:
    """The reviews of each part.

    Raises:
        ConfigError: see `load_reviews` and `split_reviews`; or a part is too small for ``drop_last``.
    """
    reviews = load_reviews(config)
    splits = split_reviews(deduplicate(reviews) if config.deduplicate else reviews, config)
    for part, rows in splits.items():
        config.check_scored(part, min(len(rows), MOST_TRAIN) if part == "train" else len(rows))
    return splits


def check_reviews(config: ExperimentConfig) -> None:
    """Refuse an experiment whose reviews cannot be read, split or tokenised as its settings say.

    Raises:
        ConfigError: see `ReviewDataModule.from_config` and `load_splits`.
    """
    ReviewDataModule.from_config(config)
    load_splits(config.data)


def part_fingerprints(splits: dict[str, pd.DataFrame]) -> dict[str, str]:
    """The fingerprint of each part: of its ids, texts and labels, in order."""
    return {part: fingerprint([*rows["id"], *rows["text"], *rows["label"].map(str)]) for part, rows in splits.items()}


def identity(splits: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """Fingerprints and overlap of a split, which need the texts."""
    fingerprints = part_fingerprints(splits)
    return {
        "fingerprint": fingerprint(fingerprints.values()),
        "fingerprints": fingerprints,
        "overlap": overlap_report(splits),
    }
