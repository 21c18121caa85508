"""Contamination and compute: counts as recorded, failed runs included, nothing made up."""

import pandas as pd
import pytest
from fabricate import failed, record

from lora_study.report.accounts import compute_table, contamination_table


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


def test_compute_sums_every_run_and_says_which_have_no_time():
    late = failed("full", 2)
    late.timing = {"total_seconds": 1800.0}
    runs = [record("full", 1, timing={"total_seconds": 3600.0}), late, failed("full", 3), record("lora_default")]
    table = compute_table(runs, ["lora_default", "full"]).set_index("experiment")
    full = table.loc["full"]
    assert (full.runs, full.failed, full.untimed) == (3, 2, 1)
    assert full.hours == pytest.approx(1.5) and full.failed_hours == pytest.approx(0.5)
    assert table.loc["all runs", "hours"] == pytest.approx(1.5 + 140 / 3600)
    assert table.loc["all runs", "hardware"] == "a CPU, 2 threads"


def test_hours_nobody_measured_are_missing_not_zero():
    assert pd.isna(compute_table([failed("full")], ["full"])["hours"]).all()


def test_the_accelerator_is_the_hardware_where_there_is_one():
    run = record(provenance={"hardware": {"accelerator": "NVIDIA A100"}})
    assert compute_table([run], [run.name])["hardware"].tolist() == ["NVIDIA A100"] * 2
