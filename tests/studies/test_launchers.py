"""launchers/ and study.py: every run once, whoever runs it, and the same records from all of them."""

import dataclasses
import os
import sys
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import filelock
import pandas as pd
import pytest
import vanishing
from hypothesis import given
from hypothesis import strategies as st
from in_this_process import InThisProcess
from tiny_experiments import tiny_content

from lora_study.base.errors import ConfigError
from lora_study.config_files import experiment_from
from lora_study.config_studies import StudyConfig
from lora_study.records.record import read_record, run_dir
from lora_study.report.material import read_study
from lora_study.studies.launchers import local, make_launcher
from lora_study.studies.launchers.dispatch import RETRIES, dispatch
from lora_study.studies.launchers.local import LocalLauncher
from lora_study.studies.launchers.worker import write_failed
from lora_study.studies.study import run_all, run_study
from lora_study.training.experiment import run_experiment


@pytest.fixture
def runs(tiny_backbone: Path, reviews_csv: Path, tmp_path: Path):
    """Four runs of about a second: two experiments with two seeds."""
    base = tiny_content(tiny_backbone, reviews_csv, tmp_path / "cache", (48, 20, 30), learning_rate=0.01)
    modes = [{"name": "lora", "lora": {"r": 2, "alpha": 1}}, {"name": "full", "mode": "full"}]
    return [experiment_from(base | mode | {"seed": seed}) for seed in (1, 2) for mode in modes]


def result(results_dir: Path, run):
    """What a run found: metrics, parameters and predictions, to the last bit."""
    folder = run_dir(results_dir, run.name, run.seed)
    record = read_record(folder / "record.json")
    assert record.status == "completed", record.error
    predictions = pd.read_parquet(folder / "predictions.parquet")
    weights = (folder / "adapter.safetensors").read_bytes() if run.mode == "lora" else b""
    return record.metrics, record.parameters, record.config, record.data, predictions.to_dict(), weights


@given(st.lists(st.integers(1, 9), max_size=30), st.integers(1, 5))
def test_dispatch_runs_everything_once_in_order_and_never_more_than_there_are_workers(seconds, workers):
    clock, going, busy, started = [0], {}, {}, []

    def start(run, worker):
        assert worker not in busy.values(), "a worker has one run at a time"
        assert 0 <= worker < workers
        started.append(run)
        going[run], busy[run] = clock[0] + seconds[run], worker
        return run

    def wait(handles):
        assert set(handles) == set(going)
        clock[0] = min(going.values())
        ended = [run for run, end in going.items() if end == clock[0]]
        for run in ended:
            del going[run], busy[run]
        return ended

    ended = [run for run, _ in dispatch(range(len(seconds)), workers, start, wait)]
    assert started == list(range(len(seconds)))
    assert sorted(ended) == started
    assert clock[0] <= sum(seconds) / workers + max(seconds, default=0)  # Graham's bound


@given(st.lists(st.integers(0, 2 * RETRIES), max_size=20), st.integers(1, 5))
def test_a_run_whose_worker_is_lost_starts_again_next_and_not_for_ever(losses, workers):
    started = []

    def start(run, worker):
        started.append(run)
        return run

    def lost(run):
        return started.count(run) <= losses[run]

    ended = [run for run, _ in dispatch(range(len(losses)), workers, start, lambda going: [min(going)], lost)]
    assert sorted(ended) == list(range(len(losses)))
    assert [started.count(run) for run in range(len(losses))] == [1 + min(times, RETRIES) for times in losses]
    if workers == 1:
        assert started == sorted(started), "no other run comes between"


def test_local_workers_give_what_this_process_gives_name_their_run_and_leave_alone_what_is_held(runs, tmp_path, capfd):
    results = tmp_path / "two"
    (results / ".locks").mkdir(parents=True)
    free, held = runs[0], runs[1]
    with (
        filelock.FileLock(results / ".locks" / "full-seed-1.lock"),
        closing(LocalLauncher(2).run([free, held], results, "command")) as ended,
    ):
        found = dict(ended)
    assert found[held] is None
    assert not run_dir(results, "full", 1).exists()
    printed = capfd.readouterr().err.splitlines()
    assert printed and all(line.startswith("lora seed 1: ") for line in printed)
    run_experiment(free, tmp_path / "here")
    assert found[free] == read_record(run_dir(results, "lora", 1) / "record.json")
    assert result(results, free) == result(tmp_path / "here", free)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["local-1", "local-4", "slurm", "ray"])
