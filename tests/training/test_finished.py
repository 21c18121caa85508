"""finished.py and run_folder.py: a finished run answers one question, and nothing is lost where it is put in place."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest

from lora_study.base.errors import ConfigError
from lora_study.config import to_dict
from lora_study.config_files import experiment_from, overlay
from lora_study.records.record import read_record, write_record
from lora_study.records.run_folder import prepare_folder
from lora_study.studies.study import run_all
from lora_study.training import finished
from lora_study.training.experiment import run_experiment
from lora_study.training.finished import finished_run
from lora_study.training.recording import write_failed


@pytest.fixture(scope="module")
def finished_once(tiny, tmp_path_factory: pytest.TempPathFactory):
    """A finished run with reviews and an encoder of its own: its config, and the folder that holds all of them."""
    place = tmp_path_factory.mktemp("finished")
    base = tiny("cached")
    shutil.copyfile(base.data.source, place / "base.csv")
    shutil.copytree(base.model.backbone, place / "distilbert")
    changes = {"data": {"source": str(place / "base.csv")}, "model": {"backbone": str(place / "distilbert")}}
    config = tiny("cached", **changes, train={"epochs": 1})
    assert run_experiment(config, place / "results").status == "completed"
    return config, place


@pytest.fixture
def once(finished_once, tmp_path):
    """The same in a folder that a test may change: its config, the folder and the run's."""
    config, place = finished_once
    shutil.copytree(place, tmp_path / "copy")
    moved = {
        "data": {"source": str(tmp_path / "copy/base.csv")},
        "model": {"backbone": str(tmp_path / "copy/distilbert")},
    }
    config = experiment_from(overlay(to_dict(config), moved))
    folder = tmp_path / "copy/results/cached/seed-1"
    record = read_record(folder / "record.json")
    write_record(dataclasses.replace(record, config=to_dict(config)), folder)
    return config, tmp_path / "copy", folder


def flip(path: Path) -> None:
    """Make every positive review negative, and the other way round."""
    head, *lines = path.read_text().splitlines()
    assert head == "text,label"
    path.write_text("\n".join([head, *(f"{line[:-1]}{1 - int(line[-1])}" for line in lines)]) + "\n")


def touch_weights(place: Path) -> None:
    path = place / "distilbert/model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def change_activation(place: Path) -> None:
    path = place / "distilbert/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"activation": "relu"}))


def change_tokenizer(place: Path) -> None:
    path = place / "distilbert/tokenizer.json"
    content = json.loads(path.read_text())
    content["normalizer"]["lowercase"] = not content["normalizer"]["lowercase"]
    path.write_text(json.dumps(content))


def test_a_finished_run_is_returned_and_says_so(once, capsys):
    config, place, folder = once
    assert run_experiment(config, place / "results") == read_record(folder / "record.json")
    assert f"cached seed 1: already completed in {folder}; nothing is trained" in capsys.readouterr().err
    run_all([config], place / "results", launcher=None, command="")
    assert "[1/1] cached seed 1: already completed; test accuracy" in capsys.readouterr().err


def test_where_the_same_reviews_and_encoder_lie_does_not_matter(once):
    """As after another clone, or after publishing, which keeps the names of files alone."""
    config, place, folder = once
    elsewhere = overlay(to_dict(config), {"data": {"source": "base.csv"}, "model": {"backbone": "distilbert"}})
    write_record(dataclasses.replace(read_record(folder / "record.json"), config=elsewhere), folder)
    assert finished_run(folder, config) is not None
    flip(place / "base.csv")
    with pytest.raises(ConfigError, match="has changed since"):
        finished_run(folder, config)
    hub = overlay(elsewhere, {"data": {"source": "hub"}})
    write_record(dataclasses.replace(read_record(folder / "record.json"), config=hub), folder)
    with pytest.raises(ConfigError, match=r"other settings \(data\.source: 'hub' then"):
        finished_run(folder, config)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda place: flip(place / "base.csv"), r"data\.source: .*base\.csv has changed since .*--overwrite"),
        (touch_weights, r"model\.backbone: .*distilbert has changed since"),
        (change_activation, r"model\.backbone: .*distilbert has changed since"),
        (change_tokenizer, r"model\.backbone: .*distilbert has changed since"),
    ],
    ids=["labels", "weights", "config.json", "tokenizer.json"],
)
def test_other_reviews_or_another_encoder_is_another_question(once, change, words):
    config, place, folder = once
    before = (folder / "record.json").read_bytes()
    assert finished_run(folder, config)  # so that what is kept in mind of the files is out of date
    change(place)
    for ask in (
        lambda: run_experiment(config, place / "results"),
        lambda: run_all([config], place / "results", launcher=None, command=""),
        lambda: write_failed(config, place / "results", "", "its process is gone"),
    ):
        with pytest.raises(ConfigError, match=words) as error:
            ask()
        assert "\n" not in str(error.value)
    assert (folder / "record.json").read_bytes() == before
    assert run_experiment(config, place / "results", overwrite=True).status == "completed"
    assert finished_run(folder, config)


