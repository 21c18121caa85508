"""Kept records are still read, summarised and judged: one of today's shape, and those of the published studies."""

import dataclasses
import json
from pathlib import Path

import pandas as pd
import pytest

from lora_study.base.text_tables import escape
from lora_study.config import to_dict
from lora_study.config_files import experiment_from
from lora_study.evidence.claims import evaluate, load_claims
from lora_study.evidence.reported import load_reported
from lora_study.evidence.summary import parameters_table, summary_table
from lora_study.records.record import Record, read_record, read_records, write_record
from lora_study.report.material import read_study

TODAY = Path(__file__).parent / "record_of_today.json"
PUBLISHED = Path(__file__).parents[2] / "results" / "published"
STUDIES = sorted(path.parent.name for path in PUBLISHED.glob("*/report.md"))
ROWS = load_reported().rows
CLAIMS = {claim.id: claim for claim in load_claims()}


def today(name: str = "lora_default", seed: int = 1, **sections) -> Record:
    """The record, as that of another experiment or seed, with values laid over its sections."""
    record = read_record(TODAY)
    laid = {section: getattr(record, section) | values for section, values in sections.items()}
    return dataclasses.replace(record, name=name, seed=seed, **laid)


def judged(claim: str, runs: list[Record], folder: Path):
    (result,) = evaluate([CLAIMS[claim]], runs, folder)
    return result


def test_a_record_of_today_is_read_and_written_back_as_it_is(tmp_path):
    record = read_record(TODAY)
    assert json.loads(write_record(record, tmp_path).read_text()) == json.loads(TODAY.read_text())
    assert to_dict(experiment_from(record.config)) == record.config
    assert (record.encoder.name, record.encoder.stand_in) == ("all-MiniLM-L6-v2 rewritten as DistilBERT", True)
    names = ("metrics.val.accuracy", "timing.test_seconds", "config.lora.alpha", "data.overlap.across.test_in_val")
    assert [record.flat[name] for name in names] == [0.59375, 1.5, 16, 6]


def test_a_record_older_than_a_setting_is_of_the_settings_default(tmp_path):
    content = json.loads(TODAY.read_text())
    del content["config"]["train"]["weight_decay"], content["config"]["lora"]["lr_ratio"], content["config"]["partial"]
    (tmp_path / "record.json").write_text(json.dumps(content))
    assert read_record(tmp_path / "record.json") == today()


def test_it_is_summarised_with_other_seeds():
    other = today(
        seed=2,
        metrics={"test": {"accuracy": 0.640625, "n": 64}, "val": {"accuracy": 0.53125, "n": 32}},
        timing={"train_seconds": 10.25, "fit_seconds": None},
        memory={"peak_bytes": 900 * 2**20},
    )
    (row,) = summary_table([today(), other], ROWS).to_dict("records")
    expected = {
        "seeds": 2,
        "test_reviews": 64,
        "test_accuracy": 59.375,
        "val_accuracy": 56.25,
        "train_accuracy": 68.75,
        "train_seconds": 9.25,
        "fit_seconds": 9.75,
        "peak_memory_mib": 850,
        "trainable": 73_728,
        "total": 22_786_946,
    }
    assert {name: row[name] for name in expected} == pytest.approx(expected)
    assert row["test_spread"] == pytest.approx(9.375 / 2**0.5) and row["memory_kind"] == "resident set"
    (counts,) = parameters_table([today()], ROWS).to_dict("records")
    assert (counts["lora"], counts["head"], counts["base"]) == (73_728, 0, 0)


def test_it_is_judged(tmp_path):
    plain = json.loads(TODAY.read_text())["config"]
    plain["train"]["fast"] = False
    runs = []
    costs = {"config": plain, "memory": {"peak_bytes": 2 * 10**9}}
    for seed, (lora, full) in enumerate([(8.0, 16.5), (8.5, 16.0), (8.25, 16.25)], start=1):
        ours, theirs = ({"train_seconds": each, "train_cpu_seconds": 1.9 * each} for each in (lora, full))
        runs.append(today("lora_default", seed, config=plain, timing=ours))
        runs.append(dataclasses.replace(today("full", seed, timing=theirs, **costs), mode="full"))
    time = judged("ratio.time.lora_default", runs, tmp_path)
    assert (time.verdict, time.measured) == (
        "same direction",
        "0.508 of full's training time (stand-in encoder: all-MiniLM-L6-v2 rewritten as DistilBERT)",
    )
    memory = judged("ratio.memory.lora_default", runs, tmp_path)
    assert memory.verdict == "same direction" and memory.measured.startswith("0.419")
    right, wrong = (
        judged("parameters.lora_default", [run], tmp_path) for run in (runs[0], today(parameters={"trainable": 73_729}))
    )
    assert right.verdict == "agrees" and "the counts of 1 run(s) agree" in right.evidence
    assert wrong.verdict == "does not agree" and "counts 73,729 where its shape gives 73,728" in wrong.evidence


@pytest.mark.parametrize("study", STUDIES)
def test_published_studies_are_read_whole(study):
    records, problems = read_records(PUBLISHED / study)
    assert records and problems == []
    summary = summary_table(records, read_study(PUBLISHED / study).reported.rows)
    published = pd.read_csv(PUBLISHED / study / "summary.csv").astype(summary.dtypes)
    assert summary["test_accuracy"].notna().all() and summary["train_seconds"].gt(0).all()
    pd.testing.assert_frame_equal(summary, published.assign(published_test_accuracy=None).astype(summary.dtypes))


@pytest.mark.parametrize("study", STUDIES)
def test_a_published_page_has_its_study_s_own_words(study):
    words = read_study(PUBLISHED / study).words
    page = (PUBLISHED / study / "report.md").read_text(encoding="utf-8")
    assert all(escape(words[name]) in page for name in words)


def test_there_are_published_studies():
    assert {"embedded", "medium-embedded-encoder"} <= set(STUDIES)
