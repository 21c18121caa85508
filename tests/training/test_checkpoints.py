"""checkpoints.py: an interrupted run goes on and ends as if it had not been; a bad checkpoint costs time only."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_experiments import MODES

from lora_study.config import to_dict
from lora_study.model.classifier import ReviewClassifier
from lora_study.records.record import read_record
from lora_study.training.checkpoints import CheckpointError, read_checkpoint, write_checkpoint
from lora_study.training.experiment import run_experiment

RESUMABLE = [mode for mode in MODES if mode != "cached"]  # which trains for a moment and keeps no checkpoint
SHORT = {"data": {"sizes": {"train": 120, "val": 30, "test": 60}}}
STEPS = 10  # per epoch of these


class Killed(BaseException):
    """Ends a run on the spot: no failed record, nothing tidied up."""


def checkpoint_of(results, name):
    return results / name / ".seed-1.checkpoint" / "epoch.safetensors"


def run_until(monkeypatch, where, call, config, results, **options):
    """Start a run that is killed in a given call of one of its steps."""
    calls, original = 0, getattr(ReviewClassifier, where)

    def step(self, batch, index):
        nonlocal calls
        calls += 1
        if calls == call:
            raise Killed
        return original(self, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(ReviewClassifier, where, step)
        with pytest.raises(Killed):
            run_experiment(config, results, **options)


def outcome(results, name):
    """All that a run found out, apart from what depends on the clock."""
    folder = results / name / "seed-1"
    record = read_record(folder / "record.json")
    assert record.status == "completed", record.error
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".parquet", ".safetensors")}
    curves = pd.read_csv(folder / "curves.csv").drop(columns="seconds").to_csv()
    return record.metrics, record.parameters, record.data, files, curves


@pytest.mark.parametrize("mode", RESUMABLE)
def test_a_run_that_is_killed_goes_on_and_ends_as_if_it_had_not_been(mode, tiny, tmp_path, monkeypatch):
    config = tiny(mode, **SHORT, train={**MODES[mode].get("train", {}), "keep_weights": True})
    run_experiment(config, tmp_path / "whole")
    pieces = tmp_path / "pieces"
    run_until(monkeypatch, "training_step", STEPS + 7, config, pieces)
    run_until(monkeypatch, "training_step", STEPS + 1, config, pieces, resume=True)  # in the third epoch
    assert not (pieces / mode / "seed-1").exists()
    record = run_experiment(config, pieces, resume=True)
    assert record.provenance["resumed_after_epochs"] == [1, 2]
    assert outcome(pieces, mode) == outcome(tmp_path / "whole", mode)
    assert [path.name for path in (pieces / mode).iterdir()] == ["seed-1"], "the checkpoint is removed"


def test_a_learning_rate_goes_on_where_its_schedule_was(tiny, tmp_path, monkeypatch):
    config = tiny("lora", **SHORT, train={"schedule": "cosine", "warmup": 0.5}, lora={"lr_ratio": 4})
    run_experiment(config, tmp_path / "whole")
    run_until(monkeypatch, "training_step", STEPS + 7, config, tmp_path / "pieces")
    assert run_experiment(config, tmp_path / "pieces", resume=True).provenance["resumed_after_epochs"] == [1]
    assert outcome(tmp_path / "pieces", "lora") == outcome(tmp_path / "whole", "lora")


def test_loggers_are_told_the_steps_of_the_whole_run(tiny, tmp_path, monkeypatch):
    config = tiny("lora", **SHORT, train={"logger": "csv", "epochs": 3})
    run_experiment(config, tmp_path / "whole")
    run_until(monkeypatch, "training_step", STEPS + 7, config, tmp_path / "pieces")
    run_experiment(config, tmp_path / "pieces", resume=True)
    whole, *pieces = (
        pd.read_csv(path).set_index("step").reindex(columns=["val/loss", "test/loss"]).dropna(how="all")
        for path in sorted(tmp_path.glob("*/logs/lora/seed-1/*/metrics.csv"), reverse=True)
    )
    assert whole.index.tolist() == [STEPS - 1, 2 * STEPS - 1, 3 * STEPS - 1, 3 * STEPS]
    pd.testing.assert_frame_equal(pd.concat(pieces[::-1]), whole)


def test_a_run_that_is_killed_while_it_is_tested_is_not_trained_again(tiny, tmp_path, monkeypatch):
    run_experiment(tiny("full", **SHORT), tmp_path / "whole")
    pieces = tmp_path / "pieces"
    run_until(monkeypatch, "test_step", 2, tiny("full", **SHORT), pieces)

    def train(*_):
        raise AssertionError("training goes on")

    monkeypatch.setattr(ReviewClassifier, "training_step", train)
    record = run_experiment(tiny("full", **SHORT), pieces, resume=True)
    assert record.provenance["resumed_after_epochs"] == [3]
    assert outcome(pieces, "full") == outcome(tmp_path / "whole", "full")


def test_the_time_of_all_pieces_is_added_up(tiny, tmp_path, monkeypatch):
    run_until(monkeypatch, "training_step", 2 * STEPS + 1, tiny("lora", **SHORT), tmp_path)
    tensors, state = read_checkpoint(checkpoint_of(tmp_path, "lora"))
    state["seconds"] = {"fit": state["seconds"]["fit"] + 1000, "total": state["seconds"]["total"] + 2000}
    state["curves"]["train_seconds"] += 500
    write_checkpoint(checkpoint_of(tmp_path, "lora"), tensors, state | {"peak_bytes": 10**15})
    record = run_experiment(tiny("lora", **SHORT), tmp_path, resume=True)
    timing = record.timing
    assert 500 < timing["train_seconds"] < 600 < 1000 < timing["fit_seconds"] < 1100
    assert 2000 < timing["total_seconds"] < 2100
    assert record.memory["peak_bytes"] == 10**15
    seconds = pd.read_csv(tmp_path / "lora" / "seed-1" / "curves.csv")["seconds"]
    assert seconds.iloc[-1] == timing["train_seconds"]


def test_an_uninterrupted_run_says_so(tiny, tmp_path):
    record = run_experiment(tiny("lora", **SHORT), tmp_path, resume=True)
    assert record.provenance["resumed_after_epochs"] == []
    assert [path.name for path in (tmp_path / "lora").iterdir()] == ["seed-1"]


def test_a_checkpoint_holds_nothing_of_the_frozen_weights(tiny, tmp_path, monkeypatch):
    run_until(monkeypatch, "training_step", STEPS + 1, tiny("lora", **SHORT), tmp_path)
    path = checkpoint_of(tmp_path, "lora")
    with safe_open(path, "pt") as file:
        names = list(file.keys())
    assert names
    assert all(name.endswith((".lora_A", ".lora_B")) for name in names)
    adapter = 4 * sum(value.numel() for name, value in load_file(path).items() if name.startswith("trained."))
    assert path.stat().st_size < 5 * adapter + 30_000, "weights, best weights, two moments, and some JSON"


def test_without_resume_a_run_starts_over_and_says_so(tiny, tmp_path, monkeypatch, capsys):
    run_until(monkeypatch, "training_step", STEPS + 1, tiny("lora", **SHORT), tmp_path)
    words = "has a checkpoint of an earlier try, from which --resume would go on"
    assert words not in capsys.readouterr().err
    assert run_experiment(tiny("lora", **SHORT), tmp_path).provenance["resumed_after_epochs"] == []
    assert words in capsys.readouterr().err


def test_a_failed_run_keeps_its_checkpoint(tiny, tmp_path, monkeypatch):
    """The cause may pass, as when another process took the memory."""
    original, calls = ReviewClassifier.training_step, []

    def step(self, batch, index):
        calls.append(index)
        if len(calls) == STEPS + 3:
            torch.empty(2**62 // 2**16, dtype=torch.uint8)  # more than any machine has
        return original(self, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(ReviewClassifier, "training_step", step)
        failed = run_experiment(tiny("lora", **SHORT), tmp_path)
    assert failed.status == "failed"
    assert "lower data.batch_size or data.max_length" in failed.error
    assert "\n" not in failed.error
    assert run_experiment(tiny("lora", **SHORT), tmp_path, resume=True).provenance["resumed_after_epochs"] == [1]


def flip(path):
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "flipped": flip,
    "empty": lambda path: path.write_bytes(b""),
    "pickled": lambda path: torch.save({"trained": torch.zeros(2)}, path),
    "foreign": lambda path: save_file({"weight": torch.zeros(2)}, path),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_checkpoint_is_read_as_it_was_written_or_not_at_all(damage, tmp_path):
    path = tmp_path / "epoch.safetensors"
    tensors, state = {"trained.a": torch.randn(3, 4), "step.a": torch.tensor(7.0)}, {"epoch": 1, "rows": [{"x": 0.1}]}
    write_checkpoint(path, tensors, state)
    read, same_state = read_checkpoint(path)
    assert same_state == state
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)
    damage(path)
    with pytest.raises(CheckpointError, match="it is damaged"):
        read_checkpoint(path)


def poison(path):
    tensors, state = read_checkpoint(path)
    name = next(name for name in tensors if name.startswith("exp_avg_sq."))
    write_checkpoint(path, tensors | {name: tensors[name] * torch.nan}, state)


def of_another_run(field, value):
    """Makes a checkpoint one of a run with another value of a field."""

    def change(path):
        tensors, state = read_checkpoint(path)
        write_checkpoint(path, tensors, state | {"identity": state["identity"] | {field: value}})

    return change


@pytest.fixture(scope="module")
def interrupted(tiny, tmp_path_factory):
    """The checkpoint of a run that was killed in its second epoch, and what the run would have found."""
    folder = tmp_path_factory.mktemp("interrupted")
    with pytest.MonkeyPatch.context() as patch:
        run_until(patch, "training_step", STEPS + 1, tiny("lora", **SHORT), folder)
    run_experiment(tiny("lora", **SHORT), folder / "whole")
    return checkpoint_of(folder, "lora").read_bytes(), outcome(folder / "whole", "lora")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (flip, "damaged"),
        (poison, "not finite"),
        (of_another_run("data.fingerprint", "other"), r"another data\.fingerprint"),
        (of_another_run("lora.r", 2), r"another lora\.r \(2, now 4\)"),
    ],
)
def test_a_checkpoint_that_is_no_good_is_named_and_the_run_starts_over(
    damage, words, interrupted, tiny, tmp_path, caplog
):
    path = checkpoint_of(tmp_path, "lora")
    path.parent.mkdir(parents=True)
    content, expected = interrupted
    path.write_bytes(content)
    damage(path)
    record = run_experiment(tiny("lora", **SHORT), tmp_path, resume=True)
    assert record.provenance["resumed_after_epochs"] == []
    assert outcome(tmp_path, "lora") == expected
    (line,) = [entry.getMessage() for entry in caplog.records if "checkpoint" in entry.getMessage()]
    assert "\n" not in line
    assert pytest.raises(AssertionError, match=words).matches(AssertionError(line))


def flip_labels(reviews, backbone):
    table = pd.read_csv(reviews)
    table.assign(label=1 - table["label"]).to_csv(reviews, index=False)


def change_a_weight(reviews, backbone):
    content = bytearray((backbone / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (backbone / "model.safetensors").write_bytes(content)


@pytest.mark.parametrize(("change", "field"), [(flip_labels, "data.fingerprint"), (change_a_weight, "encoder.sha256")])
def test_a_run_does_not_go_on_with_other_reviews_or_another_encoder(
    change, field, tiny, reviews_csv, tiny_backbone, tmp_path, monkeypatch, caplog
):
    reviews, backbone = tmp_path / "reviews.csv", tmp_path / "distilbert"
    shutil.copyfile(reviews_csv, reviews)
    shutil.copytree(tiny_backbone, backbone)
    own = {"data": SHORT["data"] | {"source": str(reviews)}, "model": {"backbone": str(backbone)}}
    run_until(monkeypatch, "training_step", STEPS + 1, tiny("lora", **own), tmp_path)
    change(reviews, backbone)
    record = run_experiment(tiny("lora", **own), tmp_path, resume=True)
    assert record.provenance["resumed_after_epochs"] == []
    assert f"another {field}" in caplog.text


def test_a_run_goes_on_where_its_reviews_and_encoder_were_moved(
    tiny, reviews_csv, tiny_backbone, tmp_path, monkeypatch
):
    def lying_in(folder):
        folder.mkdir()
        shutil.copyfile(reviews_csv, folder / "reviews.csv")
        shutil.copytree(tiny_backbone, folder / "distilbert")
        data = SHORT["data"] | {"source": str(folder / "reviews.csv")}
        return tiny("lora", data=data, model={"backbone": str(folder / "distilbert")})

    run_until(monkeypatch, "training_step", STEPS + 1, lying_in(tmp_path / "here"), tmp_path / "results")
    path = checkpoint_of(tmp_path / "results", "lora")
    of_another_run("data.source", "where it lay")(path)  # as in a checkpoint of an earlier version
    record = run_experiment(lying_in(tmp_path / "there"), tmp_path / "results", resume=True)
    assert record.provenance["resumed_after_epochs"] == [1]


def test_a_full_disk_costs_the_checkpoint_and_not_the_run(tiny, tmp_path, monkeypatch, caplog):
    def no_space(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lora_study.training.checkpoints.save_file", no_space)
    assert run_experiment(tiny("lora", **SHORT), tmp_path).status == "completed"
    assert "no checkpoint is kept of epoch 1: [Errno 28] No space left on device" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["first epoch", "second epoch"])
def test_a_run_survives_sigkill(moment, tiny, tmp_path):
    """A process that is killed outright, at whatever it is doing, loses an epoch at most."""
    config = tiny("lora", train={"epochs": 60})
    file = tmp_path / "experiment.yaml"
    file.write_text(yaml.safe_dump(to_dict(config)))
    command = [sys.executable, "-m", "lora_study", "run", "--config", str(file), "--results-dir", str(tmp_path / "a")]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    checkpoint = checkpoint_of(tmp_path / "a", "lora")
    while process.poll() is None and not (moment == "first epoch" or checkpoint.exists()):
        time.sleep(0.01)
    time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    subprocess.run([*command, "--resume"], check=True, capture_output=True)
    run_experiment(config, tmp_path / "b")
    assert outcome(tmp_path / "a", "lora") == outcome(tmp_path / "b", "lora")
    resumed = json.loads((tmp_path / "a/lora/seed-1/record.json").read_text())["provenance"]["resumed_after_epochs"]
    assert bool(resumed) == (moment == "second epoch")