def test_what_does_not_change_the_reviews_is_no_other_question(once):
    config, place, folder = once
    os.utime(place / "base.csv", (1, 1))
    (place / "distilbert/README.md").write_text("A note.")
    shutil.copyfile(place / "base.csv", place / "copy.csv")
    (place / "copy.csv").replace(place / "base.csv")
    (place / ".#lock").symlink_to("me@host.123:456")  # as an editor leaves it, to nowhere
    moved = experiment_from(overlay(to_dict(config), {"data": {"cache_dir": str(place / "elsewhere")}}))
    assert finished_run(folder, moved)
    assert finished_run(
        folder, dataclasses.replace(config, train=dataclasses.replace(config.train, keep_weights=False))
    )


def test_a_record_that_does_not_say_what_it_was_run_on_is_not_refused(once):
    config, place, folder = once
    record = read_record(folder / "record.json")
    del record.data["fingerprint"], record.provenance["encoder"]
    write_record(record, folder)
    flip(place / "base.csv")
    touch_weights(place)
    assert finished_run(folder, config) == record


def test_a_study_of_many_runs_reads_its_reviews_once(once, monkeypatch):
    config, place, folder = once
    runs = [dataclasses.replace(config, seed=seed) for seed in range(1, 6)]
    record = read_record(folder / "record.json")
    for run in runs[1:]:
        other = folder.with_name(f"seed-{run.seed}")
        shutil.copytree(folder, other)
        write_record(dataclasses.replace(record, seed=run.seed, config=to_dict(run)), other)
    read, original = [], finished.load_splits
    monkeypatch.setattr(finished, "load_splits", lambda data: read.append(data.source) or original(data))
    run_all(runs, place / "results", launcher=None, command="")
    assert len(read) == 1


def test_a_secret_in_a_source_is_compared_as_it_is_written(once, monkeypatch):
    config, place, folder = once
    hidden = place / "s3cret-folder"
    hidden.mkdir()
    shutil.copyfile(place / "base.csv", hidden / "base.csv")
    monkeypatch.setenv("MY_TOKEN", "s3cret-folder")
    config = experiment_from(overlay(to_dict(config), {"data": {"source": str(hidden / "base.csv")}}))
    write_record(dataclasses.replace(read_record(folder / "record.json"), config=to_dict(config)), folder)
    assert "s3cret-folder" not in (folder / "record.json").read_text()
    assert finished_run(folder, config)


@pytest.mark.parametrize("holds", ["cached", "replaced"])
def test_a_run_that_was_being_put_in_place_when_its_process_was_killed_is_put_there(once, holds):
    """Between the two renames neither the new run nor the old one is in its place."""
    config, place, folder = once
    left = folder.with_name(".seed-1-abc")
    left.mkdir()
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    folder.replace(left / {"cached": "seed-1", "replaced": "replaced"}[holds])
    assert run_experiment(config, place / "results").status == "completed"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == kept
    assert [path.name for path in folder.parent.iterdir()] == ["seed-1"]


def test_what_a_killed_process_was_writing_is_removed(once):
    _, _, folder = once
    (folder.with_name(".seed-1-abc") / "seed-1").mkdir(parents=True)
    (folder.with_name(".seed-10-abc") / "seed-10").mkdir(parents=True)
    prepare_folder(folder)
    assert sorted(path.name for path in folder.parent.iterdir()) == [".seed-10-abc", "seed-1"]


@pytest.mark.parametrize("in_the_way", ["cached", "cached/seed-1"])
def test_a_file_where_the_run_belongs_is_found_before_anything_is_trained(tiny, tmp_path, in_the_way):
    path = tmp_path / in_the_way
    path.parent.mkdir(exist_ok=True)
    path.write_text("")
    with pytest.raises(ConfigError, match=r"cannot be written") as error:
        run_experiment(tiny("cached", data={"source": "nowhere.csv"}), tmp_path)
    assert str(path) in str(error.value)
