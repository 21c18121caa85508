"""overview.py: what lies below a folder of results, and which run an experiment's name stands for."""

from pathlib import Path

import pytest
from fabricate import failed, record, write_run

from lora_study.base.errors import ConfigError
from lora_study.evidence.overview import find_runs, newest_run, overview
from lora_study.records.record import Record, run_dir


def put(results: Path, study: str, run: Record, started: str | None = None, weights: bool = True) -> Path:
    """Put a run below the results, as if it had started then; returns its folder."""
    run.provenance["started"] = started
    write_run(results / study, run)
    folder = run_dir(results / study, run.name, run.seed)
    if weights:
        (folder / "adapter.safetensors").touch()
    return folder


@pytest.fixture
def results(tmp_path) -> Path:
    put(tmp_path, "embedded", record("lora_best", 1, 0.802), "2026-03-01T10:00:00+00:00")
    put(tmp_path, "embedded", record("lora_best", 2, 0.811), "2026-03-01T11:30:00+00:00")
    put(tmp_path, "embedded", failed("lora_best", 9), "2026-03-02T00:00:00+00:00", weights=False)
    put(tmp_path, "embedded", record("full", 1, 0.82), "2026-03-01T12:00:00+00:00", weights=False)
    put(tmp_path, "published/embedded", record("lora_best", 2, 0.811), "2026-03-01T11:30:00+00:00")
    put(tmp_path, "sweep", record("r-8", 1, config={"score_test": False}), "2026-03-03T00:00:00+00:00")
    put(tmp_path, "sweep", record("best", 1, 0.79))
    return tmp_path


def test_each_experiment_of_each_study_has_a_row_and_trials_have_none(results):
    runs, problems = find_runs(results)
    rows = overview(runs).astype(object).where(lambda frame: frame.notna(), None).to_numpy().tolist()
    assert rows == [
        ["embedded", "full", 1, 0, pytest.approx(82.0), "2026-03-01 12:00", 0],
        ["embedded", "lora_best", 2, 1, pytest.approx(80.65), "2026-03-02 00:00", 2],
        ["published/embedded", "lora_best", 1, 0, pytest.approx(81.1), "2026-03-01 11:30", 1],
        ["sweep", "best", 1, 0, pytest.approx(79.0), None, 1],
    ]
    assert problems == []


def test_a_study_that_is_linked_into_the_folder_is_one_of_its_studies(results, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    put(elsewhere, "big", record("lora_best", 3, 0.83), "2026-03-05T00:00:00+00:00")
    (results / "big").symlink_to(elsewhere / "big", target_is_directory=True)
    assert "big" in {run.study for run in find_runs(results)[0]}
    assert newest_run("lora_best", results).record.seed == 3
    (results / "a_loop").symlink_to(results, target_is_directory=True)
    folders = [run.folder.resolve() for run in find_runs(results)[0]]
    assert len(folders) == len(set(folders))
    assert not any("a_loop" in run.study for run in find_runs(results)[0])


def test_an_experiment_s_folder_is_refused_with_a_line(results):
    with pytest.raises(ConfigError, match="one experiment's folder"):
        find_runs(results / "embedded" / "full")


def test_a_study_s_own_folder_has_its_name(results):
    assert {run.study for run in find_runs(results / "embedded")[0]} == {"embedded"}


def test_what_cannot_be_read_is_named_and_what_is_being_written_is_not_looked_at(results):
    (results / "embedded/full/seed-1/record.json").write_text("{")
    put(results / "embedded/lora_best", ".seed-3-abc", record("lora_best", 3))
    runs, problems = find_runs(results)
    assert {run.record.name for run in runs if run.study == "embedded"} == {"lora_best"}
    assert len(problems) == 1 and "full" in problems[0]


def test_the_newest_run_with_weights_is_taken_and_not_its_published_copy(results):
    assert newest_run("lora_best", results).folder == results / "embedded/lora_best/seed-2"
    newer = put(results, "published/other", record("lora_best", 5, 0.7), "2026-03-01T11:30:01+00:00")
    assert newest_run("lora_best", results).folder == newer


@pytest.mark.parametrize("name", ["full", "lora_bst"])
def test_an_experiment_without_weights_is_refused_with_those_that_have_some(results, name):
    with pytest.raises(ConfigError, match=f"'{name}' is no folder.*one of best, lora_best$"):
        newest_run(name, results)


def test_with_no_run_at_all_the_first_command_is_named(tmp_path):
    with pytest.raises(ConfigError, match="make reproduce"):
        newest_run("lora_best", tmp_path)
