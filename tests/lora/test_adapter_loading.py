"""peft_format/loading.py: what PEFT reads in its folders is read here, and nothing else is done in silence."""

import json
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_networks import GPT2, KINDS, MARKS, adapted, base, outputs, train
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from lora_study import (
    ConfigError,
    LinearWithLoRA,
    inject_lora,
    load_adapter,
    lora_layers,
    save_adapter,
)

# PEFT asks transformers by a name that transformers 5 is giving up, and warns of what a tied layer may lead to.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*tie_word_embeddings", "ignore:.*save_embedding_layers"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to True but"),
]


def theirs(kind: str, **settings) -> peft.PeftModel:
    """A network with an adapter of PEFT, all of which has been trained."""
    settings = {"r": 3, "lora_alpha": 5, "target_modules": ["q_lin", "v_lin"]} | settings
    return train(peft.get_peft_model(base(kind), peft.LoraConfig(**settings)).eval())


def change(folder: Path, **fields) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


# Adapters of other versions and habits.


@pytest.mark.parametrize(
    ("kind", "task", "targets"),
    [
        ("distilbert", "SEQ_CLS", ["q_lin", "v_lin"]),
        ("gpt2 classifier", "SEQ_CLS", ["c_proj"]),
        ("distilbert tokens", "TOKEN_CLS", ["q_lin", "v_lin"]),
        ("distilbert questions", "QUESTION_ANS", ["q_lin"]),
    ],
)
def test_a_head_that_only_the_task_implies(tmp_path, kind, task, targets):
    """PEFT before 0.10 wrote modules_to_save: null."""
    more = {"fan_in_fan_out": True} if "gpt2" in kind else {}
    model = theirs(kind, task_type=task, target_modules=targets, **more)
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    change(tmp_path, modules_to_save=None)
    again = peft.PeftModel.from_pretrained(base(kind, head_seed=1), tmp_path)
    torch.testing.assert_close(outputs(again), outputs(model), atol=1e-5, rtol=0)
    ours = base(kind, head_seed=1)
    assert len(load_adapter(ours, tmp_path)) == 3 * len(targets) * (2 if "c_proj" in targets else 1)
    torch.testing.assert_close(outputs(ours), outputs(model), atol=1e-5, rtol=0)


@pytest.mark.parametrize("field", ["corda_config", "lora_ga_config", "eva_config", "loftq_config"])
def test_what_only_the_start_was_made_with_says_nothing(tmp_path, field):
    """As PEFT leaves it behind when it converts an adapter whose start changed the base."""
    model = adapted("bert")
    save_adapter(model, tmp_path)
    change(tmp_path, **{field: {"corda_method": "ipm", "verbose": False}})
    load_adapter(fresh := base("bert"), tmp_path)
    torch.testing.assert_close(outputs(fresh), outputs(model), atol=1e-5, rtol=0)


def test_a_head_that_nothing_names_is_read_all_the_same(tmp_path):
    model = theirs("distilbert", task_type="SEQ_CLS")
    model.save_pretrained(tmp_path)
    change(tmp_path, modules_to_save=None, task_type=None)
    ours = base("distilbert", head_seed=1)
    load_adapter(ours, tmp_path)
    again = peft.PeftModel.from_pretrained(base("distilbert", head_seed=1), tmp_path)
    torch.testing.assert_close(outputs(again), outputs(model), atol=1e-5, rtol=0)
    torch.testing.assert_close(outputs(ours), outputs(model), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("kind", "settings", "blocks"),
    [
        ("distilbert", {"layers_to_transform": 0}, [0]),
        ("distilbert", {"layers_to_transform": [0, 2]}, [0, 2]),
        ("distilbert", {"layers_to_transform": []}, [0, 1, 2]),
        ("distilbert", {"layers_to_transform": 2, "layers_pattern": "layer"}, [2]),
        ("distilbert", {"layers_to_transform": [1], "layers_pattern": ["blocks", "layer"]}, [1]),
        (
            "distilbert",
            {"layers_to_transform": 0, "target_modules": ["q_lin", "distilbert.transformer.layer.2.ffn.lin1"]},
            [0, 2],
        ),
        ("gpt2", {"layers_to_transform": [1, 2], "layers_pattern": "h"}, [1, 2]),
        ("gpt2", {"layers_to_transform": 0, "layers_pattern": []}, [0]),
    ],
)
def test_some_of_the_blocks(tmp_path, kind, settings, blocks):
    more = {"target_modules": ["c_attn"], "fan_in_fan_out": True} if kind == "gpt2" else {}
    model = theirs(kind, **settings, **more)
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    ours = base(kind)
    names = load_adapter(ours, tmp_path)
    numbers = {int(part) for name in names for part in name.split(".") if part.isdigit()}
    assert sorted(numbers) == blocks
    torch.testing.assert_close(outputs(ours), outputs(model), atol=1e-5, rtol=0)


