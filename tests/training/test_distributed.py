"""Several devices: what one device finds, each test review once, one record, and no process left behind.

Here a device is a process on the CPU.
"""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from tiny_experiments import DIVERGES, MODES

from lora_study.base.errors import ConfigError
from lora_study.cli import main
from lora_study.config import ExperimentConfig, TrainConfig, to_dict
from lora_study.model.classifier import ReviewClassifier
from lora_study.records.record import read_record, write_record
from lora_study.training import devices
from lora_study.training.experiment import run_experiment
from lora_study.training.places import Place, find_place
from lora_study.training.recording import new_record

# Dropout is off, since each device draws masks of its own. No size divides by 2, so the devices' shares differ, and of
# the last training batch, a single review, one device has none. At ten times the learning rate Adam would blow the
# rounding of gradients that are almost zero up to 2e-5 in the predictions.
EXACT = {
    "train": {"dropout_active": False, "epochs": 2, "learning_rate": 0.001},
    "data": {"batch_size": 7, "eval_batch_size": 8, "sizes": {"train": 120, "val": 61, "test": 99}},
}
FIRST = ["lora", "full"]


@pytest.fixture(autouse=True)
def not_started(monkeypatch):
    """As a user starts it, whatever started the tests."""
    for name in [
        name for name in os.environ if name.startswith("SLURM_") or name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    ]:
        monkeypatch.delenv(name, raising=False)


def on_two(changes: dict, **train) -> dict:
    return {**changes, "train": {**changes.get("train", {}), "devices": 2, **train}}


def run_all(configs: list[ExperimentConfig], results: Path) -> None:
    for config in configs:
        assert run_experiment(config, results).status == "completed"


def assert_same(results: Path, one: str, two: str) -> None:
    """Two runs' records, predictions and curves agree up to rounding."""
    first, second = (read_record(results / name / "seed-1" / "record.json") for name in (one, two))
    assert second.status == "completed", second.error
    assert second.parameters == first.parameters
    assert second.metrics["best_epoch"] == first.metrics["best_epoch"]
    for part in ("train", "val", "test"):
        assert second.metrics[part] == pytest.approx(first.metrics[part], abs=1e-5)
    tables = [pd.read_parquet(results / name / "seed-1" / "predictions.parquet") for name in (one, two)]
    assert tables[1]["id"].tolist() == tables[0]["id"].tolist(), "each test review once, in the same order"
    np.testing.assert_allclose(tables[1]["probability"], tables[0]["probability"], atol=1e-5)
    curves = [pd.read_csv(results / name / "seed-1" / "curves.csv").drop(columns="seconds") for name in (one, two)]
    pd.testing.assert_frame_equal(curves[1], curves[0], atol=1e-5, rtol=0)


def run_by_one_and_by_two(tiny, modes: list[str], folder: Path) -> Path:
    """Run modes by one process and by two; all in the same two, since starting them takes longest."""
    run_all([tiny(mode, **EXACT, name=f"{mode}-one") for mode in modes], folder)
    devices.start(2, partial(run_all, [tiny(mode, **on_two(EXACT), name=f"{mode}-two") for mode in modes], folder))
    return folder


@pytest.fixture(scope="module")
def results(tiny, tmp_path_factory: pytest.TempPathFactory):
    return run_by_one_and_by_two(tiny, FIRST, tmp_path_factory.mktemp("results"))


@pytest.mark.parametrize("mode", FIRST)
def test_two_processes_find_what_one_finds(mode, results):
    assert_same(results, f"{mode}-one", f"{mode}-two")


@pytest.mark.slow
def test_two_processes_find_what_one_finds_in_every_other_mode(tiny, tmp_path):
    modes = [mode for mode in MODES if mode not in (*FIRST, "cached", "bf16")]
    run_by_one_and_by_two(tiny, modes, tmp_path)
    for mode in modes:
        assert_same(tmp_path, f"{mode}-one", f"{mode}-two")


