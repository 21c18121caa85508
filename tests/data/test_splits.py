"""Splits are stratified, disjoint, seeded and nested; duplicates are counted and removed."""

import dataclasses
import json

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_study.base.errors import ConfigError
from lora_study.config import DataConfig, SplitSizes
from lora_study.data.duplicates import deduplicate, fold, overlap_report
from lora_study.data.splits import split_reviews


def reviews_of(negative, positive, official=True):
    """Distinct reviews; with official, every other one belongs to the official test split."""
    total = negative + positive
    splits = [("train", "test")[row % 2] if official else None for row in range(total)]
    return pd.DataFrame(
        {
            "id": [f"id {row}" for row in range(total)],
            "text": [f"review {row}" for row in range(total)],
            "label": [0] * negative + [1] * positive,
            "split": pd.Series(splits, dtype=object),
        }
    )


def config_of(train, val, test, **changes):
    return dataclasses.replace(DataConfig(sizes=SplitSizes(train, val, test)), **changes)


def ids(part):
    return set(part["id"])


def refusal(reviews, config):
    with pytest.raises(ConfigError) as caught:
        split_reviews(reviews, config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@given(
    negative=st.integers(20, 60),
    positive=st.integers(20, 60),
    sizes=st.tuples(st.integers(4, 15), st.integers(4, 10), st.integers(4, 15)),
    seed=st.integers(0, 2**32 - 1),
)
def test_parts_are_disjoint_sized_and_stratified(negative, positive, sizes, seed):
    reviews = reviews_of(negative, positive)
    parts = split_reviews(reviews, config_of(*sizes, split_seed=seed))
    assert list(parts) == ["train", "val", "test"]
    assert tuple(len(part) for part in parts.values()) == sizes
    assert len(set.union(*map(ids, parts.values()))) == sum(sizes)
    for part in parts.values():
        assert abs(part["label"].sum() - len(part) * positive / (negative + positive)) <= 1
        pd.testing.assert_frame_equal(part.merge(reviews), part)  # rows stay whole


def test_balanced_reviews_of_even_sizes_are_split_exactly():
    parts = split_reviews(reviews_of(50, 50), config_of(60, 14, 26))
    assert [part["label"].mean() for part in parts.values()] == [0.5] * 3


def test_same_seed_same_split_and_another_seed_another():
    first, again, other = (
        split_reviews(reviews_of(40, 40), config_of(40, 10, 20, split_seed=seed)) for seed in (1, 1, 2)
    )
    for part in first:
        pd.testing.assert_frame_equal(first[part], again[part])
        assert ids(first[part]) != ids(other[part])


@pytest.mark.parametrize("split", ["pooled", "official"])
def test_smaller_training_sets_are_nested_and_keep_val_and_test(split):
    small, large, rest = (
        split_reviews(reviews_of(60, 60), config_of(train, 10, 20, split=split)) for train in (12, 30, None)
    )
    for part in ("val", "test"):
        assert small[part]["id"].tolist() == large[part]["id"].tolist() == rest[part]["id"].tolist()
    assert ids(small["train"]) < ids(large["train"]) < ids(rest["train"])


def test_null_takes_all_that_are_left():
    reviews = reviews_of(50, 50)
    assert len(split_reviews(reviews, config_of(None, 10, 20))["train"]) == 70
    assert len(split_reviews(reviews, config_of(30, 10, None))["test"]) == 60
    official = split_reviews(reviews, config_of(None, 10, None, split="official"))
    assert [len(part) for part in official.values()] == [40, 10, 50]


def test_official_tests_on_the_official_test_split_and_pooled_mixes():
    reviews = reviews_of(50, 50)
    official = split_reviews(reviews, config_of(30, 10, 20, split="official"))
    assert {name: set(part["split"]) for name, part in official.items()} == {
        "train": {"train"},
        "val": {"train"},
        "test": {"test"},
    }
    pooled = split_reviews(reviews, config_of(30, 10, 20))
    assert all(set(part["split"]) == {"train", "test"} for part in pooled.values())


def test_mistakes_are_named():
    reviews = reviews_of(10, 10)
    too_small = refusal(reviews, config_of(12, 4, 6))
    assert "test 6, val 4, train 12" in too_small
    assert "20 reviews" in too_small
    assert "smaller data.sizes" in too_small
    assert "train the rest" in refusal(reviews, config_of(None, 10, 10))
    assert "10 official test reviews" in refusal(reviews, config_of(2, 2, 11, split="official"))
    assert "both be null" in refusal(reviews, config_of(None, 2, None))
    assert "use 'pooled'" in refusal(reviews_of(10, 10, official=False), config_of(4, 2, 2, split="official"))
    assert "needs test reviews" in refusal(reviews[reviews["split"] == "train"], config_of(4, 2, 2, split="official"))
    assert "data.sizes.val: 2 reviews would all be of one class" in refusal(reviews_of(96, 4), config_of(48, 2, 50))


def table(rows, split=None):
    frame = pd.DataFrame(rows, columns=["text", "label"])
    frame["split"] = pd.Series([split] * len(frame), dtype=object)
    return frame


def test_fold_ignores_white_space_alone():
    assert fold("  so\n\tgood ") == fold("so good") != fold("So good")
    assert fold("a b") != fold("ab")


def test_overlap_counts_copies_within_and_across_parts():
    report = overlap_report(
        {
            "train": table([("a", 0), ("a ", 0), (" a", 0), ("b", 1), ("c", 1)]),
            "val": table([("a", 0), ("a\n", 1), ("d", 0)]),
            "test": table([("b", 1), ("d", 1), ("d ", 0), ("e", 0), ("a", 0)]),
        }
    )
    assert report == {
        "repeats": 8,  # 13 reviews, a to e; the counts below count the test review "a" twice
        "within": {"train": 2, "val": 1, "test": 1},
        "across": {"val_in_train": 2, "test_in_train": 2, "test_in_val": 3, "test_in_train_or_val": 4},
        "conflicting_labels": 2,
    }
    assert json.loads(json.dumps(report)) == report


def test_deduplicate_keeps_the_official_test_copy_and_else_the_first(caplog):
    reviews = pd.concat(
        [
            table([("a", 0), ("b", 1), ("b ", 0), ("c", 1)], "train"),
            table([("c", 1), (" a", 0), ("d", 0), ("d", 0)], "test"),
        ],
        ignore_index=True,
    )
    kept = deduplicate(reviews)
    assert list(zip(kept["text"], kept["label"], kept["split"], strict=True)) == [
        ("b", 1, "train"),
        ("c", 1, "test"),
        (" a", 0, "test"),
        ("d", 0, "test"),
    ]
    assert "texts with both labels: 1;" in caplog.text
    caplog.clear()
    pd.testing.assert_frame_equal(deduplicate(kept), kept)
    assert not caplog.text


def test_known_duplicates_of_the_official_training_split(imdb_reviews):
    reviews = imdb_reviews.assign(id=imdb_reviews.index.map(str), split="train")
    assert len(reviews) - len(deduplicate(reviews)) == 96
    parts = split_reviews(reviews, config_of(None, 2_500, 5_000))
    report = overlap_report(parts)
    assert report["across"]["test_in_train"] > 0 and report["repeats"] == 96
    distinct = sum(len(deduplicate(part)) for part in parts.values())
    assert sum(report["within"].values()) == len(reviews) - distinct