def test_every_launcher_gives_the_same_records(runs, tmp_path, way):
    if way == "ray" and find_spec("ray") is None:
        pytest.skip("ray is not installed")
    if way == "slurm":
        pytest.importorskip("submitit")
        from lora_study.studies.launchers.slurm import SlurmLauncher

        launcher = SlurmLauncher(cluster="local")
    else:
        name, _, workers = way.partition("-")
        launcher = make_launcher(name, int(workers or 2))
    records = run_all(runs, tmp_path / way, launcher, "command")
    assert [(record.name, record.seed) for record in records] == [(run.name, run.seed) for run in runs]
    for run in runs:
        run_experiment(run, tmp_path / "here")
        assert result(tmp_path / way, run) == result(tmp_path / "here", run)


def test_a_worker_that_is_killed_does_not_end_its_run(runs, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("lora_study.studies.launchers.local._child", vanishing.vanish_once)
    (record,) = run_all(runs[:1], tmp_path / "out", LocalLauncher(), "command")
    assert record.status == "completed", record.error
    assert "lora seed 1: killed by signal 9; if memory ran out" in capfd.readouterr().err
    run_experiment(runs[0], tmp_path / "here")
    assert result(tmp_path / "out", runs[0]) == result(tmp_path / "here", runs[0])


def test_a_worker_that_is_always_killed_leaves_a_failed_record_and_each_has_a_gpu(runs, tmp_path, monkeypatch):
    monkeypatch.setattr("lora_study.studies.launchers.local._child", vanishing.vanish)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    records = run_all(runs[:2], tmp_path / "out", LocalLauncher(2), "command")
    for run, record in zip(runs[:2], records, strict=True):
        assert record.status == "failed"
        assert "signal 9" in record.error
        assert read_record(run_dir(tmp_path / "out", run.name, 1) / "record.json") == record
    assert {(tmp_path / "cache" / name).read_text() for name in ("lora", "full")} == {"5", "7"}
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "5,7"


@pytest.mark.parametrize(
    ("listed", "count", "wanted", "expected"),
    [
        (None, 0, None, [{"OMP_NUM_THREADS": "3"}] * 2),
        (None, 0, "1", [{"OMP_NUM_THREADS": "1"}] * 2),
        ("4,7", 2, "64", [{"OMP_NUM_THREADS": "3", "CUDA_VISIBLE_DEVICES": gpu} for gpu in "47"]),
        ("4,", 1, None, [{"OMP_NUM_THREADS": "3", "CUDA_VISIBLE_DEVICES": "4"}] * 2),
        ("4,-1,5", 1, None, [{"OMP_NUM_THREADS": "3", "CUDA_VISIBLE_DEVICES": "4"}] * 2),
    ],
)
def test_workers_share_cores_and_gpus(runs, tmp_path, monkeypatch, listed, count, wanted, expected):
    for name, value in (("CUDA_VISIBLE_DEVICES", listed), ("OMP_NUM_THREADS", wanted)):
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    monkeypatch.setattr("lora_study.studies.launchers.local._cores", lambda: 6)
    assert local._shares(2) == expected


def test_a_worker_that_is_killed_when_its_run_is_completed_loses_nothing(runs, tmp_path):
    record = run_experiment(runs[0], tmp_path)
    assert write_failed(runs[0], tmp_path, "command", "killed by signal 9") == record
    assert read_record(run_dir(tmp_path, runs[0].name, 1) / "record.json") == record


def test_a_run_that_another_process_holds_is_waited_for_and_not_trained_again(runs, tmp_path, monkeypatch, capsys):
    results = tmp_path / "out"
    held, other = runs[0], runs[1]
    run_experiment(held, tmp_path / "elsewhere")
    (results / ".locks").mkdir(parents=True)
    lock = filelock.FileLock(results / ".locks" / "lora-seed-1.lock")
    lock.acquire()
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        if len(slept) == 4:
            (results / "lora").mkdir()
            run_dir(tmp_path / "elsewhere", "lora", 1).rename(run_dir(results, "lora", 1))
            lock.release()

    monkeypatch.setattr("lora_study.studies.study.REMIND", 3)
    monkeypatch.setattr("lora_study.studies.study.time", SimpleNamespace(sleep=sleep))
    launcher = InThisProcess()
    records = run_all([held, other], results, launcher, "command")
    assert [record.status for record in records] == ["completed", "completed"]
    assert launcher.started == [other]
    waiting = "waiting for another process, which is running lora seed 1"
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("waiting")]
    assert lines == [waiting, f"{waiting} (6 s so far; it holds a file of {results}/.locks)"]


