"""Tables: what is averaged, what is left out, what stays missing."""

import dataclasses

import pandas as pd
import pytest
from fabricate import failed, record

from lora_study.evidence.reported import load_reported
from lora_study.evidence.summary import comparable, encoder_label, facts_table, parameters_table, summary_table

ROWS = load_reported().rows


def row_of(frame: pd.DataFrame, experiment: str) -> pd.Series:
    return frame.set_index("experiment").loc[experiment]


def test_reported_rows_are_the_article_s():
    reported = load_reported()
    assert {name: row.trainable for name, row in reported.rows.items()} == {
        "last_two_layers": 592_130,
        "lora_default": 147_456,
        "lora_best": 516_096,
        "full": 66_955_010,
    }
    assert [(row.train, row.val, row.test) for row in reported.rows.values()] == [
        (86.68, 87.26, 86.22),
        (92.15, 89.98, 89.44),
        (None, 92.96, 92.39),
        (96.41, 92.80, 92.31),
    ]
    accuracies = [78.71, 86.45, 92.2, 92.4, 92.65, 92.63, 92.52, 92.63, 92.55]
    minutes = [2.77, 2.78, 3.39, 4.06, 4.63, 5.15, 6.99, None, 6.99]
    assert [row.test for row in reported.layerwise.values()] == accuracies
    assert [row.minutes for row in reported.layerwise.values()] == minutes


def test_seeds_are_averaged_and_failed_runs_counted():
    runs = [record(seed=1, test=0.80), record(seed=2, test=0.82), failed(seed=3)]
    row = row_of(summary_table(runs, ROWS), "lora_default")
    assert (row.seeds, row.failed) == (2, 1)
    assert row.test_accuracy == pytest.approx(81.0)
    assert row.test_spread == pytest.approx(2**0.5)
    assert row.train_seconds == pytest.approx(101.5)
    assert row.peak_memory_mib == pytest.approx(900)


def test_the_interval_is_wilson_s():
    """Against the closed form of Wilson (1927) for 800 of 1,000."""
    row = row_of(summary_table([record(test=0.8)], ROWS), "lora_default")
    z, n, p = 1.959964, 1000, 0.8
    centre, half = (p + z * z / 2 / n), z * (p * (1 - p) / n + z * z / 4 / n / n) ** 0.5
    scale = 1 + z * z / n
    assert row.test_low == pytest.approx(100 * (centre - half) / scale, abs=1e-4)
    assert row.test_high == pytest.approx(100 * (centre + half) / scale, abs=1e-4)


def test_two_seeds_widen_the_interval_and_sampling_stays_apart():
    one = row_of(summary_table([record(seed=1, test=0.80)], ROWS), "lora_default")
    two = row_of(summary_table([record(seed=1, test=0.79), record(seed=2, test=0.81)], ROWS), "lora_default")
    assert (one.sampling_low, one.sampling_high) == (one.test_low, one.test_high)
    assert (two.sampling_low, two.sampling_high) == (one.sampling_low, one.sampling_high)
    assert two.test_low < two.sampling_low and two.sampling_high < two.test_high


def test_what_is_missing_stays_missing():
    bare = record("mine", metrics={"train": None, "val": {"accuracy": None}}, memory={"peak_bytes": None})
    row = row_of(summary_table([bare, failed("full")], ROWS), "mine")
    absent = ["test_spread", "val_accuracy", "train_accuracy", "reported_test_accuracy", "peak_memory_mib"]
    assert row[absent].isna().all()
    assert pd.isna(row.trainable_ratio)  # there is no lora_default to compare with
    dead = row_of(summary_table([bare, failed("full")], ROWS), "full")
    assert dead.seeds == 0 and dead.failed == 1
    assert dead[["test_accuracy", "test_low", "train_seconds", "published_test_accuracy"]].isna().all()
    assert dead.reported_test_accuracy == 92.31


def test_order_ratio_and_published_run():
    names = ["zeta", "full", "lora_default", "last_two_layers", "lora_best"]
    summary = summary_table([record(name) for name in names], ROWS, published=[record("full", test=0.85)])
    assert list(summary.experiment) == ["last_two_layers", "lora_default", "lora_best", "full", "zeta"]
    assert row_of(summary, "full").trainable_ratio == pytest.approx(22_711_682 / 73_728)
    assert row_of(summary, "full").published_test_accuracy == pytest.approx(85)
    assert pd.isna(row_of(summary, "zeta").published_test_accuracy)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"provenance": {"encoder": {"name": "distilbert-base-uncased", "stand_in": False}}}, "encoder"),
        ({"data": {"fingerprint": {"test": "other"}}}, "reviews"),
        ({"data": {"fingerprint": "a single one"}}, "reviews"),
        ({"config": {"lora": {"r": 4}}}, "lora.r"),
    ],
)
def test_runs_that_differ_are_never_averaged(changes, field):
    runs = [record(seed=1, test=0.8), record(seed=2, test=0.8), record(seed=3, test=0.1, **changes)]
    kept, left_out = comparable(runs)
    assert [run.seed for run in kept] == [1, 2]
    assert len(left_out) == 1 and "lora_default seed 3" in left_out[0] and field in left_out[0]
    with pytest.warns(UserWarning, match="lora_default seed 3 is left out"):
        row = row_of(summary_table(runs, ROWS), "lora_default")
    assert row.test_accuracy == pytest.approx(80) and row.seeds == 2


