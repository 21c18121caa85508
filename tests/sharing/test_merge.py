"""merge.py: the merged folder says what the run's model says, to whoever reads it."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fabricate_run import MAX_LENGTH, finished_run
from tokenizers import Tokenizer
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast, pipeline

from lora_study.base.errors import ConfigError
from lora_study.cli import main
from lora_study.config import ModelConfig
from lora_study.lora import lora_layers
from lora_study.model.encoder import build_tokenizer
from lora_study.sharing.merge import write_merged
from lora_study.sharing.predict import predict, prepare
from lora_study.sharing.trained import load_run

VARIANTS = {
    "lora": {},
    "head": {"lora": {"targets": ["query", "mlp", "head"], "dropout": 0.1}},
    "dora": {"lora": {"variant": "dora", "train_head": True}},
    "last_two_layers": {"mode": "last_two_layers"},
    "partial": {"mode": "partial", "partial": {"blocks": 1}},
    "full": {"mode": "full", "train": {"learning_rate": 0.001, "keep_weights": True}},
}


@pytest.fixture(scope="module")
def runs(tiny_backbone, reviews_csv, tmp_path_factory) -> dict[str, Path]:
    results = tmp_path_factory.mktemp("results")
    return {
        name: finished_run(results, tiny_backbone, reviews_csv, name=name, **changes)
        for name, changes in VARIANTS.items()
    }


@pytest.fixture(scope="module")
def texts(reviews_csv) -> list[str]:
    """Reviews of many lengths, one of them far longer than the model reads."""
    reviews = pd.read_csv(reviews_csv)["text"].tolist()[:60]
    return [" ".join(text.split()[: 3 + number % 38]) for number, text in enumerate(reviews)] + [" ".join(reviews)]


def unmerged_logits(run: Path, texts: list[str]) -> torch.Tensor:
    trained = load_run(run)
    return logits(trained.model, trained.tokenizer, texts)


@torch.no_grad()
def logits(model, tokenizer, texts: list[str]) -> torch.Tensor:
    batch = tokenizer(texts, truncation=True, max_length=MAX_LENGTH, padding=True, return_tensors="pt")
    return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


@pytest.mark.parametrize("name", VARIANTS)
def test_transformers_alone_gives_the_logits_and_labels_of_the_run(runs, texts, tmp_path, name):
    expected = unmerged_logits(runs[name], texts)
    write_merged(load_run(runs[name]), tmp_path / "merged")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert next(model.parameters()).dtype == torch.float32
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(model, tokenizer, texts), expected, atol=1e-4, rtol=0)

    classify = pipeline("text-classification", str(tmp_path / "merged"), device="cpu", batch_size=8)
    said = classify(texts, truncation=True)  # no max_length: the folder knows it
    wanted = list(predict(load_run(runs[name]), texts))
    assert {"negative", "positive"} == {prediction.label for prediction in wanted}
    assert [one["label"] for one in said] == [prediction.label for prediction in wanted]
    scores = [one["score"] if one["label"] == "positive" else 1 - one["score"] for one in said]
    np.testing.assert_allclose(scores, [prediction.probability for prediction in wanted], atol=1e-4)


def test_the_updates_matter_to_these_reviews(runs, texts):
    """Or merging nothing would pass the test above."""
    trained = load_run(runs["lora"])
    adapted = logits(trained.model, trained.tokenizer, texts)
    for _, layer in lora_layers(trained.model):
        torch.nn.init.zeros_(layer.lora.lora_B)
    assert (logits(trained.model, trained.tokenizer, texts) - adapted).abs().max() > 0.01


def test_the_folder_holds_a_plain_model_that_anyone_may_read(runs, tmp_path):
    written = write_merged(load_run(runs["lora"]), tmp_path / "deep" / "merged")
    assert {path.name for path in written} == {
        *("README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    }
    modes = {path.stat().st_mode & 0o777 for path in written}
    (tmp_path / "ordinary").write_text("")
    assert modes == {(tmp_path / "ordinary").stat().st_mode & 0o777}
    config = json.loads((tmp_path / "deep" / "merged" / "config.json").read_text())
    assert config["id2label"] == {"0": "negative", "1": "positive"}
    assert config["architectures"] == ["DistilBertForSequenceClassification"]
    assert not any(str(tmp_path) in path.read_text() for path in written if path.suffix == ".json")


def test_tokenizer_json_alone_cuts_texts_where_the_run_did(runs, texts, tmp_path):
    write_merged(load_run(runs["lora"]), tmp_path / "merged")
    ids = Tokenizer.from_file(str(tmp_path / "merged" / "tokenizer.json")).encode(texts[-1]).ids
    assert len(ids) == MAX_LENGTH
    assert AutoTokenizer.from_pretrained(tmp_path / "merged")(texts[-1], truncation=True)["input_ids"] == ids


def test_onnx_gives_the_logits_of_the_run_for_any_batch_and_length(runs, texts, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    written = write_merged(load_run(runs["lora"]), tmp_path / "onnx", format="onnx")
    assert {path.name for path in written} == {
        *("README.md", "config.json", "model.onnx", "tokenizer.json", "tokenizer_config.json")
    }
    assert "onnxruntime" in (tmp_path / "onnx" / "README.md").read_text()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "onnx")
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "model.onnx", providers=["CPUExecutionProvider"])
    for chosen in (texts, texts[:1], texts[7:9], ["good"]):
        batch = tokenizer(chosen, truncation=True, padding=True, return_tensors="np")
        found = session.run(["logits"], {name: batch[name] for name in ("input_ids", "attention_mask")})[0]
        np.testing.assert_allclose(found, unmerged_logits(runs["lora"], chosen), atol=1e-4)
    ones = np.ones((2, 513), np.int64)
    assert session.run(["logits"], {"input_ids": ones[:, 1:], "attention_mask": ones[:, 1:]})[0].shape == (2, 2)
    with pytest.raises(Exception, match="more than 512 tokens; let the tokenizer cut it, with truncation=True"):
        session.run(["logits"], {"input_ids": ones, "attention_mask": ones})


@pytest.mark.parametrize("missing", ["onnx", "onnxscript"])
def test_onnx_without_its_packages_names_the_extra(runs, tmp_path, monkeypatch, missing):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == missing else name)
    with pytest.raises(ConfigError, match=rf"the package {missing}; pip install 'lora-study\[onnx\]'"):
        write_merged(load_run(runs["lora"]), tmp_path / "onnx", format="onnx")
    assert not (tmp_path / "onnx").exists()


def test_merging_from_the_command_line(runs, tmp_path, capsys):
    arguments = ["merge", "--run", str(runs["lora"]), "--output", str(tmp_path / "merged")]
    assert main(arguments) == 0
    assert str(tmp_path / "merged" / "model.safetensors") in capsys.readouterr().out
    (tmp_path / "merged" / "README.md").write_text("changed")
    assert main(arguments) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert "--overwrite" in printed
    assert (tmp_path / "merged" / "README.md").read_text() == "changed"
    assert main([*arguments, "--overwrite"]) == 0
    assert (tmp_path / "merged" / "README.md").read_text() != "changed"


@pytest.mark.parametrize("into", ["itself", "another run"])
def test_a_runs_folder_is_never_overwritten(runs, tmp_path, into):
    run = Path(shutil.copytree(runs["lora"], tmp_path / "run"))
    target = run if into == "itself" else Path(shutil.copytree(runs["partial"], tmp_path / "other"))
    before = {path: path.read_bytes() for path in target.iterdir()}
    with pytest.raises(ConfigError, match="is a run's folder; name another"):
        write_merged(load_run(run), target, overwrite=True)
    assert {path: path.read_bytes() for path in target.iterdir()} == before


def test_a_format_that_is_none_is_refused(runs, tmp_path):
    with pytest.raises(ConfigError, match="format: 'ONNX' is not valid; use hf, onnx"):
        write_merged(load_run(runs["lora"]), tmp_path / "out", format="ONNX")
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_way_is_named_and_the_model_is_not_merged(runs, tmp_path):
    (tmp_path / "file").write_text("")
    trained = load_run(runs["lora"])
    adapted = len(list(lora_layers(trained.model)))
    with pytest.raises(ConfigError, match="file is a file; name another folder"):
        write_merged(trained, tmp_path / "file")
    assert len(list(lora_layers(trained.model))) == adapted > 0


def test_a_tokenizer_of_other_sides_reads_what_the_run_read(runs, texts, tmp_path):
    """A run pads at the end, where its head does not look, and cuts where the encoder's own tokenizer does."""
    trained = load_run(runs["lora"])
    encoder = Path(trained.config.model.backbone)
    copy = shutil.copytree(encoder, tmp_path / "sides")
    said = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps(said | {"padding_side": "left", "truncation_side": "left"}))
    trained = dataclasses.replace(trained, tokenizer=build_tokenizer(ModelConfig(backbone=str(copy))))
    expected = logits(trained.model, trained.tokenizer, texts)
    write_merged(trained, tmp_path / "merged")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert theirs.padding_side == "right" and theirs.truncation_side == "left"
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(merged, theirs, texts), expected, atol=1e-5, rtol=0)
    ids = Tokenizer.from_file(str(tmp_path / "merged" / "tokenizer.json")).encode(texts[-1]).ids
    assert ids == theirs(texts[-1], truncation=True)["input_ids"] and len(ids) == MAX_LENGTH


