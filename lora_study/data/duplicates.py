"""Reviews that are in the data more than once, up to white space.

IMDb has 418 such copies. Where one stands in train and another in test, accuracy on test is a little too good, so
every run reports the overlap and `deduplicate` removes it. A review posted again with an edit is no copy here.
"""

from typing import Any

import numpy as np
import pandas as pd

PAIRS = (("val", "train"), ("test", "train"), ("test", "val"))


def fold(text: str) -> str:
    """The text with every stretch of white space folded into one space; case and punctuation count."""
    return " ".join(text.split())


def overlap_report(splits: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """Count the copies within and across the parts of a split, ready for JSON.

    Returns:
        ``repeats``: all reviews less the distinct texts. ``within``: per part, the reviews that repeat an earlier one
        of it. ``across``: the reviews of val and test that have a copy in train, those of test that have one in val,
        and those of test that have one in either, where a review with a copy in both counts once: the sum of counts
        per part is more than there are. ``conflicting_labels``: the distinct texts that carry both labels.
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
    """The reviews with one copy of each, in their order.

    An official test review is kept before a training one, so that the official test split loses only its copies of
    itself and it is the training part that gives way; otherwise the first copy is kept.
    """
    test_first = reviews.iloc[np.argsort((reviews["split"] != "test").to_numpy(), kind="stable")]
    kept = test_first[~test_first["text"].map(fold).duplicated()]
    return reviews.loc[kept.index.sort_values()].reset_index(drop=True)
