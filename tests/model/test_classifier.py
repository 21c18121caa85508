"""classifier.py and datamodule.py in a Trainer of the user's own, which does all that Lightning does."""

import dataclasses
from pathlib import Path

import lightning as L
import pandas as pd
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from lora_study import ConfigError, ExperimentConfig, ReviewClassifier, ReviewDataModule
from lora_study.training.experiment import run_experiment

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers",  # by design, see ReviewDataModule
    "ignore:.*LeafSpec:FutureWarning",  # Lightning's own use of torch
    "ignore:.*custom batch sampler",  # every review is in a batch
    "ignore:.*callbacks used to create the checkpoint",  # the one that wrote it; it need not write here
)


def trainer_in(folder: Path, epochs: int, **options) -> L.Trainer:
    """A Trainer as a user would have it, but for what it prints."""
    return L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        default_root_dir=folder,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def trained(classifier: ReviewClassifier) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in classifier.named_parameters() if value.requires_grad}


@pytest.fixture(scope="module")
def config(tiny) -> ExperimentConfig:
    train = {"fast": False, "schedule": "cosine", "warmup": 0.2}
    config = tiny("lora", train=train, lora={"dropout": 0.2}, seed=3, seeds={"data_order": 5, "dropout": 7})
    assert config.model.dropout > 0
    return config


@pytest.fixture(scope="module")
def fitted(config, tmp_path_factory):
    """A fit of three epochs with a checkpoint of each: the folder, the Trainer and the classifier."""
    folder = tmp_path_factory.mktemp("fitted")
    keep_all = ModelCheckpoint(folder / "kept", filename="{epoch}", monitor="val/accuracy", mode="max", save_top_k=-1)
    trainer = trainer_in(folder, 3, callbacks=[keep_all], logger=CSVLogger(folder))
    classifier = ReviewClassifier.from_config(config)
    trainer.fit(classifier, datamodule=ReviewDataModule.from_config(config))
    return folder, trainer, classifier


def test_it_trains_exactly_what_a_run_trains(config, fitted, tmp_path):
    _, trainer, _ = fitted
    assert run_experiment(config, tmp_path).status == "completed"
    last = pd.read_csv(tmp_path / "lora/seed-3/curves.csv").dropna(subset="val_loss").iloc[-1]
    assert trainer.callback_metrics["val/loss"].item() == last["val_loss"]
    assert trainer.callback_metrics["val/accuracy"].item() == last["val_accuracy"]


def test_its_metrics_and_settings_are_logged_by_any_logger(config, fitted):
    _, trainer, _ = fitted
    logged = pd.read_csv(Path(trainer.logger.log_dir) / "metrics.csv")
    assert {"train/loss", "train/accuracy", "val/loss", "val/accuracy"} <= set(logged)
    assert logged["train/loss"].notna().sum() == 3 * 20 and logged["val/accuracy"].notna().sum() == 3
    settings = (Path(trainer.logger.log_dir) / "hparams.yaml").read_text()
    assert "learning_rate: 0.01" in settings and "r: 4" in settings


def test_a_checkpoint_holds_only_what_is_trained_and_the_head_and_nothing_to_unpickle(config, fitted):
    folder, _, classifier = fitted
    kept = torch.load(folder / "kept/epoch=0.ckpt", weights_only=True)
    head = {f"model.{layer}.{kind}" for layer in ("pre_classifier", "classifier") for kind in ("weight", "bias")}
    assert kept["state_dict"].keys() == trained(classifier).keys() | head
    assert kept["hyper_parameters"]["lora"]["dropout"] == 0.2


def test_going_on_from_a_checkpoint_ends_as_if_there_had_been_no_interruption(config, fitted, tmp_path):
    folder, _, classifier = fitted
    resumed = ReviewClassifier.from_config(config)
    trainer_in(tmp_path, 3, logger=False).fit(
        resumed,
        datamodule=ReviewDataModule.from_config(config),
        ckpt_path=folder / "kept/epoch=0.ckpt",
        weights_only=True,
    )
    expected, found = trained(classifier), trained(resumed)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    first = torch.load(folder / "kept/epoch=0.ckpt", weights_only=True)["state_dict"]
    assert not any(torch.equal(first[name], expected[name]) for name in expected)


def test_a_checkpoint_is_validated_tested_and_predicts(config, fitted, tmp_path):
    folder, _, classifier = fitted
    seeded = dataclasses.replace(config, seed=9)  # another head, which the checkpoint's replaces
    again, data = ReviewClassifier.from_config(seeded), ReviewDataModule.from_config(seeded)
    trainer = trainer_in(tmp_path, 1, logger=False)
    best = {"ckpt_path": folder / "kept/epoch=2.ckpt", "weights_only": True}
    (valid,) = trainer.validate(again, data, **best, verbose=False)
    (tested,) = trainer.test(again, data, **best, verbose=False)
    batches = trainer.predict(again, data, **best)
    assert valid.keys() == {"val/loss", "val/accuracy"}
    assert tested.keys() == {"test/loss", "test/accuracy", "test/f1", "test/auroc"}
    index = torch.cat([batch["index"] for batch in batches])
    said = torch.cat([batch["probability"] for batch in batches]) > 0.5
    assert sorted(index.tolist()) == list(range(100))
    right = said.numpy() == data.parts["test"].labels[index]
    assert right.mean() == pytest.approx(tested["test/accuracy"], abs=1e-6)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in classifier.state_dict().items())


@pytest.mark.parametrize(
    ("mode", "lora", "words"),
    [
        ("partial", {}, "mode is 'lora' there and 'partial' here"),
        ("lora", {"alpha": 3}, "lora.alpha is 1.0 there and 3.0 here"),
        ("lora", {"targets": ["query"]}, "only one of the two keeps "),
    ],
)
def test_a_checkpoint_of_another_config_is_refused(tiny, fitted, tmp_path, mode, lora, words):
    folder, *_ = fitted
    other = tiny(mode, lora=lora)
    with pytest.raises(ConfigError, match=rf"of another config: {words}.*make the classifier"):
        trainer_in(tmp_path, 1, logger=False).test(
            ReviewClassifier.from_config(other),
            ReviewDataModule.from_config(other),
            ckpt_path=folder / "kept/epoch=0.ckpt",
            weights_only=True,
        )


def test_what_only_a_run_can_do_is_refused(tiny):
    with pytest.raises(ConfigError, match=r"train\.cache_trunk: True .* set it to false"):
        ReviewClassifier.from_config(tiny("cached"))


def test_a_secret_in_a_setting_is_in_no_checkpoint_or_log(tiny, monkeypatch):
    config = tiny("lora")
    assert config.model.backbone in str(ReviewClassifier.from_config(config).hparams)
    monkeypatch.setenv("MY_TOKEN", config.model.backbone)
    assert config.model.backbone not in str(ReviewClassifier.from_config(config).hparams)
