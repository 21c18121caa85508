"""records.py: written whole or not at all, and read back or refused by name."""

import json
import math
import os
import threading

import pytest

from lora_study.base.files import atomic, atomic_folder, write_text
from lora_study.config import ExperimentConfig, to_dict
from lora_study.records.record import Record, RecordError, read_record, read_records, run_dir, write_record


def record(**changes) -> Record:
    values = {"name": "lora_default", "mode": "lora", "seed": 1, "status": "completed"}
    return Record(**(values | {"metrics": {"test": {"accuracy": 0.9, "n": 10, "loss": None}}} | changes))


def test_what_is_written_is_read_back(tmp_path):
    original = record(config=to_dict(ExperimentConfig(seed=3)), parameters={"trainable": 3}, error=None)
    assert read_record(write_record(original, tmp_path)) == original


def test_a_number_that_json_does_not_have_is_refused_and_nothing_is_left(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_record(record(timing={"train_seconds": math.nan}), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "file.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError), atomic(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]


def test_a_written_file_is_as_readable_as_any_other(tmp_path):
    write_text(tmp_path / "ours", "x")
    (tmp_path / "plain").write_text("x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_folder_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "folder"
    with atomic_folder(path) as staged:
        (staged / "file").write_text("old")
        assert not path.exists()
    with pytest.raises(RuntimeError), atomic_folder(path, overwrite=True) as staged:
        (staged / "file").write_text("half")
        raise RuntimeError
    assert [(p.name, p.read_text()) for p in path.iterdir()] == [("file", "old")]
    with atomic_folder(path, overwrite=True) as staged:
        (staged / "other").write_text("new")
    assert [(p.name, p.read_text()) for p in path.iterdir()] == [("other", "new")]
    assert list(path.parent.iterdir()) == [path]
    (path.parent / "plain").mkdir()
    assert path.stat().st_mode == (path.parent / "plain").stat().st_mode


def test_a_folder_that_may_be_the_wrong_one_is_not_replaced(tmp_path):
    (tmp_path / "file").write_text("mine")
    write_record(record(), tmp_path / "run")
    (tmp_path / "tree" / "below").mkdir(parents=True)
    for name, overwrite in (("file", True), ("file/below", True), ("run", True), ("tree", True), ("run", False)):
        with pytest.raises(FileExistsError, match="name another folder"), atomic_folder(tmp_path / name, overwrite):
            pytest.fail("the block was entered")
    assert len(list(tmp_path.rglob("*"))) == 5


def test_readers_never_see_a_half_written_file(tmp_path):
    path = tmp_path / "file.txt"
    texts = ["a" * 200_000, "b" * 200_000]
    write_text(path, texts[0])
    writer = threading.Thread(target=lambda: [write_text(path, texts[i % 2]) for i in range(30)])
    writer.start()
    seen = set()
    while writer.is_alive():
        seen.add(path.read_text())
    writer.join()
    assert seen <= set(texts)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        '{"version": 99}',
        '{"version": 1}',
        json.dumps({"version": 1, "name": "a", "mode": "lora", "seed": 1, "status": "done"}),
        json.dumps({"version": 1, "name": "a", "mode": "lora", "seed": 1, "status": "failed", "extra": 1}),
        json.dumps({"version": 1, "name": "a", "mode": "lora", "seed": 1, "status": "failed", "metrics": []}),
        json.dumps({"version": 1, "name": "a", "mode": "lora", "seed": "1", "status": "failed"}),
    ],
)
def test_a_damaged_record_is_named_and_left_out(tmp_path, content):
    write_record(record(), run_dir(tmp_path, "lora_default", 1))
    bad = run_dir(tmp_path, "bad", 1) / "record.json"
    write_text(bad, content)
    with pytest.raises(RecordError, match="bad"):
        read_record(bad)
    records, problems = read_records(tmp_path)
    assert [r.name for r in records] == ["lora_default"]
    assert len(problems) == 1
    assert str(bad) in problems[0]


def test_records_come_by_experiment_and_seed(tmp_path):
    for name, seed in (("b", 2), ("a", 10), ("b", 1), ("a", 2)):
        write_record(record(name=name, seed=seed), run_dir(tmp_path, name, seed))
    assert [(r.name, r.seed) for r in read_records(tmp_path)[0]] == [("a", 2), ("a", 10), ("b", 1), ("b", 2)]


def test_a_full_disk_is_an_error_not_a_short_file(tmp_path, monkeypatch):
    write_record(record(), tmp_path)
    before = (tmp_path / "record.json").read_bytes()

    def no_space(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space left"):
        write_record(record(seed=2), tmp_path)
    assert (tmp_path / "record.json").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["record.json"]


def test_a_record_in_another_runs_folder_is_left_out(tmp_path):
    write_record(record(seed=1), run_dir(tmp_path, "lora_default", 2))
    records, problems = read_records(tmp_path)
    assert records == []
    assert "belongs elsewhere" in problems[0]
