"""experiment.py: a tiny random DistilBERT trains in every mode on real sentences, and the record says what happened."""

import dataclasses
import json
import math
import shutil
from pathlib import Path
from unittest.mock import Mock

import filelock
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from tiny_experiments import DIVERGES, MODES

from lora_study.base import machine as provenance
from lora_study.base import progress
from lora_study.base.errors import ConfigError
from lora_study.config_files import experiment_from
from lora_study.data import datamodule
from lora_study.model.classifier import ReviewClassifier
from lora_study.records.record import read_record
from lora_study.sharing.trained import load_run
from lora_study.training import head_features, stages
from lora_study.training.experiment import run_experiment
from lora_study.training.recording import reason


@pytest.fixture(scope="session")
def runs(tiny, tmp_path_factory: pytest.TempPathFactory):
    """One finished run per mode: its record and its folder."""
    results = tmp_path_factory.mktemp("results")
    return {name: (run_experiment(tiny(name), results), results / name / "seed-1") for name in MODES}


@pytest.mark.parametrize("name", MODES)
def test_the_loss_falls_and_the_test_accuracy_is_above_chance(runs, name):
    record, folder = runs[name]
    assert record.status == "completed", record.error
    losses = pd.read_csv(folder / "curves.csv")["train_loss"].dropna()
    assert losses.tail(8).mean() < losses.head(8).mean() - 0.02
    assert record.metrics["test"]["accuracy"] > 0.6


@pytest.mark.parametrize("name", MODES)
def test_the_record_holds_what_the_design_promises(runs, tiny, name):
    record, folder = runs[name]
    assert read_record(folder / "record.json") == record
    assert experiment_from(record.config) == tiny(name)
    assert record.metrics["train_mode"] is True
    counts = record.parameters
    assert counts["trainable"] == counts["lora"] + counts["head"] + counts["base"] > 0
    assert [record.metrics[part]["n"] for part in ("train", "val", "test")] == [240, 60, 100]
    assert record.data["sizes"] == {"train": 240, "val": 60, "test": 100}
    assert 1e7 < record.memory["peak_bytes"] <= record.memory["peak_bytes_with_scoring"]
    timing = record.timing
    assert timing["train_cpu_seconds"] > 0
    assert timing["train_examples_per_second"] == pytest.approx(3 * 240 / timing["train_seconds"])
    assert 0 < timing["train_seconds"] <= timing["fit_seconds"] <= timing["total_seconds"]
    assert {"commit", "dirty", "versions", "hardware", "command", "seeds", "rules_sha256"} <= record.provenance.keys()
    today = read_record(Path(__file__).parents[1] / "records" / "record_of_today.json")
    assert record.flat.keys() == today.flat.keys(), "a record of another shape needs a fixture of its own"


@pytest.mark.parametrize("name", MODES)
def test_predictions_agree_with_the_metrics_and_cover_each_test_review_once(runs, name):
    record, folder = runs[name]
    predictions = pd.read_parquet(folder / "predictions.parquet")
    assert list(predictions.columns) == ["id", "label", "probability"]
    assert predictions["id"].is_unique
    assert len(predictions) == 100
    labels, probability = (predictions[name].to_numpy() for name in ("label", "probability"))
    said, test = probability > 0.5, record.metrics["test"]
    assert test["accuracy"] == pytest.approx((said == labels).mean())
    assert test["loss"] == pytest.approx(-np.log(np.where(labels, probability, 1 - probability)).mean(), abs=1e-5)
    f1 = [2 * ((said == k) & (labels == k)).sum() / ((said == k).sum() + (labels == k).sum()) for k in (0, 1)]
    assert test["f1"] == pytest.approx(np.mean(f1))
    positive, negative = probability[labels == 1][:, None], probability[labels == 0]
    assert test["auroc"] == pytest.approx(((positive > negative) + 0.5 * (positive == negative)).mean(), abs=1e-5)


