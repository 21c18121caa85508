"""Near copies are found exactly, counted like exact ones, and looked for once per collection of texts."""

import json
import logging
import tempfile
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from lora_study.config import DataConfig, SplitSizes
from lora_study.data import duplicates
from lora_study.data.datamodule import ReviewDataModule
from lora_study.data.duplicates import THRESHOLD, near_copies, near_overlap_report, overlap_report

PARTS = ("train", "val", "test")

# Few words, so that random texts share shingles; case, markup and punctuation, which do not count.
TEXTS = st.lists(st.sampled_from(["a", "b", "b", "A", "B,", "c.", "<br />", "<br/>b"]), max_size=12).map(" ".join)
REVIEWS = st.lists(st.tuples(TEXTS, st.integers(0, 1), st.sampled_from(PARTS)), min_size=1, max_size=12)


def shingles(text: str) -> set[tuple[str, ...]]:
    """The shingles of one of TEXTS, written out."""
    plain = text.replace("<br />", " ").replace("<br/>", " ").lower().replace(",", "").replace(".", "").split()
    return {tuple(plain[start : start + 5]) for start in range(max(1, len(plain) - 4))}


def jaccard(one: str, other: str) -> float:
    return len(shingles(one) & shingles(other)) / len(shingles(one) | shingles(other))


def brute_force(texts: list[str], threshold: float) -> dict[tuple[int, int], float]:
    similar = {(i, j): jaccard(texts[i], texts[j]) for i, j in combinations(range(len(texts)), 2)}
    return {pair: similarity for pair, similarity in similar.items() if similarity >= threshold}


def found(texts: list[str], threshold: float) -> dict[tuple[int, int], float]:
    """The pairs of texts that `near_copies` gives as groups and pairs of groups."""
    copies = near_copies(texts, threshold)
    of_groups = {(g, g): 1.0 for g in copies["group"].tolist()}
    for (one, other), similarity in zip(copies["pairs"].tolist(), copies["similarity"].tolist(), strict=True):
        assert one < other and (one, other) not in of_groups
        of_groups[one, other] = of_groups[other, one] = similarity
    group = copies["group"].tolist()
    pairs = combinations(range(len(texts)), 2)
    return {(i, j): of_groups[group[i], group[j]] for i, j in pairs if (group[i], group[j]) in of_groups}


def splits_of(reviews: Iterable[tuple[str, int, str]]) -> dict[str, pd.DataFrame]:
    table = pd.DataFrame(reviews, columns=["text", "label", "part"])
    table.insert(0, "id", [f"id {row}" for row in range(len(table))])
    return {part: table[table["part"] == part].reset_index(drop=True) for part in PARTS}


@given(texts=st.lists(TEXTS, min_size=1, max_size=12), threshold=st.sampled_from([0.1, 1 / 3, 0.5, 0.8, 1.0]))
def test_near_copies_are_those_of_brute_force(texts: list[str], threshold: float) -> None:
    assert found(texts, threshold) == brute_force(texts, threshold)


@given(texts=st.lists(TEXTS, min_size=1, max_size=12), chunk=st.integers(1, 5))
def test_near_copies_do_not_depend_on_the_chunks(texts: list[str], chunk: int) -> None:
    whole = near_copies(texts)
    with mock.patch.object(duplicates, "CHUNK", chunk):
        chunked = near_copies(texts)
    assert all(np.array_equal(whole[name], chunked[name]) for name in whole)


@given(REVIEWS)
def test_report_counts_reviews_as_brute_force_does(reviews: list[tuple[str, int, str]]) -> None:
    splits = splits_of(reviews)
    rows = [tuple(row) for part in splits.values() for row in part.itertuples(index=False)]  # id, text, label, part
    with tempfile.TemporaryDirectory() as cache:
        report = near_overlap_report(splits, cache)
    near = brute_force([text for _, text, _, _ in rows], THRESHOLD)
    both_ways = {*near, *((j, i) for i, j in near)}
    assert report["within"] == {part: len({j for i, j in near if rows[i][3] == rows[j][3] == part}) for part in PARTS}
    assert report["across"] == {
        f"{part}_in_{other}": len({i for i, j in both_ways if (rows[i][3], rows[j][3]) == (part, other)})
        for part, other in (("val", "train"), ("test", "train"), ("test", "val"))
    }
    assert report["conflicting_labels"] == len({i for i, j in both_ways if rows[i][2] != rows[j][2]})
    assert json.loads(json.dumps(report)) == report


