"""What a model said about each test review: reading it, and its calibration.

A review is called positive if the probability of class 1 is above one half.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from lora_study.evidence.summary import measured
from lora_study.records.record import Record

COLUMNS = ("id", "label", "probability")
BINS = 10


@dataclass(frozen=True)
class Reliability:
    """How often predictions came true, by their probability, in bins of equal width.

    Attributes:
        predicted: Mean probability of class 1 in each bin that holds a review.
        observed: Share of reviews of class 1 in it.
        reviews: Number of reviews in it.
        error: Expected calibration error: the mean distance of the two, weighted by reviews; for several runs the mean
            of theirs, since one run's overconfidence does not make up for another's caution.
    """

    predicted: np.ndarray
    observed: np.ndarray
    reviews: np.ndarray
    error: float


def read_predictions(folder: Path, record: Record) -> pd.DataFrame:
    """A run's predictions.parquet: id, label (0 or 1), probability of class 1.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is not a Parquet file, lacks a column, holds impossible values, or belongs to another record.
    """
    rows = pd.read_parquet(folder / "predictions.parquet")
    missing = [column for column in COLUMNS if column not in rows]
    if missing:
        raise ValueError(f"column {', '.join(missing)} is missing")
    if rows.empty or rows["id"].duplicated().any():
        raise ValueError("it holds no review, or one twice")
    if not rows["label"].isin((0, 1)).all() or not rows["probability"].between(0, 1).all():
        raise ValueError("labels are not all 0 or 1, or probabilities not all between 0 and 1")
    accuracy = measured(record, "metrics.test.accuracy")
    # A probability of exactly one half may go either way, and the record's accuracy is a 32-bit number.
    slack = (rows["probability"].round(6) == 0.5).mean() + 1e-6
    if accuracy is None or len(rows) != measured(record, "metrics.test.n"):
        raise ValueError("the record counts other test reviews")
    if abs(correct(rows).mean() - accuracy) > slack:
        raise ValueError(f"it makes {100 * correct(rows).mean():.2f}% where the record says {100 * accuracy:.2f}%")
    return rows[list(COLUMNS)]


def correct(rows: pd.DataFrame) -> pd.Series:
    """Whether each prediction is right, as 0.0 or 1.0."""
    return ((rows["probability"] > 0.5) == (rows["label"] == 1)).astype("float64")


def reliability(runs: Iterable[pd.DataFrame], bins: int = BINS) -> Reliability:
    """Calibration of one experiment's predictions: the curve of all runs together, and their mean error.

    The expected calibration error is that of Naeini et al., AAAI 2015, on the probability of class 1.
    """
    runs = list(runs)
    curve = _curve(pd.concat(runs), bins)
    return curve if len(runs) == 1 else replace(curve, error=float(np.mean([_curve(run, bins).error for run in runs])))


def _curve(rows: pd.DataFrame, bins: int) -> Reliability:
    probability, label = rows["probability"].to_numpy("float64"), rows["label"].to_numpy("float64")
    place = np.minimum((probability * bins).astype(int), bins - 1)
    reviews = np.bincount(place, minlength=bins)
    filled = reviews > 0
    reviews = reviews[filled]
    predicted = np.bincount(place, probability, bins)[filled] / reviews
    observed = np.bincount(place, label, bins)[filled] / reviews
    error = float(np.sum(reviews * np.abs(predicted - observed)) / len(rows))
    return Reliability(predicted, observed, reviews, error)
