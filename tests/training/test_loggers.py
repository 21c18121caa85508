"""loggers.py: what a run finds out is written for other tools, too, and changes nothing."""

from pathlib import Path

import pandas as pd
import pytest
import torch

from lora_study.base.errors import ConfigError
from lora_study.config import ExperimentConfig
from lora_study.model.classifier import ReviewClassifier
from lora_study.records.record import read_records
from lora_study.training.experiment import run_experiment

SHORT = {"sizes": {"train": 240, "val": 20, "test": 40}}
LOGGED = {"train/loss", "train/accuracy", "val/loss", "val/accuracy", "test/loss", "test/accuracy"}


def logged(tiny, logger: str | None, results: Path) -> tuple[ExperimentConfig, dict, dict[str, bytes]]:
    """A short run with this logger: its config, its scores, and its files apart from the clock's."""
    config = tiny("lora", seed=4, data=SHORT, train={"epochs": 2, "logger": logger})
    record = run_experiment(config, results)
    assert record.status == "completed", record.error
    files = {
        name: (results / "lora/seed-4" / name).read_bytes() for name in ("adapter.safetensors", "predictions.parquet")
    }
    return config, record.metrics, files


def test_a_logger_changes_nothing_and_writes_beside_the_experiments(tiny, tmp_path, monkeypatch):
    _, metrics, files = logged(tiny, None, tmp_path / "none")
    assert not (tmp_path / "none/logs").exists()
    monkeypatch.setenv("MY_TOKEN", tiny("lora").model.backbone)
    config, same_metrics, same_files = logged(tiny, "csv", tmp_path / "csv")
    assert (same_metrics, same_files) == (metrics, files)
    assert [record.name for record in read_records(tmp_path / "csv")[0]] == ["lora"]

    folder = tmp_path / "csv/logs/lora/seed-4/version_0"
    table = pd.read_csv(folder / "metrics.csv")
    assert set(table) >= LOGGED
    assert table["train/loss"].notna().sum() == 2 * 20 / 10
    assert table["val/accuracy"].max() == pytest.approx(metrics["val"]["accuracy"])
    assert table["test/accuracy"].dropna().tolist() == [pytest.approx(metrics["test"]["accuracy"])], (
        "not those of train"
    )
    settings = (folder / "hparams.yaml").read_text()
    assert "learning_rate: 0.01" in settings and config.model.backbone not in settings

    run_experiment(config, tmp_path / "csv", overwrite=True)
    assert (folder.parent / "version_1/metrics.csv").exists() and (folder / "metrics.csv").exists()


def test_the_training_accuracy_is_of_its_own_epoch(tiny, tmp_path, monkeypatch):
    original = ReviewClassifier.step

    def all_wrong_then_all_right(self, batch):
        right = torch.nn.functional.one_hot(batch["labels"], 2).float()
        return original(self, batch)[0], right if self.current_epoch == 1 else 1 - right

    monkeypatch.setattr(ReviewClassifier, "step", all_wrong_then_all_right)
    logged(tiny, "csv", tmp_path)
    table = pd.read_csv(tmp_path / "logs/lora/seed-4/version_0/metrics.csv").dropna(subset="train/accuracy")
    assert table.groupby("epoch")["train/accuracy"].agg(["min", "max"]).to_numpy().tolist() == [[0, 0], [1, 1]]


def test_tensorboard_has_the_metrics(tiny, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, metrics, _ = logged(tiny, "tensorboard", tmp_path)
    events = EventAccumulator(str(tmp_path / "logs/lora/seed-4/version_0"))
    events.Reload()
    assert set(events.Tags()["scalars"]) >= LOGGED
    assert events.Scalars("test/accuracy")[-1].value == pytest.approx(metrics["test"]["accuracy"])


def test_mlflow_has_the_metrics_and_settings(tiny, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    _, metrics, _ = logged(tiny, "mlflow", tmp_path)
    client = mlflow.MlflowClient(f"file:{tmp_path}/logs/mlruns")
    (run,) = client.search_runs([client.get_experiment_by_name("lora").experiment_id])
    assert run.info.run_name == "seed-4" and run.data.params["train/learning_rate"] == "0.01"
    assert set(run.data.metrics) >= LOGGED
    assert run.data.metrics["test/accuracy"] == pytest.approx(metrics["test"]["accuracy"])


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_missing_package_is_said_before_any_work(name, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    remedy = rf"train\.logger: '{name}' needs the package {name}; pip install 'lora-study\[{name}\]'"
    with pytest.raises(ConfigError, match=remedy):
        run_experiment(tiny("lora", data={"source": "nowhere.csv"}, train={"logger": name}), tmp_path)
    assert list(tmp_path.iterdir()) == []