@given(REVIEWS)
def test_exact_copies_are_near_copies(reviews: list[tuple[str, int, str]]) -> None:
    splits = splits_of(reviews)
    exact = overlap_report(splits)
    with tempfile.TemporaryDirectory() as cache:
        near = near_overlap_report(splits, cache)
    for kind in ("within", "across"):
        assert near[kind].keys() == exact[kind].keys()
        assert all(near[kind][place] >= exact[kind][place] for place in exact[kind])
    assert near["conflicting_labels"] >= exact["conflicting_labels"]


@given(REVIEWS)
def test_examples_are_the_least_similar_pairs_across_parts(reviews: list[tuple[str, int, str]]) -> None:
    splits = splits_of(reviews)
    texts = {part: dict(zip(rows["id"], rows["text"], strict=True)) for part, rows in splits.items()}
    with tempfile.TemporaryDirectory() as cache:
        report = near_overlap_report(splits, cache)
    for place, examples in report["examples"].items():
        part, other = place.split("_in_")
        similarities = [jaccard(texts[part][one], texts[other][two]) for one, two, _ in examples]
        assert [similarity for *_, similarity in examples] == [round(similarity, 3) for similarity in similarities]
        every = {jaccard(one, two) for one in texts[part].values() for two in texts[other].values()}
        least = min((similarity for similarity in every if similarity >= THRESHOLD), default=1.0)
        assert len(examples) <= 3
        assert similarities == sorted(similarities)
        assert least == 1.0 or similarities[0] == least


def test_similarity_at_the_threshold_is_enough() -> None:
    alphabet = "a b c d e f g h i j k l m"
    assert found([alphabet[:19], alphabet[:13]], 0.5) == {(0, 1): 0.5}  # 3 of 6 shingles
    assert found([alphabet[:21], alphabet[:13]], 0.5) == {}  # 3 of 7


def test_texts_without_words_are_told_apart_by_their_signs() -> None:
    assert found(["!!!", "???", " !!!", "", "<br />"], 0.5).keys() == {(0, 2), (3, 4)}


def test_a_text_that_is_there_very_often_makes_no_pairs() -> None:
    copies = near_copies(["Very good!", "very good"] * 10_000)
    assert copies["pairs"].shape == (0, 2)
    assert set(copies["group"].tolist()) == {0}


def edited(text: str) -> str:
    """The text posted again: shouted, with another first word and a sentence at its end."""
    return " ".join(["Really", *text.split()[1:], "See it."]).upper()


def test_edited_reviews_are_found_and_different_ones_are_not(reviews_csv: Path, tmp_path: Path) -> None:
    reviews = pd.read_csv(reviews_csv)
    reviews["id"] = reviews.index.map(str)
    again = reviews[:30].assign(text=reviews["text"][:30].map(edited), id=lambda rows: "again " + rows["id"])
    splits = {"train": reviews[:100], "val": reviews[100:150], "test": again.assign(label=1 - again["label"])}
    assert set(overlap_report(splits)["across"].values()) == {0}
    report = near_overlap_report(splits, tmp_path)
    assert report["within"] == {"train": 0, "val": 0, "test": 0}
    assert report["across"] == {"val_in_train": 0, "test_in_train": 30, "test_in_val": 0}
    assert report["conflicting_labels"] == 60
    assert len(report["examples"]["test_in_train"]) == 3
    assert all(one == f"again {other}" for one, other, _ in report["examples"]["test_in_train"])


@pytest.fixture
def splits(reviews_csv: Path) -> dict[str, pd.DataFrame]:
    reviews = pd.read_csv(reviews_csv)
    reviews["id"] = reviews.index.map(str)
    return {"train": reviews[:80], "val": reviews[60:100], "test": reviews[90:120]}