def with_settings(settings, **changes):
    run = record(**changes)
    run.provenance["encoder"]["settings_sha256"] = settings
    return run


def test_an_older_record_that_does_not_say_the_encoders_settings_is_averaged_with_one_that_does():
    old, new = with_settings(None, seed=1), with_settings("e50a", seed=2)
    assert comparable([old, new])[1] == comparable([new, old])[1] == []
    _, left_out = comparable([new, old, with_settings("1234", seed=3)])  # which cannot be taken for the others
    assert len(left_out) == 1 and "lora_default seed 3" in left_out[0] and "encoder" in left_out[0]


def test_the_same_seed_twice_counts_once():
    kept, left_out = comparable([record(seed=1), record(seed=1), failed(seed=1)])
    assert sorted(run.status for run in kept) == ["completed", "failed"] and len(left_out) == 1


def test_threads_and_folders_do_not_part_runs():
    other = record(seed=2, config={"train": {"threads": 7}, "data": {"cache_dir": "elsewhere", "eval_batch_size": 3}})
    other.config["train"]["keep_weights"] = not other.config["train"]["keep_weights"]
    assert comparable([record(seed=1), other])[1] == []


def test_memory_of_two_kinds_is_not_averaged():
    gpu = record(seed=2, memory={"peak_bytes": 2**20, "kind": "cuda allocated"})
    assert pd.isna(row_of(summary_table([record(seed=1), gpu], ROWS), "lora_default").peak_memory_mib)


def test_memory_with_scoring_is_another_kind():
    old = record(seed=2, memory={"peak_bytes": 2**20})
    del old.memory["peak_bytes_with_scoring"]
    alone = row_of(summary_table([old], ROWS), "lora_default")
    assert alone.peak_memory_mib == 1 and alone.memory_kind == "resident set, scoring included"
    assert pd.isna(row_of(summary_table([record(seed=1), old], ROWS), "lora_default").peak_memory_mib)


@pytest.mark.parametrize(
    ("changes", "averaged"),
    [
        ({}, True),
        ({"memory_bytes": 17_179_865_088}, True),  # as after an update of the system
        ({"cpu": "another"}, False),
        ({"threads": 1}, False),
    ],
)
def test_costs_on_two_machines_have_no_mean(changes, averaged):
    runs = [record(seed=seed, timing={"train_seconds": 100.0 * seed}) for seed in (1, 2)]
    for run, differs in zip(runs, ({}, changes), strict=True):
        run.provenance["hardware"] = {"cpu": "one", "threads": 2, "memory_bytes": 17_179_869_184} | differs
    row = row_of(summary_table(runs, ROWS), "lora_default")
    assert row.test_accuracy == pytest.approx(80) and row.seeds == 2
    assert pd.notna(row.peak_memory_mib) is averaged
    assert row.train_seconds == pytest.approx(150) if averaged else pd.isna(row.train_seconds)


def test_a_failed_run_does_not_speak_for_those_that_ended():
    """It failed with other settings, and comes first."""
    broken = dataclasses.replace(failed(seed=1), mode="full", parameters={"trainable": 9, "total": 10, "lora": 9})
    runs = [broken, record(seed=2), record("full", 2)]
    rows = summary_table(runs, ROWS)
    row = row_of(rows, "lora_default")
    assert (row["mode"], row.trainable, row.total, row.failed) == ("lora", 73_728, 22_785_410, 1)
    assert row_of(rows, "full").trainable_ratio == pytest.approx(22_711_682 / 73_728)
    assert row_of(summary_table([broken], ROWS), "lora_default").trainable == 9
    counts = row_of(parameters_table(runs, ROWS), "lora_default")
    assert (counts["mode"], counts.lora) == ("lora", 73_728)
    assert row_of(parameters_table([broken], ROWS), "lora_default").lora == 9


def test_parameters_table():
    row = row_of(parameters_table([record("last_two_layers")], ROWS), "last_two_layers")
    assert (row.total, row.trainable, row.lora, row["head"], row.base) == (22_711_682, 148_610, 0, 148_610, 0)
    assert row.trainable_share == pytest.approx(100 * 148_610 / 22_711_682)
    assert row.reported_trainable == 592_130


@pytest.mark.parametrize("table", [parameters_table, summary_table])
def test_counts_of_parameters_that_are_missing_stay_missing(table):
    nothing = dataclasses.replace(failed("mine"), parameters={})
    assert row_of(table([nothing], ROWS), "mine")[["total", "trainable", "trainable_share"]].isna().all()


def test_the_encoder_is_named():
    assert encoder_label([record()]) == "stand-in encoder: all-MiniLM-L6-v2"
    hub = {"encoder": {"name": "distilbert-base-uncased", "stand_in": False}}
    assert encoder_label([record(provenance=hub)]) == "encoder: distilbert-base-uncased"
    assert encoder_label([record(provenance={"encoder": None})]) == "encoder: unknown"


def test_facts_name_the_experiments_they_hold_for():
    facts = {
        "a": [{"field": "x", "value": 1}, {"field": "y", "value": None}],
        "b": [{"field": "x", "value": 1}, {"field": "y", "value": [1, "two"]}],
        "c": [{"field": "x", "value": 1}, {"field": "y", "value": None}],
    }
    table = facts_table(facts)
    assert list(table.field) == ["x", "y", "y"]
    assert list(table.experiments) == ["all", "a, c", "b"]
    assert list(table.value[[0, 2]]) == ["1", "1, two"] and pd.isna(table.value[1])