@pytest.mark.parametrize("embeddings", ["auto", True, False])
@pytest.mark.parametrize("targets", [["c_attn", "lm_head"], ["lm_head"]])
def test_an_update_of_the_output_layer(tmp_path, targets, embeddings):
    """PEFT stores the tied weight under it, too, unless told not to."""
    model = theirs("gpt2", target_modules=targets, fan_in_fan_out=True)
    model.save_pretrained(tmp_path, save_embedding_layers=embeddings)
    ours = base("gpt2")
    load_adapter(ours, tmp_path)
    torch.testing.assert_close(outputs(ours), outputs(model), atol=1e-5, rtol=0)
    assert ours.lm_head.linear.weight is ours.transformer.wte.weight  # still tied, and not copied


def test_embeddings_of_more_tokens(tmp_path):
    larger = base("gpt2")
    torch.manual_seed(3)
    larger.resize_token_embeddings(44, mean_resizing=False)
    model = peft.get_peft_model(larger, peft.LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True)).eval()
    model.save_pretrained(tmp_path, save_embedding_layers=True)
    with pytest.raises(ConfigError, match=r"\(44, 16\), where the model needs \(40, 16\).*with as many tokens"):
        load_adapter(base("gpt2"), tmp_path)
    ours = base("gpt2")
    ours.resize_token_embeddings(44, mean_resizing=False)
    load_adapter(ours, tmp_path)
    assert torch.equal(ours.transformer.wte.weight, larger.transformer.wte.weight)
    assert ours.lm_head.weight is ours.transformer.wte.weight
    torch.testing.assert_close(outputs(ours), outputs(model), atol=1e-5, rtol=0)


def test_a_layer_in_two_places_comes_back_in_both(tmp_path):
    def network() -> nn.Sequential:
        torch.manual_seed(0)
        shared = nn.Linear(4, 4)
        return nn.Sequential(shared, nn.Tanh(), shared).requires_grad_(False)

    model = network()
    inject_lora(model, ["2"], r=2, scaling="alpha")
    for parameter in model[0].lora.parameters():
        nn.init.normal_(parameter)
    with pytest.warns(UserWarning, match="PEFT adapts only one of the places 0, 2"):
        save_adapter(model, tmp_path)
    ours, x = network(), torch.randn(3, 4)
    assert load_adapter(ours, tmp_path) == ["0", "2"]
    assert ours[0] is ours[2]
    assert torch.equal(ours(x), model(x))


def test_a_layer_in_two_places_that_was_adapted_in_one_is_refused(tmp_path):
    """PEFT adapts it in one of them."""
    peft.get_peft_model(
        nn.Sequential(shared := nn.Linear(4, 4), shared), peft.LoraConfig(r=2, target_modules="[01]")
    ).save_pretrained(tmp_path / "both")
    with pytest.raises(ConfigError, match=r"lacks base_model.model.1.lora_"):
        load_adapter(nn.Sequential(shared := nn.Linear(4, 4), shared), tmp_path / "both")
    torch.manual_seed(0)
    shared = nn.Linear(4, 4)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)).requires_grad_(False)
    inject_lora(model, ["0"], r=2, scaling="alpha")
    save_adapter(model, tmp_path)
    with pytest.raises(ConfigError, match="0 and 2 are one layer"):
        load_adapter(nn.Sequential(shared, nn.Tanh(), shared), tmp_path)


