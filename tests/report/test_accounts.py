"""Contamination: counts as recorded, nothing made up."""

import pytest
from fabricate import failed, record

from lora_study.report.accounts import contamination_table


def test_contamination_counts_copies_of_records_old_and_new():
    near = {"near": {"across": {"test_in_train": 9}, "within": {"train": 7}, "threshold": 0.5}}  # of old records
    runs = [record("full"), record("lora_default", data={"overlap": near, "sizes": {"test": 800}})]
    table = contamination_table(runs)
    rows = [tuple(row) for row in table[["reviews", "copies", "of", "experiments"]].itertuples(index=False)]
    assert rows[:2] == [
        ("test reviews with a copy in train", 4, 1000, "full"),
        ("test reviews with a copy in train", 4, 800, "lora_default"),
    ]
    assert table["share"][:2].tolist() == pytest.approx([0.4, 0.5])
    same = table[table["reviews"] == "train reviews that repeat another"]
    assert same["copies"].tolist() == [3]


def test_records_without_an_overlap_make_an_empty_table():
    assert contamination_table([failed("full")]).empty is False  # failed late: the data were read
    assert contamination_table([record(data={"overlap": None})]).empty


def test_what_newer_records_count_without_counting_twice():
    overlap = {"repeats": 7, "across": {"test_in_train_or_val": 5}}
    table = contamination_table([record(data={"overlap": overlap})]).set_index("reviews")
    row = table.loc["test reviews with a copy in train or val"]
    assert (row.copies, row.of) == (5, 1000)
    row = table.loc["reviews of all parts that repeat another"]
    assert (row.copies, row.of) == (7, 3500)