def test_a_model_that_was_rounded_to_predict_is_not_written(runs, tmp_path):
    trained = load_run(runs["lora"])
    prepare(trained, "bf16-true")
    with pytest.raises(ConfigError, match=r"bfloat16.*load the run again"):
        write_merged(trained, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"bfloat16.*load the run again"):
        prepare(trained, "32-true")  # what was rounded stays so
    assert not (tmp_path / "out").exists()


def test_a_disk_too_full_for_the_tokenizer_is_said_in_a_line(runs, tmp_path, monkeypatch, capsys):
    def no_space(*_: object) -> None:
        raise Exception("No space left on device (os error 28)")  # as tokenizers does

    monkeypatch.setattr(PreTrainedTokenizerFast, "save_pretrained", no_space)
    assert main(["merge", "--run", str(runs["lora"]), "--output", str(tmp_path / "merged")]) == 1
    printed = capsys.readouterr().err
    assert "merged cannot be written: No space left" in printed and printed.count("\n") == 1
    assert not (tmp_path / "merged").exists()


def test_what_fails_midway_leaves_nothing(runs, tmp_path, monkeypatch):
    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lora_study.sharing.merge.write_card", no_space)
    with pytest.raises(OSError, match="No space left"):
        write_merged(load_run(runs["lora"]), tmp_path / "out" / "merged")
    assert list((tmp_path / "out").iterdir()) == []
