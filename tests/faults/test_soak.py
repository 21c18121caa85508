"""soak.py: a few faults are survived, and one that is not would be noticed."""

import dataclasses
import subprocess
import sys

import fabricate
import pytest
import soak
from soak_faults import MAY_MOUNT, Fault
from soak_study import NotSurvivedError, Study, Template, outcome

from lora_study.records.record import run_dir, write_record


def inflicted(*arguments: str) -> str:
    """Run the script; the table it prints."""
    done = subprocess.run([sys.executable, soak.__file__, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def write_run(results):
    """A made-up run with all its files."""
    run = fabricate.record("lora")
    fabricate.write_run(results, run)
    folder = run_dir(results, "lora", 1)
    for name in ("predictions.parquet", "adapter.safetensors"):
        (folder / name).write_bytes(name.encode())
    return run, folder


@pytest.fixture
def study(tmp_path):
    """A study with one completed run, which is as in the undisturbed one."""
    _, folder = write_run(tmp_path / "whole")
    (tmp_path / "study").mkdir()
    study = Study(Template(tmp_path, {"lora": outcome(folder)}, seconds=1.0, size=1), tmp_path / "study")
    write_run(study.results)
    return study


def test_what_depends_on_the_clock_makes_no_difference(study):
    run, folder = write_run(study.results)
    write_record(dataclasses.replace(run, timing={"train_seconds": 1e6}, provenance={}), folder)
    curves = folder / "curves.csv"
    curves.write_text(curves.read_text().replace(".2\n", ".7\n"))
    study.check()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"status": "failed"}, "another status"),
        ({"metrics": {}}, "another metrics"),
        ({"parameters": {}}, "another parameters"),
        ({"data": {}}, "another data"),
        ({"timing": {"train_seconds": -0.1}}, "negative train_seconds"),
    ],
)
def test_a_record_that_is_not_the_undisturbed_one_is_noticed(study, changes, words):
    run, folder = write_run(study.results)
    write_record(dataclasses.replace(run, **changes), folder)
    with pytest.raises(NotSurvivedError, match=words):
        study.check()


@pytest.mark.parametrize("name", ["curves.csv", "predictions.parquet", "adapter.safetensors"])
def test_a_file_that_is_not_the_undisturbed_one_is_noticed(study, name):
    path = run_dir(study.results, "lora", 1) / name
    path.write_bytes(path.read_bytes().replace(b"0.8", b"0.9") + b"x")
    with pytest.raises(NotSurvivedError, match=name.removesuffix(".csv")):
        study.check()


@pytest.fixture
def tally(tmp_path, monkeypatch):
    """Inflicts a made-up fault twice, on studies with a completed run."""

    def inflict(trial):
        def on_a_study(study, chance):
            write_run(study.results)
            trial(study)

        monkeypatch.setattr(soak, "faults", lambda: {"made up": Fault(1, on_a_study)})
        return soak.inflict(Template(tmp_path, {}, seconds=1.0, size=1), "made up", 2, "seed")

    return inflict


def test_a_fault_counts_once_each_time_it_is_inflicted(tally):
    found = tally(lambda study: study.hit())
    assert (found.tried, found.survived, found.lost, found.reasons) == (2, 2, 0, [])


def test_a_fault_that_was_not_survived_says_why(tally):
    def trial(study):
        study.hit()
        raise NotSurvivedError("it hung")

    found = tally(trial)
    assert (found.tried, found.survived, found.lost) == (2, 0, 0)
    assert found.reasons == ["made up (seed seed): it hung"] * 2


@pytest.mark.parametrize("loss", ["changed", "gone"])
def test_a_complete_record_that_changes_is_lost(tally, loss):
    def trial(study):
        study.hit()
        path = run_dir(study.results, "lora", 1) / "record.json"
        path.unlink() if loss == "gone" else path.write_text(path.read_text() + " ")

    assert tally(trial).lost == 2


@pytest.mark.parametrize(
    ("found", "status"),
    [(soak.Tally(2, 2), 0), (soak.Tally(), 0), (soak.Tally(2, 1, 0, ["it hung"]), 1), (soak.Tally(2, 2, lost=1), 1)],
)
def test_the_exit_status_says_whether_all_was_survived(found, status, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["soak.py", "--only", "SIGKILL"])
    monkeypatch.setenv(MAY_MOUNT, "1")  # or it would start anew, in place of this process
    monkeypatch.setattr(soak, "load_everything", lambda: None)
    monkeypatch.setattr(soak, "soak", lambda *_: {"SIGKILL": found})
    assert soak.main() == status
    printed = capsys.readouterr()
    assert f"| SIGKILL | {found.tried} | {found.survived} | {found.lost} |" in " ".join(printed.out.split())
    assert all(reason in printed.err for reason in found.reasons)


@pytest.mark.parametrize("mistake", [("--only", "SIGHUP"), ("--times", "0"), ("--workers", "two")])
def test_a_mistake_is_one_line_with_what_would_be_right(mistake, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["soak.py", *mistake])
    monkeypatch.setenv(MAY_MOUNT, "1")
    with pytest.raises(SystemExit) as ended:
        soak.main()
    line = capsys.readouterr().err.splitlines()[-1]
    assert ended.value.code == 2 and mistake[1] in line and ("SIGKILL" in line or "1 or more" in line)


@pytest.mark.slow
def test_a_few_kills_are_survived():
    printed = inflicted("--times", "1", "--workers", "1", "--only", "SIGKILL")
    assert "| SIGKILL |" in printed and "SIGTERM" not in printed


@pytest.mark.slow
def test_every_kind_of_fault_is_survived():
    inflicted("--times", "1")