def test_a_study_runs_each_experiment_with_each_seed_and_a_mistake_does_not_stop_the_others(runs, tmp_path):
    wrong = dataclasses.replace(runs[0], name="wrong", lora=dataclasses.replace(runs[0].lora, targets=("nowhere",)))
    study = StudyConfig(name="mini", title="A miniature", experiments=("not", "read"), seeds=(1, 2))
    launcher = InThisProcess()
    records = run_study(study, [wrong, runs[0]], tmp_path / "out", launcher)
    assert [(record.name, record.seed, record.status) for record in records] == [
        ("wrong", 1, "failed"),
        ("lora", 1, "completed"),
        ("wrong", 2, "failed"),
        ("lora", 2, "completed"),
    ]
    assert "'nowhere'" in records[0].error
    run_study(study, [wrong, runs[0]], tmp_path / "out", launcher)
    assert [run.name for run in launcher.started] == ["wrong", "lora"] * 2 + ["wrong"] * 2, "only failed runs run again"


def test_another_study_does_not_take_a_study_s_place(runs, tmp_path):
    study = StudyConfig(name="mini", title="A miniature", experiments=("not", "read"))
    first, other, more = (dataclasses.replace(runs[0], name=name) for name in ("first", "other", "more"))
    run_study(study, [first], tmp_path, InThisProcess())
    before = (tmp_path / "study.yaml").read_bytes()
    with pytest.raises(ConfigError, match=r"holds another study, of first; choose another --results-dir"):
        run_study(dataclasses.replace(study, title="Another"), [other, more], tmp_path, InThisProcess())
    assert (tmp_path / "study.yaml").read_bytes() == before
    assert len(run_study(study, [first, more], tmp_path, InThisProcess())) == 2


def test_a_study_that_is_stopped_says_what_it_lacks(runs, tmp_path):
    study = StudyConfig(name="mini", title="A miniature", experiments=("not", "read"), seeds=(1, 2))

    class Stopped(InThisProcess):
        def run(self, runs, *arguments):
            yield from super().run(runs[:1], *arguments)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(study, runs[:2], tmp_path, Stopped())
    (tmp_path / "full" / ".seed-2.checkpoint").mkdir(parents=True)
    found = read_study(tmp_path)
    assert found.words == {"title": "A miniature"}
    (line,) = found.warnings
    assert line == "not every run is here: lora seed 2, full seed 1, full seed 2 (begun)"
    run_study(dataclasses.replace(study, seeds=(1,)), runs[:1], tmp_path, InThisProcess())
    assert read_study(tmp_path).warnings == []  # of what is planned now, all is there


def test_a_study_of_reviews_with_class_names_of_their_own_runs(runs, tmp_path):
    labelled = dataclasses.replace(runs[0], data=dataclasses.replace(runs[0].data, labels={"0": 0, "1": 1}))
    study = StudyConfig(name="mini", title="A miniature", experiments=("not", "read"))
    (record,) = run_study(study, [labelled], tmp_path, InThisProcess())
    assert record.status == "completed"
    flipped = dataclasses.replace(labelled.data, labels={"0": 1, "1": 0})
    assert len({labelled, dataclasses.replace(labelled), dataclasses.replace(labelled, data=flipped)}) == 2


@pytest.mark.parametrize("name", ["ray", "slurm"])
def test_a_launcher_whose_package_is_missing_says_what_to_install(monkeypatch, name):
    monkeypatch.setitem(sys.modules, {"ray": "ray", "slurm": "submitit"}[name], None)
    for module in ("ray_cluster", "slurm"):
        monkeypatch.delitem(sys.modules, f"lora_study.studies.launchers.{module}", raising=False)
    with pytest.raises(ConfigError, match=rf"pip install 'lora-study\[{name}\]'"):
        make_launcher(name, None)


@pytest.mark.parametrize(
    ("name", "workers", "words"),
    [("kubernetes", None, "--launcher: 'kubernetes' .* local, ray, slurm"), ("local", 0, "--workers: 0 .* 1 or more")],
)
def test_a_launcher_that_is_not_one_is_refused(name, workers, words):
    with pytest.raises(ConfigError, match=words):
        make_launcher(name, workers)


def test_runs_on_several_devices_do_not_run_side_by_side(runs, tmp_path):
    run = dataclasses.replace(runs[0], train=dataclasses.replace(runs[0].train, devices=2))
    with pytest.raises(ConfigError, match=r"train\.devices: 2 .* --workers 1"):
        run_all([run], tmp_path / "out", LocalLauncher(2), "command")


def test_slurm_without_sbatch_is_one_line(runs, tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"--launcher slurm: .* sbatch") as error:
        run_all(runs[:1], tmp_path / "out", make_launcher("slurm", None), "command")
    assert "\n" not in str(error.value)
