"""trained.py: a run read back says what the run said, and a folder that is not a whole run is refused in one line."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load, save_file
from tiny_experiments import tiny_content

from lora_study.base.errors import ConfigError
from lora_study.config_files import experiment_from, overlay
from lora_study.data.datamodule import ReviewDataModule
from lora_study.model import encoder as backbones
from lora_study.records.record import read_record, write_record
from lora_study.records.run_folder import completed_run
from lora_study.sharing.trained import load_run
from lora_study.training.experiment import run_experiment

VARIANTS = {
    "lora": {"lora": {"r": 4, "alpha": 1, "dropout": 0.1, "targets": ["query", "value", "head"]}},
    "dora": {"lora": {"variant": "dora", "r": 2, "alpha": 1, "train_head": True}},
    "last_two_layers": {"mode": "last_two_layers"},
    "partial": {"mode": "partial", "partial": {"blocks": 1}},
    "full": {"mode": "full", "train": {"learning_rate": 0.001}},
}


@pytest.fixture(scope="module")
def runs(tiny_backbone, reviews_csv, tmp_path_factory):
    """A folder with one finished run per variant."""
    results = tmp_path_factory.mktemp("results")
    sizes, cache = (120, 40, 60), results / "cache"
    base = tiny_content(tiny_backbone, reviews_csv, cache, sizes, max_length=32, learning_rate=0.01)
    for name, changes in VARIANTS.items():
        record = run_experiment(experiment_from(overlay(overlay(base, {"name": name}), changes)), results)
        assert record.status == "completed", record.error
    return results


@pytest.fixture
def run(runs, tmp_path) -> Path:
    """A copy of the LoRA run, for a test to damage."""
    return Path(shutil.copytree(runs / "lora" / "seed-1", tmp_path / "lora" / "seed-1"))


@pytest.mark.parametrize("name", VARIANTS)
def test_the_model_says_of_each_test_review_what_the_run_said(runs, name):
    trained = load_run(runs / name / "seed-1")
    assert not any(module.training for module in trained.model.modules())
    assert {parameter.dtype for parameter in trained.model.parameters()} == {torch.float32}
    assert (trained.config.name, trained.record.name, trained.folder) == (name, name, runs / name / "seed-1")
    reviews = ReviewDataModule(trained.config.data, trained.tokenizer, order_seed=0)
    reviews.setup()
    said = pd.read_parquet(trained.folder / "predictions.parquet").set_index("id")["probability"]
    found = {}
    with torch.inference_mode():
        for batch in reviews.eval_dataloader("test"):
            logits = trained.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            ids = [reviews.parts["test"].ids[row] for row in batch["index"]]
            found |= dict(zip(ids, logits.softmax(-1)[:, 1].tolist(), strict=True))
    assert found.keys() == set(said.index)
    np.testing.assert_allclose([found[review] for review in said.index], said, atol=1e-6)


def test_weights_are_kept_in_mode_full_unless_asked_not_to(runs, tmp_path):
    folder = runs / "full" / "seed-1"
    asked = read_record(folder / "record.json").config
    assert (folder / "adapter.safetensors").stat().st_size > 4 * read_record(folder / "record.json").parameters["total"]
    config = experiment_from(overlay(asked, {"train": {"keep_weights": False}}))
    run_experiment(config, tmp_path)
    with pytest.raises(ConfigError, match=r"--train\.keep_weights true"):
        load_run(tmp_path / "full" / "seed-1")
    lost = Path(shutil.copytree(folder, tmp_path / "lost"))
    (lost / "adapter.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"adapter\.safetensors does not exist; run it again with --overwrite$"):
        load_run(lost)


def test_a_record_older_than_a_field_is_of_the_fields_default(runs, tmp_path):
    folder = Path(shutil.copytree(runs / "last_two_layers" / "seed-1", tmp_path / "run"))
    record, content = read_record(folder / "record.json"), json.loads((folder / "record.json").read_text())
    del content["config"]["train"]["keep_weights"]
    (folder / "record.json").write_text(json.dumps(content))
    assert load_run(folder).config.train.keep_weights is True
    assert completed_run(folder, load_run(folder).config) == record
    config = dataclasses.replace(load_run(folder).config, seed=2)
    with pytest.raises(ConfigError, match="seed: 1 then, 2 now"):
        completed_run(folder, config)


def refusal(folder: Path) -> str:
    """The line with which a folder is refused."""
    with pytest.raises(ConfigError) as refused:
        load_run(folder)
    line = str(refused.value)
    assert "\n" not in line
    assert str(folder) in line or "model.backbone" in line
    return line


def test_a_folder_that_is_not_one_run_is_refused(runs, run, tmp_path):
    assert "not a folder" in refusal(tmp_path / "mistyped")
    for above in (run.parent, run.parent.parent):
        assert f"such as {run}" in refusal(above)
    (run / "record.json").unlink()
    assert "not finished" in refusal(run)
    (run / "record.json").write_text('{"version":')
    assert "not a readable record" in refusal(run)


def test_a_failed_run_is_refused_with_its_reason(run):
    record = read_record(run / "record.json")
    record.status, record.error = "failed", "loss is not finite"
    write_record(record, run)
    assert "loss is not finite" in refusal(run)


def test_a_config_that_is_not_valid_is_refused_by_name(run):
    content = json.loads((run / "record.json").read_text())
    content["config"]["lora"]["rank"] = content["config"]["lora"].pop("r")
    (run / "record.json").write_text(json.dumps(content))
    assert "lora.rank" in refusal(run)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "whole safetensors file"),
        (b"\x80\x04}.", "a pickle"),
        (b"PK\x05\x06" + bytes(18), "a zip archive"),
        (b"\xff" * 64, "whole safetensors file"),
    ],
)
def test_a_file_that_is_not_safetensors_is_refused(run, content, words):
    (run / "adapter.safetensors").write_bytes(content)
    line = refusal(run)
    assert words in line
    assert "--overwrite" in line


def test_missing_and_truncated_weights_are_refused(run):
    path = run / "adapter.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    assert "whole safetensors file" in refusal(run)
    path.unlink()
    assert "does not exist" in refusal(run)


def test_weights_that_are_not_the_models_are_refused(run):
    path = run / "adapter.safetensors"
    whole = load(path.read_bytes())
    head, update = "classifier.linear.bias", "distilbert.transformer.layer.0.attention.q_lin.lora.lora_A"
    for tensors, word in (
        ({name: tensor for name, tensor in whole.items() if name != head}, f"lacks {head}"),
        ({**whole, "extra": torch.zeros(1)}, "unexpected tensor extra"),
        ({**whole, update: whole[update][:, :2].contiguous()}, f"{update} of shape (32, 2)"),
        ({**whole, update: whole[update] / 0}, f"{update} that are not finite"),
    ):
        save_file(tensors, path)
        assert word in refusal(run)


def test_an_encoder_that_lies_elsewhere_now_is_named_in_the_record(run, tiny_backbone, tmp_path):
    record = read_record(run / "record.json")
    record.config["model"]["backbone"] = str(tmp_path / "gone")
    write_record(record, run)
    message = refusal(run)
    assert f"was trained from {tmp_path / 'gone'}, which is not there" in message and "record.json" in message
    record.config["model"]["backbone"] = str(shutil.copytree(tiny_backbone, tmp_path / "here"))
    write_record(record, run)
    assert load_run(run).model


def test_another_encoder_than_the_one_trained_is_refused(run, tiny_backbone, tmp_path):
    other = Path(shutil.copytree(tiny_backbone, tmp_path / "other"))
    weights = load((other / backbones.WEIGHTS).read_bytes())
    save_file({name: tensor + 1 for name, tensor in weights.items()}, other / backbones.WEIGHTS, {"format": "pt"})
    record = read_record(run / "record.json")
    record.config["model"]["backbone"] = str(other)
    write_record(record, run)
    assert record.provenance["encoder"]["sha256"] in refusal(run)
    shutil.copyfile(tiny_backbone / backbones.WEIGHTS, other / backbones.WEIGHTS)
    assert load_run(run).model
    content = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(content | {"activation": "relu"}))  # the same weights, other answers
    assert "config.json and tokenizer" in refusal(run)
    record.provenance["encoder"] = None  # of a record that does not know, nothing is checked
    write_record(record, run)
    assert load_run(run).model
