"""Settings say what they change, and from that alone follows where runs that differ in them may stand together."""

import dataclasses

import pandas as pd
import pytest
from fabricate import record

from lora_study.base.settings import changing
from lora_study.config import ExperimentConfig, flatten, to_dict
from lora_study.config_differences import deviations
from lora_study.config_files import experiment_from, nested, overlay
from lora_study.evidence.claims import evaluate, load_claims
from lora_study.evidence.reported import load_reported
from lora_study.evidence.summary import comparable, summary_table
from lora_study.records.run_folder import changed_fields
from lora_study.report.variants import find_variants

# For each setting that changes no result, a value that no made-up record has.
COST = {
    "data.eval_batch_size": 3,
    "data.padding": "max_length",
    "data.pad_to_multiple_of": 1,
    "train.accelerator": "gpu",
    "train.devices": 2,
    "train.num_nodes": 2,
    "train.strategy": "fsdp",
    "train.threads": 7,
    "train.fast": False,
}
NOTHING = {"data.cache_dir": "elsewhere", "train.keep_weights": False, "train.logger": "csv"}
CLAIMS = {claim.id: claim for claim in load_claims()}


def settings_of(kind, prefix=""):
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(field.type):
            yield from settings_of(field.type, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", field


def run_with(name, value, seed=1, **options):
    return record(seed=seed, config=nested(name, value), **options)


def test_every_setting_of_every_section_says_what_it_changes():
    found = {name: field.metadata.get("changes", "results") for name, field in settings_of(ExperimentConfig)}
    assert set(found) == {*flatten(to_dict(ExperimentConfig()))}
    assert {name for name, changes in found.items() if changes == "cost"} == {*COST}
    assert {name for name, changes in found.items() if changes == "nothing"} == {*NOTHING}
    assert {name for name, changes in found.items() if changes == "results"} == {*found} - {*COST, *NOTHING}
    assert {*changing(ExperimentConfig, "cost", "nothing")} == {*COST, *NOTHING}


@pytest.mark.parametrize(("name", "value"), COST.items())
def test_what_only_costs_is_compared_where_time_and_memory_are_and_not_where_accuracy_is(name, value, tmp_path):
    runs = [record(seed=1, test=0.8), run_with(name, value, seed=2, test=0.9)]
    assert comparable(runs) == (runs, [])
    (row,) = summary_table(runs, load_reported().rows).to_dict("records")
    assert row["seeds"] == 2 and row["test_accuracy"] == pytest.approx(85)
    assert all(pd.isna(row[column]) for column in ("train_seconds", "fit_seconds", "peak_memory_mib"))

    plain = {"train": {"fast": False}}
    full = record("full", config=plain)
    changed = overlay(full.config, nested(name, value if name != "train.fast" else True))
    other = dataclasses.replace(full, config=changed)
    for claim in ("ratio.time.lora_default", "ratio.memory.lora_default"):
        alike, unlike = (
            evaluate([CLAIMS[claim]], [record(config=plain), of_full], tmp_path) for of_full in (full, other)
        )
        assert alike[0].verdict == "no verdict", "one seed"
        assert unlike[0].verdict == "not run" and name in unlike[0].evidence


@pytest.mark.parametrize(("name", "value"), NOTHING.items())
def test_what_changes_nothing_is_compared_nowhere(name, value, tmp_path):
    runs = [record(seed=1), run_with(name, value, seed=2)]
    assert comparable(runs) == (runs, [])
    (row,) = summary_table(runs, load_reported().rows).to_dict("records")
    assert (row["train_seconds"], row["fit_seconds"], row["peak_memory_mib"]) == (101.5, 120, 900)
    config = experiment_from(overlay(runs[0].config, nested(name, value)))
    assert changed_fields(runs[0], config) == []
    assert deviations(config) == runs[0].deviations


@pytest.mark.parametrize(("name", "value"), {**COST, "lora.r": 4, "data.max_length": 99}.items())
def test_a_run_that_costs_something_else_is_another_run(name, value):
    (line,) = changed_fields(record(config=nested(name, value)), experiment_from(record().config))
    assert line.startswith(f"{name}: {value!r} then, ")


@pytest.mark.parametrize(("name", "value"), COST.items())
def test_what_only_costs_is_no_departure_from_the_article_but_padding_which_is_always_said(name, value):
    several = {"train": {"devices": 2, "precision": "32-true"}} if name == "train.strategy" else {}
    config = experiment_from(overlay(overlay(to_dict(ExperimentConfig()), several), nested(name, value)))
    fields = {row["field"] for row in deviations(config)} - {"train.precision"}
    assert fields == ({"data.drop_last"} if name == "data.padding" else {"data.drop_last", "data.padding"})


def test_what_only_costs_is_a_variants_change_where_nothing_else_differs():
    runs = [record(), record("plain", config={"train": {"fast": False}})]
    runs.append(record("short", config={"train": {"fast": False, "threads": 3}, "data": {"max_length": 99}}))
    found = {variant.name: dict(variant.changes) for variant in find_variants(runs, {}, ["lora_default"])}
    assert found == {"plain": {"train.fast": (True, False)}, "short": {"data.max_length": (512, 99)}}