@pytest.mark.parametrize("name", MODES)
def test_the_adapter_holds_what_was_trained_and_the_head_but_nothing_else(runs, name):
    record, folder = runs[name]
    path = folder / "adapter.safetensors"
    with safe_open(path, "pt") as file:
        shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
        assert {file.get_slice(key).get_dtype() for key in shapes} == {"F32"}
    head = {key: shape for key, shape in shapes.items() if key.startswith(("pre_classifier", "classifier"))}
    assert len(head) == 4
    below = {"partial": "distilbert.transformer.layer.1.", "full": "distilbert."}.get(name)
    trained = {key for key in shapes if (key.startswith(below) if below else ".lora.lora_" in key)}
    assert set(shapes) - set(head) == trained
    size = sum(int(np.prod(shape)) for shape in shapes.values())
    frozen_head = 0 if record.parameters["head"] else sum(int(np.prod(shape)) for shape in head.values())
    assert size == record.parameters["trainable"] + frozen_head


def test_curves_have_one_validation_per_epoch_and_the_best_epoch_is_tested(runs):
    record, folder = runs["full"]
    curves = pd.read_csv(folder / "curves.csv")
    assert list(curves.columns) == [
        *("step", "epoch", "train_loss", "val_loss", "val_accuracy", "learning_rate", "seconds")
    ]
    validations = curves.dropna(subset="val_accuracy")
    assert validations["epoch"].tolist() == [1, 2, 3]
    assert record.metrics["best_epoch"] == validations["epoch"].iloc[validations["val_accuracy"].argmax()]
    assert record.metrics["val"]["accuracy"] == validations["val_accuracy"].max()


@pytest.mark.parametrize(
    ("schedule", "warmup", "share"),
    [
        ("linear", 0.0, lambda step: 1 - step / 12),
        ("linear", 0.25, lambda step: step / 3 if step < 3 else (12 - step) / 9),
        ("cosine", 0.2, lambda step: step / 3 if step < 3 else (1 + math.cos(math.pi * (step - 3) / 9)) / 2),
        ("constant", 0.5, lambda step: min(1, step / 6)),
    ],
)
def test_the_learning_rate_takes_the_course_that_the_config_says(schedule, warmup, share, tiny, tmp_path):
    sizes = {"train": 48, "val": 10, "test": 10}
    train = {"epochs": 3, "learning_rate": 0.003, "schedule": schedule, "warmup": warmup}
    record = run_experiment(tiny("cached", data={"sizes": sizes}, train={**train, "cache_trunk": True}), tmp_path)
    curves = pd.read_csv(tmp_path / "cached/seed-1/curves.csv").dropna(subset="train_loss")
    assert curves["step"].tolist() == list(range(1, 13))
    np.testing.assert_allclose(curves["learning_rate"], [0.003 * share(step) for step in range(12)], atol=1e-12)
    here = {entry["field"]: (entry["article"], entry["here"]) for entry in record.deviations}
    assert here.get("train.schedule", ("constant", "constant")) == ("constant", schedule)
    assert here.get("train.warmup", (0.0, 0.0)) == (0.0, warmup)


def test_the_best_epochs_weights_are_the_ones_tested(tiny, tmp_path):
    """Training on from a good epoch into worse ones changes nothing: the good epoch is what is tested."""
    long = run_experiment(tiny("full", name="long", train={"epochs": 6, "learning_rate": 0.02}), tmp_path)
    best = long.metrics["best_epoch"]
    assert best < 6, "the learning rate is chosen so that late epochs are worse"
    short = run_experiment(tiny("full", name="short", train={"epochs": best, "learning_rate": 0.02}), tmp_path)
    assert short.metrics["test"] == long.metrics["test"]


def identity(record):
    return record.metrics, record.parameters, record.data


def test_the_same_seed_gives_the_same_record_and_another_seed_does_not(tiny, runs, tmp_path):
    record, folder = runs["lora"]
    again = run_experiment(tiny("lora"), tmp_path)
    assert identity(again) == identity(record)
    for name in ("predictions.parquet", "adapter.safetensors"):
        assert (tmp_path / "lora" / "seed-1" / name).read_bytes() == (folder / name).read_bytes()
    other = run_experiment(dataclasses.replace(tiny("lora"), seed=2), tmp_path)
    assert other.metrics != record.metrics
    assert other.data == record.data, "the split does not depend on the run's seed"


