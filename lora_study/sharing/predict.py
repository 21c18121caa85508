"""Predictions for new reviews, however many: they are classified and written a few thousand at a time."""

import contextlib
import csv
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, TextIO, get_args

import numpy as np
import torch
from torch import nn
from transformers import DistilBertForSequenceClassification

from lora_study.base.errors import ConfigError, check
from lora_study.base.files import atomic, user_path
from lora_study.base.machine import faster_in_bf16, pick_device
from lora_study.base.progress import progress
from lora_study.data.batching import collate, evaluation_batches
from lora_study.data.reviews import Review
from lora_study.data.stream import STDIN
from lora_study.data.tokens import TokenisedReviews, encode
from lora_study.lora import merge_lora
from lora_study.model.fast.levers import compute_what_is_read
from lora_study.sharing.trained import TrainedModel

Precision = Literal["32-true", "bf16-true", "auto"]

LABELS = ("negative", "positive")  # of class 0 and class 1
CHUNK = 2048  # reviews in memory, sorted by length so that a batch needs little padding
COLUMNS = ("id", "label", "probability")
ENDINGS = (".csv", ".jsonl")
DIGITS = 6  # of a probability as it is written


class Prediction(NamedTuple):
    """What the model says about a review.

    Attributes:
        label: "positive" where the probability is above one half, else "negative".
        probability: That of class 1, positive, as in a run's predictions.parquet; not that of the label.
        truncated: Whether the review was longer than the model reads, and so cut.
    """

    label: str
    probability: float
    truncated: bool


class Totals(NamedTuple):
    """What was done.

    Attributes:
        reviews: How many reviews were classified.
        truncated: How many of them were longer than the model reads.
        seconds: How long it took, reading and writing included.
    """

    reviews: int
    truncated: int
    seconds: float


def predict(
    trained: TrainedModel,
    texts: Iterable[str],
    batch_size: int = 32,
    *,
    done: Callable[[int], None] | None = None,
) -> Iterator[Prediction]:
    """Classify texts in order, a few thousand in memory at a time.

    Texts are cut to the run's data.max_length tokens. The model is used as it is; see `prepare`.

    Args:
        trained: The run's model, in eval mode, on any device.
        texts: Reviews; they are read as needed, so there may be more than fit into memory.
        batch_size: Reviews that go through the model together.
        done: Called after each batch with the number of reviews in it.

    Raises:
        ConfigError: the batch size is none.
        TypeError: texts are not strings.
    """
    check(type(batch_size) is int and batch_size >= 1, "batch_size", batch_size, "use 1 or more")
    if isinstance(texts, str | Mapping) or hasattr(texts, "columns"):  # of a table, the names of columns would be read
        raise TypeError(f"texts is one {type(texts).__name__}; pass a list of texts")
    pad_id = trained.tokenizer.pad_token_id
    texts = iter(texts)
    while chunk := list(itertools.islice(texts, CHUNK)):
        for text in chunk:
            if not isinstance(text, str):
                raise TypeError(f"{text!r:.80} is a {type(text).__name__}; pass a list of texts")
        arrays = encode(chunk, trained.tokenizer, trained.config.data.max_length)
        tokens = TokenisedReviews(**arrays, labels=np.zeros(len(chunk), np.int64), ids=("",) * len(chunk))
        probabilities = np.empty(len(chunk), np.float32)
        for rows in evaluation_batches(tokens.lengths, batch_size):
            probabilities[rows] = _probabilities(trained.model, collate(tokens, rows, pad_id))
            if done:
                done(len(rows))
        for probability, truncated in zip(probabilities.tolist(), tokens.truncated.tolist(), strict=True):
            yield Prediction(LABELS[probability > 0.5], probability, truncated)


def prepare(trained: TrainedModel, precision: Precision = "32-true") -> None:
    """Make a run's model ready to classify many reviews, in place: merge LoRA, and move it to a GPU if there is one.

    Args:
        trained: The run, in fp32.
        precision: "32-true" gives the run's own model up to rounding; "bf16-true" holds and computes everything in
            bf16, two to three times as fast on some machines; "auto" is bf16 there, and fp32 elsewhere.

    Of a prepared model only the logits can be asked for: it computes no more than they need.

    Raises:
        ConfigError: the model has been rounded already, or there is no such precision.
    """
    check(precision in get_args(Precision), "precision", precision, f"use {', '.join(get_args(Precision))}")
    check_exact(trained.model)
    device = pick_device("auto")
    merge_lora(trained.model)  # in fp32, before anything is rounded
    bf16 = precision == "bf16-true" or (precision == "auto" and faster_in_bf16(device))
    trained.model.to(device=device, dtype=torch.bfloat16 if bf16 else torch.float32)  # type: ignore[call-arg]
    compute_what_is_read(trained.model, device)


def check_exact(model: nn.Module) -> None:
    """Refuse a model whose weights were rounded.

    Raises:
        ConfigError: they were.
    """
    dtype = next(model.parameters()).dtype
    check(dtype == torch.float32, "trained", dtype, "its weights are rounded, as by prepare; load the run again")


