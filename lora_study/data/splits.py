"""Train, validation and test reviews: stratified by label, seeded, disjoint."""

import numpy as np
import pandas as pd

from lora_study.base.errors import ConfigError
from lora_study.config import DataConfig

PARTS = ("train", "val", "test")


def split_reviews(reviews: pd.DataFrame, config: DataConfig) -> dict[str, pd.DataFrame]:
    """Cut the reviews into train, val and test.

    'pooled' cuts all reviews and ignores their official split, as the article does; 'official' tests on reviews of
    the official test split and cuts train and val from the official training split. Test is cut first, then val,
    then train, so that a smaller train part leaves the other two unchanged and is nested in a larger one.

    Args:
        reviews: A review table.
        config: split, split_seed and sizes are read.

    Returns:
        A review table per part, in a shuffled order in which the classes alternate in proportion.

    Raises:
        ConfigError: the source is too small for the sizes, has no official split, or a part would lack a class.
    """
    sizes = config.sizes
    if config.split == "pooled":
        if sizes.train is None and sizes.test is None:
            raise ConfigError("data.sizes: train and test cannot both be null with data.split 'pooled'; give one")
        wanted = {"test": sizes.test, "val": sizes.val, "train": sizes.train}
        parts = cut(stratified_order(reviews, config.split_seed), wanted, "reviews")
    else:
        if not reviews["split"].isin(["train", "test"]).all():
            raise ConfigError("data.split: 'official' needs a source that says each review's split; use 'pooled'")
        official = {name: reviews[reviews["split"] == name] for name in ("train", "test")}
        for name, rows in official.items():
            if rows.empty:
                raise ConfigError(f"data.split: 'official' needs {name} reviews, this source has none; use 'pooled'")
        train, test = (stratified_order(official[name], config.split_seed) for name in ("train", "test"))
        parts = cut(test, {"test": sizes.test}, "official test reviews")
        parts |= cut(train, {"val": sizes.val, "train": sizes.train}, "official training reviews")
    for part in PARTS:
        if parts[part]["label"].nunique() < reviews["label"].nunique():
            raise ConfigError(f"data.sizes.{part}: {len(parts[part])} reviews would all be of one class; use more")
    return {part: parts[part].reset_index(drop=True) for part in PARTS}


def stratified_order(reviews: pd.DataFrame, seed: int) -> pd.DataFrame:
    """The reviews shuffled so that every run of consecutive reviews has the classes in proportion.

    Each class is shuffled and its reviews are spread evenly over (0, 1): the k-th of n stands at (k + 1/2) / n.
    Reading all classes from left to right, any stretch holds each class's share of it, up to rounding.
    """
    shuffled = reviews.iloc[np.random.default_rng(seed).permutation(len(reviews))]
    by_class = shuffled.groupby("label")["label"]
    place = (by_class.cumcount() + 0.5) / by_class.transform("size")
    return shuffled.iloc[np.argsort(place.to_numpy(), kind="stable")]


def cut(reviews: pd.DataFrame, wanted: dict[str, int | None], what: str) -> dict[str, pd.DataFrame]:
    """Consecutive parts of the wanted sizes; the one whose size is None takes what the others leave.

    Raises:
        ConfigError: there are too few reviews.
    """
    fixed = sum(size for size in wanted.values() if size is not None)
    rest = len(reviews) - fixed
    if rest < 0 or (rest < 2 and None in wanted.values()):
        asked = ", ".join(f"{part} {'the rest' if size is None else size}" for part, size in wanted.items())
        raise ConfigError(f"data.sizes: {asked} asked for, but there are {len(reviews)} {what}; use smaller data.sizes")
    parts, start = {}, 0
    for part, size in wanted.items():
        end = start + (rest if size is None else size)
        parts[part] = reviews.iloc[start:end]
        start = end
    return parts