def test_a_cached_trunk_gives_what_a_live_one_gives_without_dropout(tiny, tiny_backbone, tmp_path):
    backbone = shutil.copytree(tiny_backbone, tmp_path / "backbone")
    shape = json.loads((backbone / "config.json").read_text())
    (backbone / "config.json").write_text(json.dumps(shape | {"seq_classif_dropout": 0.0}))
    live, cached = (
        run_experiment(tiny(name, model={"backbone": str(backbone), "dropout": 0.0}), tmp_path)
        for name in ("last_two_layers", "cached")
    )
    for part in ("train", "val", "test"):
        assert cached.metrics[part]["loss"] == pytest.approx(live.metrics[part]["loss"], abs=1e-5)
        assert cached.metrics[part]["accuracy"] == pytest.approx(live.metrics[part]["accuracy"], abs=0.011)


def test_a_trial_of_a_sweep_computes_no_features_of_test_reviews(tiny, tmp_path, monkeypatch):
    def counting(classifier, batches, *others):
        read.append(len(batches.dataset))
        return compute(classifier, batches, *others)

    read, compute = [], head_features.trunk_features
    monkeypatch.setattr(head_features, "trunk_features", counting)
    assert run_experiment(tiny("cached", score_test=False), tmp_path).metrics["train"]["n"] == 240
    assert read == [240, 60]
    assert run_experiment(tiny("cached"), tmp_path / "tested").metrics["test"]["n"] == 100
    assert read == [240, 60, 240, 60, 100]


def test_dropout_acts_during_training_unless_switched_off(tiny, tiny_backbone, runs, tmp_path):
    """Eval mode gives what no dropout gives, which is not what dropout gives."""
    off = run_experiment(tiny("full", train={"dropout_active": False}), tmp_path / "off")
    assert off.metrics.pop("train_mode") is False
    backbone = shutil.copytree(tiny_backbone, tmp_path / "backbone")
    shape = json.loads((backbone / "config.json").read_text())
    (backbone / "config.json").write_text(json.dumps(shape | {"seq_classif_dropout": 0.0}))
    none = run_experiment(tiny("full", model={"backbone": str(backbone), "dropout": 0.0}), tmp_path / "none")
    assert none.metrics.pop("train_mode") is True
    assert off.metrics["train"]["loss"] == pytest.approx(none.metrics["train"]["loss"], abs=1e-4)
    assert off.metrics["train"]["loss"] != pytest.approx(runs["full"][0].metrics["train"]["loss"], abs=1e-4)


def test_padding_to_the_cap_changes_nothing_but_rounding(tiny, runs, tmp_path):
    padded = run_experiment(tiny("lora", data={"padding": "max_length"}), tmp_path)
    assert padded.metrics["test"]["loss"] == pytest.approx(runs["lora"][0].metrics["test"]["loss"], abs=1e-3)


@pytest.mark.parametrize("name", ["lora", "cached"])
def test_of_many_training_reviews_the_first_are_scored(tiny, runs, tmp_path, monkeypatch, name):
    monkeypatch.setattr(stages, "MOST_TRAIN", 70)
    record, whole = run_experiment(tiny(name), tmp_path), runs[name][0]
    assert [record.metrics[part]["n"] for part in ("train", "val", "test")] == [70, 60, 100]
    assert record.metrics["test"] == whole.metrics["test"]
    assert record.metrics["train"]["loss"] != whole.metrics["train"]["loss"]
    assert round(record.metrics["train"]["accuracy"] * 70, 4) % 1 == 0


def test_progress_counts_the_reviews_that_are_scored(tiny, tmp_path, monkeypatch, capsys):
    totals = []
    monkeypatch.setattr(stages, "MOST_TRAIN", 70)
    monkeypatch.setattr(progress, "Meter", lambda what, total: totals.append((what, total)) or Mock())
    run_experiment(tiny("lora"), tmp_path)
    assert totals == [("scored ", 70), ("scored ", 100)]