def check_output(output: Path, file: str | None) -> None:
    """Refuse an output file that is of no known type, cannot be written, or is the file of the reviews itself.

    Raises:
        ConfigError: it is one of these.
    """
    check(output.suffix.lower() in ENDINGS, "--output", str(output), f"use {' or '.join(ENDINGS)}")
    check(not output.is_dir(), "--output", str(output), "it is a folder")
    target = Path(os.path.realpath(output))  # a link's target is what gets written
    check(not target.is_symlink(), "--output", str(output), "it is a link that leads back to itself")
    above = next(folder for folder in target.parents if folder.exists())
    check(os.access(above, os.W_OK) and above.is_dir(), "--output", str(output), f"{above} is no folder to write into")
    check(not _same_file(output, file), "--output", str(output), "it is the file of the reviews; name another")


def _same_file(output: Path, file: str | None) -> bool:
    """Whether the output is the file that the reviews come from, under whatever name or link."""
    if file is None or not output.exists():
        return False
    try:
        source = os.fstat(sys.stdin.fileno()) if file == STDIN else user_path(file).stat()
    except (AttributeError, OSError, ValueError):  # it does not exist, or standard input is not a file
        return False
    return os.path.samestat(source, output.stat())


def write_predictions(trained: TrainedModel, reviews: Iterable[Review], output: str | Path | None) -> Totals:
    """Classify reviews and write the id, label and probability (of class 1, positive) of each, in order.

    Args:
        trained: The run; see `prepare`.
        reviews: The reviews.
        output: A .csv or .jsonl file, of which all is written or nothing; None prints csv, row by row.

    Raises:
        ConfigError: a review cannot be read. Those before it are still classified and written: from a pipe they could
            not be read again.
    """
    start = time.perf_counter()
    output = None if output is None else user_path(output)
    faults: list[ConfigError] = []
    sound = _until_fault(reviews, faults)
    if output is None:
        # If the terminal shows the rows, a bar would be in their way.
        with contextlib.nullcontext() if sys.stdout.isatty() else progress() as done:
            totals = _write_rows(trained, sound, _row_writer(".csv", sys.stdout), done)
    else:
        with progress() as done, atomic(output) as temporary, temporary.open("w", encoding="utf-8") as stream:
            totals = _write_rows(trained, sound, _row_writer(output.suffix.lower(), stream), done)
            if faults and not totals[0]:
                raise faults[0]
    if faults:
        kept = f"; the {totals[0]:,} reviews before it are classified" + (f" in {output}" if output else "")
        raise ConfigError(f"{faults[0]}{kept if totals[0] else ''}") from faults[0]
    return Totals(*totals, time.perf_counter() - start)


def _until_fault(reviews: Iterable[Review], faults: list[ConfigError]) -> Iterator[Review]:
    """The reviews before the first that cannot be read; the reason is put into ``faults``."""
    try:
        yield from reviews
    except ConfigError as error:
        faults.append(error)


def _write_rows(
    trained: TrainedModel,
    reviews: Iterable[Review],
    write: Callable[[dict[str, Any]], None],
    done: Callable[[int], None] | None,
) -> tuple[int, int]:
    """Classify and write reviews; return how many there were and how many were truncated."""
    known, classified = itertools.tee(reviews)  # holds what lies between the two: one chunk
    predictions = predict(trained, (review.text for review in classified), done=done)
    count = truncated = 0
    for review, prediction in zip(known, predictions, strict=False):
        write({"id": review.id, "label": prediction.label, "probability": round(prediction.probability, DIGITS)})
        count += 1
        truncated += prediction.truncated
    return count, truncated


def _row_writer(ending: str, stream: TextIO) -> Callable[[dict[str, Any]], None]:
    """What writes a row, at once: the reader of a pipe need not wait."""
    plain, quoting = (
        csv.DictWriter(stream, COLUMNS, lineterminator="\n", quoting=how)
        for how in (csv.QUOTE_MINIMAL, csv.QUOTE_NONNUMERIC)
    )
    if ending == ".csv":
        plain.writeheader()

    def write(row: dict[str, Any]) -> None:
        if ending == ".csv":
            # Python quotes a carriage return only where it ends the lines, but every reader takes it for an end.
            (quoting if "\r" in row["id"] else plain).writerow(row)
        else:
            stream.write(json.dumps(row) + "\n")
        stream.flush()

    return write


@torch.inference_mode()
def _probabilities(model: DistilBertForSequenceClassification, batch: dict[str, torch.Tensor]) -> np.ndarray:
    """Probability of class 1 of each review of a batch: (batch,), fp32."""
    device = next(model.parameters()).device
    inputs = {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}  # (batch, seq)
    logits = model(**inputs).logits  # (batch, 2)
    probabilities: np.ndarray = logits.float().softmax(-1)[:, 1].cpu().numpy()
    return probabilities
