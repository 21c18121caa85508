"""Variants: which experiment varies which, and what a departure from the article was measured to be worth."""

import dataclasses

import pandas as pd
import pytest
from fabricate import record
from fabricate_predictions import predictions, variant

from lora_study.evidence.reported import load_reported
from lora_study.report.variants import deviations_table, find_variants, variants_table

BASES = list(load_reported().rows)


def by_experiment(runs):
    found = {}
    for salt, run in enumerate(runs):
        found.setdefault(run.name, {})[run.seed] = predictions(run, salt)
    return found


def test_a_variant_differs_in_few_settings_from_the_nearest_experiment_of_its_mode():
    runs = [
        record("lora_default"),
        record("lora_best", config={"lora": {"alpha": 1, "targets": ["query", "value", "mlp"]}}),
        record("full"),
        variant("short", 1, 0.8, data={"max_length": 128}),
        variant("best_scaled", 1, 0.8, lora={"alpha": 1, "targets": ["query", "value", "mlp"], "scaling": "alpha/r"}),
        variant("another", 1, 0.8, train={"epochs": 1}, data={"max_length": 9, "batch_size": 2, "split_seed": 5}),
        variant("same", 1, 0.8),
    ]
    found = {each.name: (each.base, dict(each.changes)) for each in find_variants(runs, {}, BASES)}
    assert found == {
        "short": ("lora_default", {"data.max_length": (512, 128)}),
        "best_scaled": ("lora_best", {"lora.scaling": ("alpha", "alpha/r")}),
    }


def test_settings_a_mode_does_not_read_are_no_change():
    slow = record("full_slow", mode="full", config={"mode": "full", "lora": {"r": 2}, "train": {"epochs": 1}})
    (found,) = find_variants([record("full"), slow], {}, BASES)
    assert list(found.changes) == ["train.epochs"]


def test_the_effect_is_the_difference_over_shared_seeds_with_a_paired_interval():
    runs = [record(seed=1, test=0.80), record(seed=2, test=0.81), record(seed=3, test=0.1)]
    runs += [variant("short", seed, 0.76 + seed / 100, data={"max_length": 128}) for seed in (1, 2)]
    (found,) = find_variants(runs, by_experiment(runs), BASES)
    assert found.effect == pytest.approx(-3.0)
    assert found.seeds == 2
    assert found.low < -3.0 < found.high < 0
    assert variants_table([found]).iloc[0].to_dict() == {
        "variant": "short",
        "of": "lora_default",
        "change": "data.max_length: 512 to 128",
        "effect (points)": pytest.approx(-3.0),
        "95% interval": f"{found.low:+.2f} to {found.high:+.2f}",
        "shared seeds": 2,
    }


def test_there_is_no_interval_where_predictions_are_not_of_the_same_reviews():
    runs = [record(seed=1, test=0.80), variant("short", 1, 0.77, data={"max_length": 128})]
    whole = by_experiment(runs)
    relabelled = whole["short"][1].assign(id=lambda rows: rows["id"] + "b")
    for predicted in ({}, {"lora_default": whole["lora_default"]}, whole | {"short": {1: relabelled}}):
        (found,) = find_variants(runs, predicted, BASES)
        assert found.effect == pytest.approx(-3.0)
        assert (found.low, found.high) == (None, None)


def test_without_shared_seeds_there_is_no_effect():
    runs = [record(seed=1, test=0.80), variant("short", 2, 0.77, data={"max_length": 128})]
    (found,) = find_variants(runs, by_experiment(runs), BASES)
    assert found.effect is None and found.low is None and found.seeds == 0


@pytest.mark.parametrize(("here", "other", "sign"), [(128, 512, "+"), (512, 128, "-")])
def test_a_departure_is_worth_here_minus_article_whichever_was_varied(here, other, sign):
    """The base is better than the variant by 3 points; departing gains them where the base departs."""
    base = variant("lora_default", 1, 0.80, data={"max_length": here})
    varied = variant("varied", 1, 0.77, data={"max_length": other})
    runs = [base, varied]
    table = deviations_table(runs, find_variants(runs, by_experiment(runs), BASES)).set_index("setting")
    names = ("lora_default", "varied")
    departing, following = names if here == 128 else names[::-1]
    effect = table.loc["data.max_length", "effect of departing (points)"]
    assert effect.startswith(f"{sign}3.00 (") and effect.endswith(f", {departing} minus {following}")
    low, high = (float(end) for end in effect.partition("(")[2].partition(")")[0].split(" to "))
    assert low < float(f"{sign}3") < high
    assert table.loc["data.max_length", "experiments"] == departing
    assert table.loc["data.source", "effect of departing (points)"] == "not measured"
    assert table.loc["data.source", "experiments"] == "all"
    runs.append(dataclasses.replace(record("full"), deviations=[]))
    table = deviations_table(runs, []).set_index("setting")
    assert table.loc["data.source", "experiments"] == "lora_default, varied"


def test_two_settings_changed_at_once_measure_neither():
    runs = [record(), variant("both", 1, 0.7, data={"max_length": 128, "batch_size": 6})]
    variants = find_variants(runs, {}, BASES)
    table = deviations_table(runs, variants)
    assert set(table["effect of departing (points)"]) == {"not measured"}
    assert pd.isna(variants_table(variants)["95% interval"][0])