def test_too_few_reviews_to_score_are_found_before_training(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(datamodule, "MOST_TRAIN", 10)
    with pytest.raises(ConfigError, match=r"data\.drop_last: of train, 10 reviews"):
        run_experiment(tiny("lora", data={"drop_last": True, "eval_batch_size": 12}), tmp_path)


def test_drop_last_leaves_the_last_incomplete_batch_unscored_and_says_so(tiny, runs, tmp_path):
    record = run_experiment(tiny("lora", data={"drop_last": True, "eval_batch_size": 12}), tmp_path)
    assert [record.metrics[part]["n"] for part in ("train", "val", "test")] == [240, 60, 96]
    predictions = pd.read_parquet(tmp_path / "lora" / "seed-1" / "predictions.parquet")
    every = pd.read_parquet(runs["lora"][1] / "predictions.parquet")
    assert predictions["id"].tolist() == every["id"].tolist()[:96]
    np.testing.assert_allclose(predictions["probability"], every["probability"][:96], atol=1e-4)
    accuracy = ((predictions["probability"] > 0.5) == predictions["label"]).mean()
    assert record.metrics["test"]["accuracy"] == pytest.approx(accuracy)


def test_each_random_choice_has_a_seed_of_its_own(tiny, runs, tmp_path):
    choices = ("head_init", "lora_init", "data_order", "dropout")
    same = run_experiment(tiny("lora", seed=5, seeds=dict.fromkeys(choices, 1)), tmp_path)
    assert same.metrics == runs["lora"][0].metrics
    losses = {same.metrics["train"]["loss"]}
    for choice in choices:
        record = run_experiment(tiny("lora", name=choice, seeds={choice: 9}), tmp_path)
        assert record.provenance["seeds"][choice] == 9
        losses.add(record.metrics["train"]["loss"])
    assert len(losses) == 5, "every one of them matters"


def test_a_loss_that_is_not_finite_ends_in_a_failed_record_that_names_the_step(tiny, tmp_path):
    record = run_experiment(tiny("lora", train=DIVERGES), tmp_path)
    assert record.status == "failed"
    assert "not finite at step 2;" in record.error
    assert "lora.alpha" in record.error
    assert sorted(path.name for path in (tmp_path / "lora" / "seed-1").iterdir()) == ["record.json"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lora": {"r": 33}}, "r=33"),
        ({"lora": {"targets": ["querry"]}}, "'querry'"),
        ({"data": {"sizes": {"train": 5000}}}, "5,?000"),
        ({"data": {"source": "nowhere.csv"}}, "nowhere.csv"),
        (
            {"data": {"sizes": {"train": 303, "val": 60, "test": None}, "drop_last": True, "eval_batch_size": 40}},
            "data.drop_last: of test, 37 reviews would be scored, fewer than data.eval_batch_size 40",
        ),
        ({"model": {"backbone": "./nowhere"}}, "nowhere"),
        ({"train": {"accelerator": "mps"}}, "train.accelerator"),
        ({"train": {"accelerator": "auto", "precision": "16-mixed"}}, "train.precision"),
    ],
)
def test_a_users_mistake_is_one_line_and_leaves_no_run(tiny, tmp_path, changes, words):
    with pytest.raises(ConfigError, match=words) as error:
        run_experiment(tiny("lora", **changes), tmp_path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "lora").exists()


def test_an_encoder_too_small_for_the_texts_is_refused_before_they_are_read(tiny, tiny_backbone, tmp_path):
    backbone = shutil.copytree(tiny_backbone, tmp_path / "backbone")
    shape = json.loads((backbone / "config.json").read_text())
    for changes, words in (
        ({"max_position_embeddings": 47}, "data.max_length: 48 is more than the 47 positions"),
        ({"vocab_size": shape["vocab_size"] - 3}, f"vectors for {shape['vocab_size'] - 3} tokens"),
    ):
        (backbone / "config.json").write_text(json.dumps(shape | changes))
        config = tiny("lora", model={"backbone": str(backbone)}, data={"source": "nowhere.csv"})
        with pytest.raises(ConfigError, match=words):
            run_experiment(config, tmp_path / "results")
    assert not (tmp_path / "results" / "lora").exists()


def test_a_completed_run_is_kept_unless_it_is_to_be_overwritten(tiny, tmp_path):
    config = tiny("cached")
    run_experiment(config, tmp_path)
    path = tmp_path / "cached" / "seed-1" / "record.json"
    before = path.read_bytes()
    run_experiment(config, tmp_path)
    assert path.read_bytes() == before
    changed = tiny("cached", train={"epochs": 1})
    with pytest.raises(ConfigError, match=r"other settings \(train.epochs: 3 then, 1 now\).*--overwrite"):
        run_experiment(changed, tmp_path)
    assert path.read_bytes() == before
    run_experiment(changed, tmp_path, overwrite=True)
    assert read_record(path).config["train"]["epochs"] == 1


