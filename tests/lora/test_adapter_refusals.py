"""peft_format: an adapter's folder that is damaged, of another kind or of another base is refused in one line."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save_file
from small_networks import DISTILBERT, adapted, base
from torch import nn
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from lora_study import ConfigError, load_adapter, save_adapter


@pytest.fixture
def folder(tmp_path) -> Path:
    """A sound adapter of the tiny DistilBERT."""
    save_adapter(adapted("distilbert"), tmp_path / "adapter")
    return tmp_path / "adapter"


def refusal(model: nn.Module, folder: Path) -> str:
    """The line with which a folder is refused; the model is as it was."""
    modules, before = dict(model.named_modules()), copy.deepcopy(model.state_dict())
    with pytest.raises(ConfigError) as refused:
        load_adapter(model, folder)
    assert dict(model.named_modules()) == modules
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    line = str(refused.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"peft_type": "IA3"}, ["peft_type", "IA3", "LORA"]),
        ({"bias": "all"}, ["bias", "all"]),
        ({"layer_replication": [[0, 1]]}, ["layer_replication"]),
        ({"layers_to_transform": [1], "target_modules": ["q_lin", "v_lin"]}, ["unexpected", "layer.0"]),
        ({"layers_to_transform": 0, "target_modules": ["q_lin", "v_lin"]}, ["unexpected", "layer.1"]),
        ({"layers_to_transform": 7, "target_modules": ["q_lin", "v_lin"]}, ["no layers of this"]),
        ({"layers_to_transform": [True]}, ["layers_to_transform", "True", "number"]),
        ({"layers_to_transform": 0, "target_modules": ".*q_lin"}, ["layers_to_transform", "list of target_modules"]),
        ({"layers_to_transform": 0, "layers_pattern": "("}, ["layers_pattern", "'('"]),
        ({"layers_to_transform": 0, "layers_pattern": [3]}, ["layers_pattern", "[3]"]),
        ({"layers_pattern": "layer"}, ["layers_pattern", "layers_to_transform"]),
        ({"trainable_token_indices": 0}, ["trainable_token_indices"]),
        ({"lora_bias": True}, ["lora_bias"]),
        ({"a_field_of_tomorrow": 3}, ["a_field_of_tomorrow"]),
        ({"init_lora_weights": "pissa"}, ["init_lora_weights", "pissa", "base weights"]),
        ({"r": "4"}, ["r: '4'", "whole number"]),
        ({"r": True}, ["r: True", "whole number"]),
        ({"r": 0}, ["r: 0", "1 or more"]),
        ({"r": None}, ["r: None"]),
        ({"r": 1000, "rank_pattern": {}}, ["rank 1000", "q_lin", "Linear"]),
        ({"lora_alpha": float("nan")}, ["adapter_config.json", "Out of range"]),
        ({"lora_alpha": 10**400}, ["lora_alpha", "finite"]),
        ({"lora_dropout": 1.5}, ["lora_dropout", "1.5"]),
        ({"target_modules": None}, ["target_modules"]),
        ({"target_modules": 3}, ["target_modules"]),
        ({"target_modules": []}, ["target_modules", "[]"]),
        ({"target_modules": ""}, ["target_modules", "''"]),
        ({"target_modules": ["q_lin", ""]}, ["target_modules", "''"]),
        ({"modules_to_save": [""]}, ["modules_to_save", "''"]),
        ({"modules_to_save": "classifier"}, ["modules_to_save", "list"]),
        ({"target_modules": "["}, ["target_modules", "regular expression"]),
        ({"target_modules": ["c_attn"]}, ["target_modules", "DistilBertForSequenceClassification"]),
        ({"target_modules": ["word_embeddings"]}, ["word_embeddings", "Embedding"]),
        ({"rank_pattern": {"(": 2}}, ["rank_pattern", "regular expression"]),
        ({"rank_pattern": {"v_lin": -2}}, ["rank_pattern", "1 or more"]),
        ({"rank_pattern": ["v_lin"]}, ["rank_pattern"]),
        ({"use_rslora": "yes"}, ["use_rslora", "true or false"]),
        ({"use_dora": True}, ["lora_magnitude_vector", "lacks"]),
        ({"modules_to_save": [1]}, ["modules_to_save"]),
    ],
)
def test_a_config_that_is_not_of_a_plain_adapter_is_refused(folder, changes, words):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    line = refusal(base("distilbert"), folder)
    assert str(folder) in line
    assert all(word in line for word in words), line


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "[" * 100_000, "\x00", '{"peft_type": "LORA"}'])
def test_a_config_that_is_not_one_is_refused(folder, content):
    (folder / "adapter_config.json").write_text(content)
    assert str(folder / "adapter_config.json") in refusal(base("distilbert"), folder)


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-4]), "whole safetensors file"),
        (lambda path: path.write_bytes(b"\x80\x04}."), "a pickle"),
        (lambda path: torch.save(load(path.read_bytes()), path), "a zip archive"),
        (lambda path: path.rename(path.with_name("adapter_model.bin")), "does not exist"),
        (lambda path: (path.unlink(), path.mkdir()), "whole safetensors file"),
    ],
)
def test_weights_in_another_format_are_refused(folder, damage, word):
    damage(folder / "adapter_model.safetensors")
    assert word in refusal(base("distilbert"), folder)


def test_weights_that_do_not_belong_are_refused(folder):
    path = folder / "adapter_model.safetensors"
    whole = load(path.read_bytes())
    update = "base_model.model.distilbert.transformer.layer.0.attention.q_lin.lora_A.weight"
    for tensors, word in (
        ({name: tensor for name, tensor in whole.items() if not name.endswith("classifier.bias")}, "lacks"),
        ({**whole, "extra": torch.zeros(1)}, "unexpected tensor extra"),
        ({**whole, update: whole[update] * float("nan")}, "not finite"),
        ({**whole, update: whole[update][:, :8].contiguous()}, "(4, 8), where the model needs (4, 16)"),
    ):
        save_file(tensors, path)
        line = refusal(base("distilbert"), folder)
        assert word in line
        assert str(path) in line


def test_an_adapter_of_another_base_is_refused(folder, tmp_path):
    wider = DistilBertForSequenceClassification(DistilBertConfig(**DISTILBERT | {"dim": 32}))
    assert ", where the model needs (" in refusal(wider, folder)
    assert "no layers of this GPT2LMHeadModel" in refusal(base("gpt2"), folder)
    save_adapter(adapted("stack", targets=["proj"], r=2), tmp_path / "stack")
    assert "no layers of this BertForSequenceClassification" in refusal(base("bert classifier"), tmp_path / "stack")


def test_a_folder_without_an_adapter_and_a_model_with_one_are_refused(folder, tmp_path):
    assert "name an adapter's folder" in refusal(base("distilbert"), tmp_path)
    (tmp_path / "record.json").write_text("{}")
    assert "lora-study export" in refusal(base("distilbert"), tmp_path)
    assert "already has a LoRA update" in refusal(adapted("distilbert"), folder)
