"""The checklist says what the records say: yes, partly or no, and never more."""

import pytest
from fabricate import failed, record, write_run
from fabricate_predictions import write_whole_run

from lora_study.report.checklist import checklist_page
from lora_study.report.inputs import read_study


@pytest.fixture
def results(tmp_path):
    return tmp_path / "mine"


def answer(page, question):
    """The bold answer and the evidence of the line that asks this."""
    (line,) = [line for line in page.split("\n- ") if question in line]
    return line.removeprefix("- ").partition("**: ")[0].strip("*"), line.partition("\n")[2].partition("\n")[0].strip()


def page_of(results):
    return checklist_page(read_study(results))


def test_a_complete_study_is_answered_from_its_records(results):
    seeds = {"seeds": {"head_init": 1}}
    for seed in (1, 2):
        write_whole_run(results, record(seed=seed, provenance=seeds))
    page = page_of(results)
    assert "stand-in encoder: all-MiniLM-L6-v2" in page
    for question in ("several seeds", "seeds recorded", "code that ran", "versions", "pretrained model", "predictions"):
        assert answer(page, question)[0] == "yes", question
    assert answer(page, "several seeds")[1].startswith("2 to 2 completed seeds")
    assert "4 ([" in answer(page, "overlap with the training data")[1]
    assert answer(page, "how hyperparameters were chosen")[0] == "not in the records"


def test_what_is_missing_is_a_no_and_what_is_there_at_times_partly(results):
    write_whole_run(results, record(seed=1, provenance={"dirty": True}, memory={"peak_bytes": None}))
    write_run(results, failed("full", 1))
    page = page_of(results)
    assert answer(page, "code that ran") == (
        "partly",
        "2 of 2 records name the commit, 1 of them with no uncommitted change.",
    )
    assert answer(page, "several seeds")[0] == "no"
    assert answer(page, "memory needed")[0] == "no"
    assert answer(page, "compute spent")[0] == "partly"
    assert answer(page, "failed runs")[1].startswith("1 of 2 runs failed")


def test_a_study_of_failures_has_no_yes_about_results(results):
    write_run(results, failed("full", 1))
    page = page_of(results)
    for question in ("predictions behind", "error bars", "chosen without the test data", "data identified"):
        assert answer(page, question)[0] == "no", question


def test_text_from_records_cannot_become_markup(results):
    write_whole_run(results, record(data={"source": "[a](javascript:alert(1)) <b>"}))
    assert r"\[a\](javascript:alert(1)) \<b\>" in page_of(results)