def test_a_full_disk_leaves_the_run_that_was_there(tiny, tmp_path, monkeypatch):
    run_experiment(tiny("cached"), tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.glob("cached/**/*") if path.is_file()}

    def no_space(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_parquet", no_space)
    with pytest.raises(OSError, match="No space left"):
        run_experiment(tiny("cached", train={"epochs": 1}), tmp_path, overwrite=True)
    assert {path: path.read_bytes() for path in tmp_path.glob("cached/**/*") if path.is_file()} == before
    assert [path.name for path in (tmp_path / "cached").iterdir()] == ["seed-1"]


def test_a_failed_run_is_tried_again(tiny, tmp_path):
    assert run_experiment(tiny("lora", train=DIVERGES), tmp_path).status == "failed"
    assert run_experiment(tiny("lora"), tmp_path).status == "completed"


def test_a_record_with_settings_that_are_gone_is_of_the_same_run(tiny, tmp_path):
    config = tiny("lora", train={"epochs": 1})
    done = run_experiment(config, tmp_path)
    path = tmp_path / "lora" / "seed-1" / "record.json"
    content = json.loads(path.read_text())
    content["config"]["train"]["compile"] = True
    content["config"]["model"]["num_labels"] = 2
    path.write_text(json.dumps(content))
    assert read_record(path) == done
    assert run_experiment(config, tmp_path) == done, "it is not run again, and not refused"
    assert load_run(path.parent).config == config
    content["config"]["train"]["complete"] = True
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"train\.complete: True then, None now"):
        run_experiment(config, tmp_path)


def test_a_damaged_record_is_not_overwritten(tiny, tmp_path):
    path = tmp_path / "lora" / "seed-1" / "record.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with pytest.raises(ConfigError, match=r"record\.json"):
        run_experiment(tiny("lora"), tmp_path)
    assert path.read_text() == "{"


def test_a_run_that_another_process_holds_is_refused(tiny, tmp_path):
    (tmp_path / ".locks").mkdir()
    with (
        filelock.FileLock(tmp_path / ".locks" / "lora-seed-1.lock"),
        pytest.raises(ConfigError, match="another process"),
    ):
        run_experiment(tiny("lora"), tmp_path)


def test_a_results_folder_that_cannot_be_written_is_named(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file"):
        run_experiment(tiny("lora"), tmp_path / "file")


def test_the_peak_of_memory_is_that_of_training_not_of_scoring(tiny, tmp_path, monkeypatch):
    done = []  # what had been done at each reading
    steps = []

    def note(name, step):
        return lambda self, *arguments: steps.append(name) or step(self, *arguments)

    def read(self):
        done.append(list(steps))
        return {"peak_bytes": 1000 * len(done), "kind": "resident set"}

    for name in ("training_step", "validation_step", "test_step"):
        monkeypatch.setattr(ReviewClassifier, name, note(name, getattr(ReviewClassifier, name)))
    monkeypatch.setattr(provenance.PeakMemory, "read", read)
    record = run_experiment(tiny("lora", train={"epochs": 2}), tmp_path)
    assert record.memory == {"peak_bytes": 1000, "peak_bytes_with_scoring": 2000, "kind": "resident set"}
    assert set(done[0]) == {"training_step"}
    assert "test_step" in done[1]


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_scores_of_numbers_that_are_none_are_a_failed_run(tiny, tmp_path, mode):
    """The only step breaks the weights, and its own loss is still a number."""
    one_step = {"data": {"sizes": {"train": 12, "val": 10, "test": 10}}, "train": {**DIVERGES, "epochs": 1}}
    record = run_experiment(tiny(mode, **one_step), tmp_path)
    assert record.status == "failed" and "logits are not finite; lower train.learning_rate" in record.error
    assert read_record(tmp_path / mode / "seed-1" / "record.json") == record


@pytest.mark.parametrize(
    ("error", "advised"),
    [
        (MemoryError("no room"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("could not create a primitive"), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_who_ran_out_of_memory_is_told_what_takes_less(error, advised):
    assert ("lower data.batch_size" in reason(error)) == advised
