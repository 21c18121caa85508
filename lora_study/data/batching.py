"""Which reviews make a batch, and the tensors of one.

Training and evaluation batches are given to a DataLoader as its ``batch_sampler``. On one device Lightning leaves
it alone; on several it raises TypeError unless the Trainer has ``use_distributed_sampler=False``, which is right here,
since each device's share is cut in this file.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from lora_study.data.tokens import TokenisedReviews


class BucketSampler(Sampler[list[int]]):
    """Shuffled training batches, every review once per epoch, the last smaller batch included.

    Each epoch draws a new order from (seed, epoch), independent of torch's global random state. With a window
    above 1, stretches of window * batch_size reviews are sorted by length before they are cut into batches, so that
    a batch needs little padding, and the batches are shuffled again.

    Once an epoch is read to its end, the next one follows; `set_epoch`, which Lightning calls before each, chooses it
    explicitly.

    Args:
        lengths: Tokens per review, (n,).
        batch_size: Reviews per optimizer step, over all devices together.
        window: Batches that are sorted by length together; 1 is an ordinary shuffle.
        seed: Seed of the order, 0 or more.
        rank: Which of the devices this is.
        world_size: Number of devices; each takes its share of every batch. Shares differ by one review where the
            number does not divide the batch.
    """

    def __init__(
        self, lengths: np.ndarray, batch_size: int, window: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.window = window
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0

    @property
    def sampler(self) -> "BucketSampler":
        """This object: Lightning looks for `set_epoch` on ``batch_sampler.sampler``, not on the batch sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration gives, from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Batches per epoch."""
        return math.ceil(len(self.lengths) / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        """The batches of the current epoch, as lists of rows."""
        # A generator: it starts, and reads the epoch, at the first batch. Lightning makes the first epoch's iterator
        # before it calls set_epoch, which matters when it resumes in a later epoch.
        epoch = self.epoch
        for batch in self.batches(epoch):
            yield batch if self.world_size == 1 else self._share(batch)
        self.epoch = epoch + 1

    def batches(self, epoch: int) -> list[list[int]]:
        """An epoch's batches over all devices."""
        generator = np.random.default_rng((self.seed, epoch))
        order = generator.permutation(len(self.lengths))
        if self.window == 1:
            return batched(order, self.batch_size)
        windows = [np.array(rows) for rows in batched(order, self.window * self.batch_size)]
        batches = batched(np.concatenate([longest_first(self.lengths, rows) for rows in windows]), self.batch_size)
        return [batches[position] for position in generator.permutation(len(batches))]

    def _share(self, batch: list[int]) -> list[int]:
        """This device's reviews of a batch: dealt out from the longest on, there and back, so that shares weigh alike.

        An empty share, possible only in the last, smaller batch, would leave the other devices waiting; it is the
        first device's first review.
        """
        dealt, turn = longest_first(self.lengths, np.array(batch)), 2 * self.world_size
        places = np.arange(len(dealt)) % turn
        share: list[int] = dealt[np.minimum(places, turn - 1 - places) == self.rank].tolist()
        return share or dealt[:1].tolist()


class Batches(list[list[int]]):
    """Batches that stay the same; a plain list has no attributes, which Lightning copies when it predicts."""


def evaluation_batches(
    lengths: np.ndarray, batch_size: int, rank: int = 0, world_size: int = 1, drop_last: bool = False
) -> Batches:
    """Batches from the longest review to the shortest, every review once, shared out among the devices.

    The longest come first so that a batch that does not fit into memory fails at once. With drop_last the last rows
    that do not fill a batch are left out, as by the article's loaders.
    """
    rows = np.arange(len(lengths) - len(lengths) % batch_size if drop_last else len(lengths))
    return Batches(batched(longest_first(lengths, rows)[rank::world_size], batch_size))


def collate(
    tokens: TokenisedReviews, rows: Sequence[int], pad_id: int, pad_to: int | None = None, multiple: int = 8
) -> dict[str, Tensor]:
    """The tensors of one batch, padded on the right to pad_to tokens, or to little more than its longest review.

    Lengths are rounded up to a multiple, though not beyond the longest review of all: matrix products are prepared anew
    for every length, and fewer lengths repeat sooner. On two CPU cores a multiple of 8 gained 1.1x in the first steps;
    16 and 32, whose padding costs more, gained no more.

    Returns:
        input_ids and attention_mask, (batch, seq); labels and index (the row in the part), (batch,); all int64.
    """
    index = np.asarray(rows, dtype=np.int64)
    starts, lengths = tokens.offsets[index], tokens.lengths[index]
    places = np.arange(pad_to or min(-(-lengths.max() // multiple) * multiple, tokens.lengths.max()))
    mask = places < lengths[:, None]  # (batch, seq)
    # Until masked, places beyond a review's end hold the next review's tokens (or, clipped, the last token).
    found = tokens.tokens.take(starts[:, None] + places, mode="clip")
    return {
        "input_ids": torch.from_numpy(np.where(mask, found, pad_id).astype(np.int64)),
        "attention_mask": torch.from_numpy(mask.astype(np.int64)),
        "labels": torch.from_numpy(tokens.labels[index]),
        "index": torch.from_numpy(index),
    }


def batched(order: np.ndarray, size: int) -> list[list[int]]:
    """Consecutive pieces of a given size; the last may be smaller."""
    return [order[start : start + size].tolist() for start in range(0, len(order), size)]


def longest_first(lengths: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Rows sorted by descending length; ties keep their order."""
    return rows[np.argsort(-lengths[rows], kind="stable")]