def calls_of_near_copies(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the number of texts whenever near copies are looked for rather than read."""
    calls: list[int] = []

    def counting(texts: list[str]) -> duplicates.Arrays:
        calls.append(len(texts))
        return near_copies(texts)

    monkeypatch.setattr(duplicates, "near_copies", counting)
    return calls


def test_same_texts_are_searched_once(
    splits: dict[str, pd.DataFrame], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = calls_of_near_copies(monkeypatch)
    first = near_overlap_report(splits, tmp_path)
    assert near_overlap_report(splits, tmp_path) == first
    assert calls == [150]
    flipped = {part: rows.assign(label=1 - rows["label"]) for part, rows in splits.items()}
    assert near_overlap_report(flipped, tmp_path) == first
    assert calls == [150], "labels are no part of the entry"
    near_overlap_report({**splits, "test": splits["test"][1:]}, tmp_path)
    monkeypatch.setattr(duplicates, "THRESHOLD", 0.9)
    near_overlap_report(splits, tmp_path)
    assert calls == [150, 149, 150]


@pytest.mark.parametrize("damage", ["empty", "truncated", "one bit"])
def test_damaged_entry_is_made_again(
    splits: dict[str, pd.DataFrame], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    whole = near_overlap_report(splits, tmp_path)
    (entry,) = tmp_path.rglob("*.safetensors")
    content = entry.read_bytes()
    flipped = content[:-100] + bytes([content[-100] ^ 1]) + content[-99:]
    entry.write_bytes({"empty": b"", "truncated": content[:-8], "one bit": flipped}[damage])
    calls = calls_of_near_copies(monkeypatch)
    assert [near_overlap_report(splits, tmp_path) for _ in range(2)] == [whole, whole]
    assert calls == [150]


def test_unusable_cache_folder_costs_a_warning_only(
    splits: dict[str, pd.DataFrame], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "file"  # a file where a folder should be: not even root can write below it
    blocked.write_text("")
    with caplog.at_level(logging.WARNING):
        report = near_overlap_report(splits, blocked)
    assert "not cached" in caplog.text
    assert report == near_overlap_report(splits, tmp_path / "usable")


def test_every_run_reports_near_copies(reviews_csv: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    reviews = pd.read_csv(reviews_csv)[:40]
    table = tmp_path / "reviews.csv"
    pd.concat([reviews, reviews.assign(text=reviews["text"].map(edited))]).to_csv(table, index=False)
    config = DataConfig(
        source=str(table), sizes=SplitSizes(40, 20, 20), max_length=16, cache_dir=str(tmp_path / "cache")
    )
    data = ReviewDataModule(config, PreTrainedTokenizerFast.from_pretrained(tiny_backbone), order_seed=0)
    data.setup()
    overlap = data.describe()["overlap"]
    assert set(overlap["across"].values()) == {0}
    near = overlap["near"]
    assert near["threshold"] == THRESHOLD
    # Every review has one near copy: in the same part, or in one of the other two.
    in_two_parts = near["across"]["val_in_train"] + near["across"]["test_in_train"] + near["across"]["test_in_val"]
    assert in_two_parts + sum(near["within"].values()) == 40
    assert in_two_parts > 0


@pytest.mark.slow
def test_near_copies_of_the_official_training_split(imdb_reviews: pd.DataFrame, tmp_path: Path) -> None:
    copies = near_copies(imdb_reviews["text"].tolist(), 0.3)
    exact = imdb_reviews["text"].map(duplicates.fold).duplicated().sum()
    assert len(imdb_reviews) - (copies["group"].max() + 1) >= exact == 96
    assert len(copies["pairs"]) > 0
    first = pd.Series(copies["group"]).drop_duplicates().index
    texts = imdb_reviews["text"].iloc[first].tolist()
    for (one, other), similarity in zip(copies["pairs"], copies["similarity"], strict=True):
        sets = [
            set(zip(*(words[shift:] for shift in range(5)), strict=False))
            for words in (duplicates.words(texts[one]), duplicates.words(texts[other]))
        ]
        assert similarity == len(sets[0] & sets[1]) / len(sets[0] | sets[1])