@pytest.mark.filterwarnings("ignore:Found missing adapter keys")  # PEFT says so even of what it saved itself
def test_a_block_in_two_places_is_adapted_in_both(tmp_path):
    model = train(peft.get_peft_model(base("loop"), peft.LoraConfig(r=2, target_modules=["lin"])))
    model.save_pretrained(tmp_path / "theirs")
    ours = base("loop")
    load_adapter(ours, tmp_path / "theirs")
    torch.testing.assert_close(outputs(ours), outputs(model), atol=1e-5, rtol=0)
    save_adapter(ours, tmp_path / "ours")
    back = peft.PeftModel.from_pretrained(base("loop"), tmp_path / "ours")
    torch.testing.assert_close(outputs(back), outputs(model), atol=1e-5, rtol=0)
    load_adapter(again := base("loop"), tmp_path / "ours")
    torch.testing.assert_close(outputs(again), outputs(model), atol=1e-5, rtol=0)


# Types of numbers.


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_base_of_another_type_keeps_its_own_and_the_update_fp32(tmp_path, dtype):
    save_adapter(adapted("distilbert", ["query"]), tmp_path / "fp32")
    ours = base("distilbert", head_seed=1).to(dtype)
    load_adapter(ours, tmp_path / "fp32")
    save_adapter(ours, tmp_path / "again")
    layer = ours.distilbert.transformer.layer[0].attention.q_lin
    assert isinstance(layer, LinearWithLoRA)
    assert layer.lora.lora_A.dtype == layer.lora.lora_B.dtype == torch.float32
    assert layer.linear.weight.dtype == ours.classifier.weight.dtype == dtype
    once, again = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("fp32", "again"))
    for name, tensor in once.items():
        assert torch.equal(again[name], tensor if "lora_" in name else tensor.to(dtype))


def test_what_the_models_type_cannot_hold_is_refused(tmp_path):
    save_adapter(adapted("distilbert", ["query"]), tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors["base_model.model.classifier.bias"][1] = 1e6
    save_file(tensors, path)
    assert load_adapter(base("distilbert"), tmp_path)
    with pytest.raises(
        ConfigError, match=r"classifier\.bias that torch\.float16 cannot hold; load the base in float32"
    ):
        load_adapter(base("distilbert").half(), tmp_path)


def test_a_base_without_weights_is_refused(tmp_path):
    save_adapter(adapted("distilbert", ["query"]), tmp_path)
    with torch.device("meta"):
        empty = KINDS["distilbert"]()
    with pytest.raises(ConfigError, match="no weights yet"):
        load_adapter(empty, tmp_path)
    assert not list(lora_layers(empty))


def test_a_default_device_does_not_matter(tmp_path):
    save_adapter(model := adapted("distilbert", ["query"]), tmp_path)
    other = base("distilbert", head_seed=1)
    with torch.device("meta"):  # as cuda would be
        load_adapter(other, tmp_path)
    torch.testing.assert_close(outputs(other), outputs(model))


def test_two_values_for_one_tied_tensor_are_refused(tmp_path):
    def network(tied):
        torch.manual_seed(0)
        return GPT2LMHeadModel(GPT2Config(**GPT2, **MARKS, tie_word_embeddings=tied)).eval()

    settings = peft.LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True)
    theirs = peft.get_peft_model(network(tied=False), settings)
    theirs.save_pretrained(tmp_path, save_embedding_layers=True)
    load_adapter(ours := network(tied=False), tmp_path)
    torch.testing.assert_close(outputs(ours), outputs(theirs))
    with pytest.raises(ConfigError, match=r"different values for \S+ and \S+, which this model ties"):
        load_adapter(network(tied=True), tmp_path)


def test_values_of_eight_bits_are_read(tmp_path):
    save_adapter(adapted("distilbert", ["query"]), tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in load_file(path).items()}
    save_file(tensors, path)
    load_adapter(ours := base("distilbert", head_seed=1), tmp_path)
    torch.testing.assert_close(ours.classifier.weight, base("distilbert").classifier.weight, atol=0.05, rtol=0)