def test_each_epoch_and_each_device_drops_out_other_units():
    """Or the noise of dropout would be the same in both halves of a batch."""

    def numbers(seed: int, epoch: int, rank: int) -> tuple:
        classifier = ReviewClassifier(torch.nn.Linear(1, 1), ExperimentConfig(seed=seed))
        classifier.trainer = SimpleNamespace(current_epoch=epoch, global_rank=rank)
        classifier.on_train_epoch_start()
        return tuple(torch.rand(3).tolist())

    with torch.random.fork_rng(devices=[]):
        drawn = {numbers(seed, epoch, rank) for seed in (0, 1) for epoch in (0, 1) for rank in (0, 1)}
        assert len(drawn) == 8
        assert numbers(1, 1, 1) in drawn


@pytest.mark.parametrize(
    ("environment", "train", "place"),
    [
        ({}, {}, Place(0, 0)),
        ({}, {"devices": 2}, None),
        ({"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}, {"devices": 2, "num_nodes": 2}, Place(3, 1)),
        (
            {"SLURM_NTASKS": "4", "SLURM_PROCID": "2", "SLURM_LOCALID": "0"},
            {"devices": 2, "num_nodes": 2},
            Place(2, 0),
        ),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "2", "SLURM_LOCALID": "2"}, {}, Place(0, 0)),
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, {"devices": 2}, None),
        ({"RANK": "0"}, {}, Place(0, 0)),
        ({"RANK": "0", "WORLD_SIZE": "1"}, {}, Place(0, 0)),
        ({"RANK": ""}, {}, Place(0, 0)),
        ({"RANK": "", "LOCAL_RANK": "", "WORLD_SIZE": ""}, {"devices": 2}, None),
        ({"SLURM_NTASKS": "2"}, {}, Place(0, 0)),
        (
            {"SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_STEP_ID": "0"},
            {"devices": 2},
            Place(0, 0),
        ),
        (
            {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "SLURM_STEP_ID": "4294967290"},
            {"devices": 2},
            None,
        ),
    ],
    ids=[
        *("one device", "two, not started", "torchrun", "srun", "srun of runs of their own", "a batch job's one task"),
        *("a rank alone", "the only rank", "an empty rank", "all empty", "an salloc shell", "srun's first task"),
        "a shell on a node of the job",
    ],
)
def test_a_process_knows_its_place(environment, train, place, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert find_place(TrainConfig(**train)) == place


@pytest.mark.parametrize(
    ("environment", "train", "words"),
    [
        ({}, {"num_nodes": 2}, r"train\.num_nodes: 2 .*torchrun or srun"),
        ({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}, {}, r"train\.devices: 1 .* 2 processes were started"),
        (
            {"SLURM_NTASKS": "3", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
            {"devices": 2},
            r"train\.devices: 2 .* 3 processes were started",
        ),
        ({"RANK": "0", "WORLD_SIZE": "2"}, {"devices": 2}, r"LOCAL_RANK not; start it with torchrun"),
        ({"RANK": "1"}, {}, r"RANK is set and LOCAL_RANK and WORLD_SIZE not; start it with torchrun"),
        ({"RANK": "first"}, {}, r"RANK: 'first' .* unset it"),
        ({"RANK": "-1", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}, {"devices": 2}, r"RANK: '-1' .* unset it"),
        ({"RANK": "2", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}, {"devices": 2}, r"\(2, 0\) .* 2 processes"),
        ({"SLURM_NTASKS": "many"}, {"devices": 2}, r"SLURM_NTASKS: 'many'"),
        ({"PL_TRAINER_LIMIT_TEST_BATCHES": "1"}, {}, r"PL_TRAINER_LIMIT_TEST_BATCHES: '1' .*unset it"),
        ({"SLURM_NTASKS": "2"}, {"devices": 2}, r"SLURM_NTASKS is 2, .* start it with srun, or unset"),
        (
            {"SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},  # in the script of a batch job
            {"devices": 2},
            r"SLURM_NTASKS is 2, .* start it with srun, or unset",
        ),
    ],
)
def test_other_processes_than_the_config_asks_for_are_refused(environment, train, words, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=words):
        find_place(TrainConfig(**train))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train": {"devices": 0}}, "train.devices: 0"),
        ({"train": {"num_nodes": 0}}, "train.num_nodes: 0"),
        ({"train": {"strategy": "ddp"}}, "train.strategy: 'ddp' .* train.devices above 1"),
        ({"train": {"strategy": "dp", "devices": 2}}, "strategy"),
        ({"train": {"accelerator": "mps", "devices": 2}}, "train.devices: 2 .* mps is one device"),
        (
            {"train": {"strategy": "fsdp", "devices": 2, "precision": "16-mixed", "accelerator": "gpu"}},
            "train.precision: '16-mixed' .* fsdp",
        ),
        ({"train": {"devices": 2}, "data": {"batch_size": 1}}, "data.batch_size: 1 .* use 2 or more"),
        (
            {"mode": "last_two_layers", "train": {"devices": 2, "cache_trunk": True}},
            "train.cache_trunk: True .* train.devices and train.num_nodes to 1",
        ),
    ],
)
def test_settings_that_do_not_go_with_several_devices_are_refused(changes, words, tiny):
    with pytest.raises(ConfigError, match=words) as error:
        tiny("lora", **changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_process_that_dies_when_all_is_written_costs_nothing(overwrite, tiny, tmp_path, monkeypatch):
    config = tiny("lora", **on_two(EXACT))
    folder = tmp_path / "lora" / "seed-1"
    if overwrite:
        write_record(new_record(config, "before", error="a failed run"), folder)

    def start(processes: int, work: object) -> None:
        write_record(dataclasses.replace(new_record(config, "now"), status="completed"), folder)
        raise devices.DeviceError("the process of device 1 ended: killed by SIGABRT")

    monkeypatch.setattr(devices, "start", start)
    assert run_experiment(config, tmp_path, overwrite=overwrite).status == "completed"
    assert read_record(folder / "record.json").provenance["command"] == "now"


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_process_that_dies_before_leaves_a_failed_record(overwrite, tiny, tmp_path, monkeypatch):
    config = tiny("lora", **on_two(EXACT))
    folder = tmp_path / "lora" / "seed-1"
    if overwrite:
        write_record(dataclasses.replace(new_record(config, "before"), status="completed"), folder)

    def start(processes: int, work: object) -> None:
        raise devices.DeviceError("the process of device 1 ended: killed by SIGKILL")

    monkeypatch.setattr(devices, "start", start)
    record = run_experiment(config, tmp_path, overwrite=overwrite)
    assert (record.status, record.error) == ("failed", "the process of device 1 ended: killed by SIGKILL")
    assert read_record(folder / "record.json") == record


@pytest.mark.parametrize("command", ["reproduce", "sweep"])
def test_torchrun_does_not_start_what_starts_processes_itself(command, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "0")
    option = {"reproduce": "--study", "sweep": "--config"}[command]
    assert main([command, option, "mini.yaml"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "without torchrun" in line


# From here on each test starts processes of its own.


@pytest.fixture
def file(tiny, tmp_path):
    """A config file of an experiment on two devices."""
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump(to_dict(tiny("lora", **on_two(EXACT), name="two"))))
    return path


def lora_study(*arguments: object, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    command = [sys.executable, *launcher, "-m", "lora_study", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher", [(), ("-m", "torch.distributed.run", "--nproc-per-node", "2")], ids=["plain", "torchrun"]
)
def test_a_run_speaks_once_and_writes_one_record(launcher, file, tmp_path, results):
    done = lora_study("run", "--config", file, "--results-dir", tmp_path, launcher=launcher)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "two" / "seed-1"
    assert done.stdout.count("test accuracy") == done.stdout.count(str(folder)) == 1
    assert done.stderr.count("val accuracy") == 2, "a line for each epoch"
    assert "Warning" not in done.stderr
    assert [path.name for path in (tmp_path / "two").iterdir()] == ["seed-1"]
    (results / "started").mkdir(exist_ok=True)
    shutil.copytree(folder, results / "started" / "seed-1", dirs_exist_ok=True)
    assert_same(results, "lora-one", "started")


@pytest.mark.slow
def test_a_study_runs_on_several_devices(file, tmp_path):
    study = tmp_path / "study.yaml"
    study.write_text(yaml.safe_dump({"name": "mini", "title": "A miniature", "experiments": [file.name]}))
    done = lora_study("reproduce", "--study", study, "--results-dir", tmp_path / "results")
    assert done.returncode == 0, done.stderr
    assert "1 of 1 runs completed" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["lora", "full"])
def test_weights_that_are_spread_over_the_devices_change_nothing(mode, tiny, tmp_path, results):
    run_experiment(tiny(mode, **on_two(EXACT, strategy="fsdp"), name=f"{mode}-spread"), results)
    assert_same(results, f"{mode}-one", f"{mode}-spread")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_compute_in_bf16_too(strategy, tiny, tmp_path):
    for name, changes in (("one", EXACT), ("two", on_two(EXACT, strategy=strategy))):
        record = run_experiment(tiny("bf16", **changes, name=name), tmp_path)
        assert record.status == "completed", record.error
    curves = [pd.read_csv(tmp_path / name / "seed-1" / "curves.csv") for name in ("one", "two")]
    # Not the test scores: bf16 may turn a validation review, and so choose another epoch.
    np.testing.assert_allclose(curves[1]["val_loss"].dropna(), curves[0]["val_loss"].dropna(), atol=0.005)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_run_on_two_devices_goes_on_after_it_was_killed(strategy, tiny, tmp_path):
    config = tiny("full", train={"epochs": 3, "devices": 2, "strategy": strategy, "keep_weights": True})
    with pytest.raises(devices.DeviceError, match="killed by SIGKILL"):
        devices.start(2, partial(run_until_killed, config, tmp_path / "pieces"))
    assert run_experiment(config, tmp_path / "pieces", resume=True).provenance["resumed_after_epochs"] == [1]
    run_experiment(config, tmp_path / "whole")
    for name in ("predictions.parquet", "adapter.safetensors"):
        files = [tmp_path / kind / "full" / "seed-1" / name for kind in ("pieces", "whole")]
        assert files[0].read_bytes() == files[1].read_bytes()


def run_until_killed(config: ExperimentConfig, results: Path) -> None:
    original, calls = ReviewClassifier.training_step, []

    def step(self, batch, index):
        calls.append(index)
        if len(calls) == 25 and self.global_rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, batch, index)

    ReviewClassifier.training_step = step
    run_experiment(config, results)


@pytest.mark.slow
def test_a_failed_run_on_two_devices_leaves_a_record_that_says_why(tiny, tmp_path):
    record = run_experiment(tiny("lora", **on_two(EXACT, **DIVERGES)), tmp_path)
    assert record.status == "failed"
    assert "not finite at step 2;" in record.error
    assert read_record(tmp_path / "lora" / "seed-1" / "record.json") == record


@pytest.mark.slow
def test_a_users_mistake_on_two_devices_is_one_line(file, tmp_path):
    done = lora_study("run", "--config", file, "--results-dir", tmp_path, "--data.source", "nowhere.csv")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "nowhere.csv" in line


@pytest.mark.slow
def test_a_process_that_dies_ends_the_others(tmp_path):
    with pytest.raises(devices.DeviceError, match="device 1 ended: killed by SIGKILL"):
        devices.start(2, partial(die_or_wait, tmp_path / "ended"))
    assert not (tmp_path / "ended").exists()


def die_or_wait(path: Path) -> None:
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)
    path.touch()
