"""Reviews that occur more than once in the data, apart from white space.

IMDb has 418 such copies. With one in train and another in test, accuracy on test is a little too good, so every run
reports the overlap, and `deduplicate` removes it. A review posted again with an edit does not count as a copy.
"""

import logging
from typing import Any

import numpy as np
import pandas as pd

logger = logging.getLogger(__name__)

PAIRS = (("val", "train"), ("test", "train"), ("test", "val"))


def fold(text: str) -> str:
    """The text with each run of white space folded into one space; case and punctuation count."""
    return " ".join(text.split())


def overlap_report(splits: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """Count the copies within and across the parts of a split, ready for JSON.

    Returns:
        ``repeats``: all reviews less the distinct texts. ``within``: per part, the reviews that repeat an earlier one
        in it. ``across``: the reviews of val and test that have a copy in train, those of test that have one in val,
        and those of test that have one in either; a review with a copy in both counts once there, so that the number
        may be below the sum. ``conflicting_labels``: the distinct texts that carry both labels.
    """
    folded = {part: reviews["text"].map(fold) for part, reviews in splits.items()}
    everything = pd.DataFrame(
        {
            "text": pd.concat(list(folded.values())),
            "label": pd.concat([reviews["label"] for reviews in splits.values()]),
        }
    )
    across = {f"{part}_in_{other}": int(folded[part].isin(folded[other]).sum()) for part, other in PAIRS}
    elsewhere = folded["test"].isin(folded["train"]) | folded["test"].isin(folded["val"])
    return {
        "repeats": int(everything["text"].duplicated().sum()),
        "within": {part: int(texts.duplicated().sum()) for part, texts in folded.items()},
        "across": across | {"test_in_train_or_val": int(elsewhere.sum())},
        "conflicting_labels": int((everything.groupby("text")["label"].nunique() > 1).sum()),
    }


def deduplicate(reviews: pd.DataFrame) -> pd.DataFrame:
    """The reviews with one copy of each, in order.

    An official test review is preferred to a training one, so that the official test split loses only copies within
    itself and the training part gives way; otherwise the first copy is kept. Where copies have both labels, which
    is logged as a warning, the label of the kept one stays.
    """
    folded = reviews["text"].map(fold)
    if both := int((reviews.groupby(folded)["label"].nunique() > 1).sum()):
        logger.warning("data.deduplicate: texts with both labels: %d; of each, one copy's label is kept", both)
    test_first = reviews.iloc[np.argsort((reviews["split"] != "test").to_numpy(), kind="stable")]
    kept = test_first[~folded[test_first.index].duplicated()]
    return reviews.loc[kept.index.sort_values()].reset_index(drop=True)
