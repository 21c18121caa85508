"""adapters.py: PEFT reads what is written here, what PEFT writes is read here, and adapters change places exactly."""

import copy
import dataclasses
import json
import random
import shutil
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load, save_file
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
)

from lora_study.base.errors import ConfigError
from lora_study.cli import main
from lora_study.config import ModelConfig
from lora_study.config_files import experiment_from
from lora_study.lora import inject_lora, lora_layers
from lora_study.lora.adapters import Adapters, load_adapter, save_adapter
from lora_study.lora.dora import LinearWithDoRA
from lora_study.model.encoder import build_model
from lora_study.sharing.trained import load_run
from lora_study.training.experiment import run_experiment

# PEFT asks transformers by a name that transformers 5 is giving up.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
TOKENS = torch.tensor([[2, 7, 9, 11, 3], [2, 8, 30, 6, 3]])


@pytest.fixture(autouse=True)
def seeded():
    """The same random adapters every time."""
    torch.manual_seed(0)


class Stack(nn.Module):
    """Layers of which one's full name is the end of another's."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({"proj": nn.Linear(6, 6)})
        self.proj = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)

    def forward(self, input_ids):
        return self.proj(self.norm(self.inner["proj"](input_ids[:, :1].float().expand(-1, 6))))


def gpt2_shape(**changes) -> GPT2Config:
    shape = {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16, "pad_token_id": 0}
    return GPT2Config(**shape | {"bos_token_id": 1, "eos_token_id": 1} | changes)


@pytest.fixture
def build(tiny_backbone):
    """Builds a small frozen network; the same kind has the same weights but for the head, which a seed draws."""

    def network(kind: str, head_seed: int = 0) -> nn.Module:
        if kind == "distilbert":
            return build_model(ModelConfig(backbone=str(tiny_backbone)), head_seed).requires_grad_(False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            if kind == "bert":
                shape = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
                model = BertForSequenceClassification(BertConfig(vocab_size=40, hidden_size=16, **shape))
            else:
                model = {
                    "gpt2": lambda: GPT2LMHeadModel(gpt2_shape()),
                    "gpt2_classifier": lambda: GPT2ForSequenceClassification(gpt2_shape()),
                    "stack": Stack,
                }[kind]()
            torch.manual_seed(head_seed)
            for name, parameter in model.named_parameters():
                if name.startswith(("classifier", "score")):
                    nn.init.normal_(parameter)
        return model.eval().requires_grad_(False)

    return network


def outputs(model: nn.Module) -> torch.Tensor:
    """Logits for two fixed texts."""
    with torch.inference_mode():
        found = model(input_ids=TOKENS)
    return found if isinstance(found, torch.Tensor) else found.logits


def train(model: nn.Module) -> None:
    """Give whatever adapts a model random values, as training would."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "magnitude" in name:
                parameter.copy_(parameter + 0.1 * torch.randn_like(parameter))


def adapted(model: nn.Module, **settings) -> nn.Module:
    """The model with LoRA that has been trained."""
    inject_lora(model, **{"targets": ["query", "value"], "r": 4, "alpha": 3.0, "scaling": "alpha", **settings})
    train(model)
    return model


OURS = {
    "alpha": ("distilbert", {"scaling": "alpha"}),
    "alpha/r": ("distilbert", {"scaling": "alpha/r", "targets": ["query", "key", "value", "projection", "mlp"]}),
    "alpha/sqrt(r)": ("distilbert", {"scaling": "alpha/sqrt(r)", "r": 3}),
    "with the head": ("distilbert", {"targets": ["value", "head"]}),
    "dora": ("distilbert", {"layer": LinearWithDoRA, "targets": ["value", "mlp"]}),
    "dora with the head": ("distilbert", {"layer": LinearWithDoRA, "targets": ["value", "head"]}),
    "bert": ("bert", {"targets": ["attention.self.query", "output.dense"]}),
    "gpt2": ("gpt2", {"targets": ["c_attn", "c_proj"]}),
    "gpt2 with dora": ("gpt2", {"targets": ["c_attn"], "layer": LinearWithDoRA}),
    "gpt2 classifier": ("gpt2_classifier", {"targets": ["c_attn"]}),
    "no transformer": ("stack", {"targets": ["inner.proj"]}),
}


@pytest.mark.parametrize("name", OURS)
def test_peft_loads_what_we_save_over_a_base_with_another_head(build, tmp_path, name):
    kind, settings = OURS[name]
    model = adapted(build(kind), **settings)
    save_adapter(model, tmp_path, base="the-base")
    base = build(kind, head_seed=1)
    assert not torch.allclose(outputs(base), outputs(model), atol=1e-3)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path)  # a missing key would be a warning, and so an error
    torch.testing.assert_close(outputs(theirs), outputs(model), atol=1e-5, rtol=0)
    assert theirs.peft_config["default"].base_model_name_or_path == "the-base"


@pytest.mark.parametrize("name", OURS)
def test_we_load_what_we_save(build, tmp_path, name):
    kind, settings = OURS[name]
    model = adapted(build(kind), **settings)
    save_adapter(model, tmp_path)
    again = build(kind, head_seed=1)
    names = load_adapter(again, tmp_path)
    assert names == [name for name, _ in lora_layers(again)] == [n for n, _ in lora_layers(model) if "classif" not in n]
    torch.testing.assert_close(outputs(again), outputs(model), atol=1e-5, rtol=0)


def test_layers_of_different_rank_and_strength(build, tmp_path):
    model = build("distilbert")
    inject_lora(model, ["query"], r=4, alpha=1.5, scaling="alpha")
    inject_lora(model, ["value"], r=2, alpha=1.5, scaling="alpha")
    inject_lora(model, ["layer.1.ffn.lin1"], r=4, alpha=0.3, scaling="alpha")
    train(model)
    save_adapter(model, tmp_path)
    theirs = peft.PeftModel.from_pretrained(build("distilbert", 1), tmp_path)
    torch.testing.assert_close(outputs(theirs), outputs(model), atol=1e-5, rtol=0)
    ours = build("distilbert", 1)
    load_adapter(ours, tmp_path)
    torch.testing.assert_close(outputs(ours), outputs(model), atol=1e-6, rtol=0)


def test_only_the_saved_layers_are_adapted_where_one_name_is_the_end_of_another(build, tmp_path):
    """PEFT takes a target "proj" for "inner.proj" as well."""
    model = build("stack")
    model.inner.requires_grad_(False)
    inject_lora(model, ["proj"], r=2, alpha=1, scaling="alpha")
    model.inner["proj"] = model.inner["proj"].linear
    train(model)
    save_adapter(model, tmp_path)
    theirs = peft.PeftModel.from_pretrained(build("stack"), tmp_path)
    torch.testing.assert_close(outputs(theirs), outputs(model), atol=1e-5, rtol=0)
    assert load_adapter(build("stack"), tmp_path) == ["proj"]


def test_modules_to_save_says_what_is_stored_whole(build, tmp_path):
    model = adapted(build("distilbert"))
    save_adapter(model, tmp_path / "last", modules_to_save=["pre_classifier"])
    other = build("distilbert", head_seed=1)
    load_adapter(other, tmp_path / "last")
    torch.testing.assert_close(other.pre_classifier.weight, model.pre_classifier.weight)
    torch.testing.assert_close(other.classifier.weight, build("distilbert", 1).classifier.weight)
    model.distilbert.transformer.layer[1].output_layer_norm.weight.data += 0.5
    save_adapter(model, tmp_path / "norm", modules_to_save=["layer.1.output_layer_norm", "classifier"])
    load_adapter(fresh := build("distilbert", head_seed=1), tmp_path / "norm")
    torch.testing.assert_close(outputs(fresh), outputs(model), atol=1e-6, rtol=0)


@pytest.mark.parametrize("changes", [{"targets": ["head"]}, None])
def test_a_model_without_lora_beside_its_head_is_no_adapter(build, tmp_path, changes):
    model = adapted(build("distilbert"), **changes) if changes else build("distilbert")
    with pytest.raises(ConfigError, match="has no LoRA layers"):
        save_adapter(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_lora_and_dora_in_one_model_are_no_adapter(build, tmp_path):
    model = build("distilbert")
    inject_lora(model, ["query"], scaling="alpha")
    inject_lora(model, ["value"], layer=LinearWithDoRA, scaling="alpha")
    with pytest.raises(ConfigError, match="mixes"):
        save_adapter(model, tmp_path)


THEIRS = {
    "no head": ("distilbert", {"target_modules": ["q_lin", "v_lin"]}),
    "with a head": ("distilbert", {"target_modules": ["q_lin", "v_lin"], "task_type": "SEQ_CLS"}),
    "mlp": ("distilbert", {"target_modules": ["q_lin", "lin1", "lin2"], "task_type": "SEQ_CLS"}),
    "expression": ("distilbert", {"target_modules": r".*layer\.[01].*\.(q|v)_lin"}),
    "all linear": ("distilbert", {"target_modules": "all-linear"}),
    "excluded": ("distilbert", {"target_modules": ["q_lin"], "exclude_modules": ["layer.0.attention.q_lin"]}),
    "rslora": ("distilbert", {"target_modules": ["q_lin"], "use_rslora": True}),
    "patterns": (
        "distilbert",
        {
            "target_modules": ["q_lin", "v_lin"],
            "rank_pattern": {"v_lin": 2, r"layer\.1\.attention\.q_lin": 3},
            "alpha_pattern": {"^distilbert.transformer.layer.0.attention.v_lin": 7},
        },
    ),
    "dora": ("distilbert", {"target_modules": ["q_lin", "lin1"], "use_dora": True, "task_type": "SEQ_CLS"}),
    "bert": ("bert", {"target_modules": ["query", "value"], "task_type": "SEQ_CLS"}),
    "gpt2": ("gpt2", {"target_modules": ["c_attn"], "fan_in_fan_out": True}),
    "gpt2 with dora": ("gpt2", {"target_modules": ["c_attn"], "fan_in_fan_out": True, "use_dora": True}),
}


@pytest.mark.parametrize("name", THEIRS)
def test_we_load_what_peft_saves(build, tmp_path, name):
    kind, settings = THEIRS[name]
    theirs = peft.get_peft_model(build(kind), peft.LoraConfig(r=4, lora_alpha=6, lora_dropout=0.1, **settings)).eval()
    train(theirs)
    for parameter_name, parameter in theirs.named_parameters():
        if "modules_to_save" in parameter_name:
            parameter.data += 0.1
    theirs.save_pretrained(tmp_path, save_embedding_layers=False)
    ours = build(kind, head_seed=1 if "task_type" in settings else 0)
    load_adapter(ours, tmp_path)
    torch.testing.assert_close(outputs(ours), outputs(theirs), atol=1e-5, rtol=0)
    plain = outputs(build(kind))
    assert not torch.allclose(outputs(ours), plain, atol=1e-3)
    # And back: what was loaded is saved as PEFT loads it.
    save_adapter(ours, tmp_path / "again")
    back = peft.PeftModel.from_pretrained(build(kind, head_seed=2), tmp_path / "again")
    torch.testing.assert_close(outputs(back), outputs(theirs), atol=1e-5, rtol=0)


def test_transformers_loads_what_we_save(build, tmp_path):
    model = adapted(build("distilbert"), targets=["query", "mlp"])
    build("distilbert", 1).save_pretrained(tmp_path / "base")
    save_adapter(model, tmp_path / "adapter", base=str(tmp_path / "base"))
    found = peft.AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "adapter")
    torch.testing.assert_close(outputs(found), outputs(model), atol=1e-5, rtol=0)


def test_loading_draws_no_random_number_and_follows_the_models_mode(build, tmp_path):
    save_adapter(adapted(build("distilbert"), dropout=0.2), tmp_path)
    model, state = build("distilbert"), torch.random.get_rng_state()
    model.train()
    load_adapter(model, tmp_path)
    assert torch.equal(torch.random.get_rng_state(), state)
    layer = next(layer for _, layer in lora_layers(model))
    assert layer.training
    assert layer.lora.dropout.training
    assert layer.lora.dropout.p == 0.2


# What is wrong with an adapter's folder, and a word of the line that says so.


@pytest.fixture
def folder(build, tmp_path) -> Path:
    """A sound adapter of the tiny DistilBERT."""
    save_adapter(adapted(build("distilbert")), tmp_path / "adapter")
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
def test_a_config_that_is_not_of_a_plain_adapter_is_refused(build, folder, changes, words):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    line = refusal(build("distilbert"), folder)
    assert str(folder) in line
    assert all(word in line for word in words), line


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "[" * 100_000, "\x00", '{"peft_type": "LORA"}'])
def test_a_config_that_is_not_one_is_refused(build, folder, content):
    (folder / "adapter_config.json").write_text(content)
    assert str(folder / "adapter_config.json") in refusal(build("distilbert"), folder)


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
def test_weights_in_another_format_are_refused(build, folder, damage, word):
    damage(folder / "adapter_model.safetensors")
    assert word in refusal(build("distilbert"), folder)


def test_weights_that_do_not_belong_are_refused(build, folder):
    path = folder / "adapter_model.safetensors"
    whole = load(path.read_bytes())
    update = "base_model.model.distilbert.transformer.layer.0.attention.q_lin.lora_A.weight"
    for tensors, word in (
        ({name: tensor for name, tensor in whole.items() if not name.endswith("classifier.bias")}, "lacks"),
        ({**whole, "extra": torch.zeros(1)}, "unexpected tensor extra"),
        ({**whole, update: whole[update] * float("nan")}, "not finite"),
        ({**whole, update: whole[update][:, :8].contiguous()}, "(4, 8), where the model needs (4, 32)"),
    ):
        save_file(tensors, path)
        line = refusal(build("distilbert"), folder)
        assert word in line
        assert str(path) in line


def test_an_adapter_of_another_base_is_refused(build, folder, tmp_path):
    shape = {"dim": 16, "n_heads": 2, "n_layers": 2, "hidden_dim": 16, "vocab_size": 40}
    wider = DistilBertForSequenceClassification(build("distilbert").config.__class__(**shape))
    assert ", where the model needs (" in refusal(wider, folder)
    assert "no layers of this GPT2LMHeadModel" in refusal(build("gpt2"), folder)
    save_adapter(adapted(build("stack"), targets=["proj"], r=2), tmp_path / "stack")
    assert "no layers of this BertForSequenceClassification" in refusal(build("bert"), tmp_path / "stack")


def test_a_folder_without_an_adapter_and_a_model_with_one_are_refused(build, folder, tmp_path):
    assert "name an adapter's folder" in refusal(build("distilbert"), tmp_path)
    (tmp_path / "record.json").write_text("{}")
    assert "lora-study export" in refusal(build("distilbert"), tmp_path)
    assert "already has a LoRA update" in refusal(adapted(build("distilbert")), folder)


# Several adapters over one base.


@pytest.fixture
def three(build, tmp_path):
    """A base with three adapters of different layers, heads and kinds, and what each says."""
    base, said = build("distilbert", head_seed=9), {}
    adapters = Adapters(base)
    for seed, settings in enumerate(
        ({}, {"targets": ["mlp"], "r": 2}, {"layer": LinearWithDoRA, "targets": ["value"]})
    ):
        torch.manual_seed(seed)
        model = adapted(build("distilbert", head_seed=seed), **settings)
        save_adapter(model, tmp_path / str(seed))
        adapters.load(f"number {seed}", tmp_path / str(seed))
        said[f"number {seed}"] = outputs(model)
    return adapters, said | {None: outputs(build("distilbert", head_seed=9))}


def test_switching_is_exact_and_the_base_is_never_touched(three):
    adapters, said = three
    base = {name: (value.data_ptr(), value.clone()) for name, value in adapters.model.state_dict().items()}
    assert adapters.names == ["number 0", "number 1", "number 2"]
    assert adapters.active is None
    first: dict[str | None, torch.Tensor] = {}
    order = [*said, *said, *random.Random(0).choices(list(said), k=12)]
    for name in order:
        adapters.use(name)
        assert adapters.active == name
        found = outputs(adapters.model)
        torch.testing.assert_close(found, said[name], atol=1e-6, rtol=0)
        assert torch.equal(found, first.setdefault(name, found))  # bitwise, whatever was in use before
    adapters.use(None)
    for name, value in adapters.model.state_dict().items():
        address, before = base[name]
        assert value.data_ptr() == address
        assert torch.equal(value, before)
    assert not list(lora_layers(adapters.model))


def test_an_adapter_is_removed_and_loaded_while_another_is_in_use(three, tmp_path):
    adapters, said = three
    adapters.use("number 1")
    adapters.load("again", tmp_path / "0")
    assert adapters.active == "number 1"
    torch.testing.assert_close(outputs(adapters.model), said["number 1"], atol=1e-6, rtol=0)
    adapters.use("again")
    torch.testing.assert_close(outputs(adapters.model), said["number 0"], atol=1e-6, rtol=0)
    adapters.remove("number 1")
    assert adapters.active == "again"
    adapters.remove("again")
    assert (adapters.active, adapters.names) == (None, ["number 0", "number 2"])
    assert torch.equal(outputs(adapters.model), said[None])


def test_an_adapter_is_left_out_while_a_block_runs_and_is_back_afterwards(three):
    adapters, said = three
    adapters.use("number 2")
    with_adapter = adapters.model(input_ids=TOKENS).logits
    with_adapter.square().sum().backward()
    trained = [parameter for parameter in adapters.model.parameters() if parameter.requires_grad]
    gradients = [parameter.grad for parameter in trained]
    with adapters.disabled():
        assert torch.equal(outputs(adapters.model), said[None]), "the model's own head, too"
        with pytest.raises(KeyboardInterrupt), adapters.disabled():
            raise KeyboardInterrupt
        assert adapters.active is None
        adapters.use("number 0")  # whatever is used inside
    assert adapters.active == "number 2"
    assert torch.equal(outputs(adapters.model), with_adapter)
    assert [id(p) for p in adapters.model.parameters() if p.requires_grad] == [id(p) for p in trained]
    assert all(parameter.grad is gradient is not None for parameter, gradient in zip(trained, gradients, strict=True))


def test_what_is_left_out_is_what_peft_leaves_out(build, tmp_path):
    save_adapter(adapted(build("distilbert")), tmp_path)
    theirs = peft.PeftModel.from_pretrained(build("distilbert", head_seed=1), tmp_path)
    adapters = Adapters(build("distilbert", head_seed=1))
    adapters.load("one", tmp_path)
    adapters.use("one")
    with theirs.disable_adapter(), adapters.disabled():
        assert torch.equal(outputs(adapters.model), outputs(theirs))
    torch.testing.assert_close(outputs(adapters.model), outputs(theirs), atol=1e-5, rtol=0)


def test_an_adapter_put_in_later_follows_the_mode_the_model_is_in_now(three):
    adapters, _ = three
    adapters.model.train()
    adapters.use("number 2")
    assert all(module.training for module in adapters.model.modules())
    adapters.use(None)
    adapters.model.eval()
    adapters.use("number 0")
    assert not any(module.training for module in adapters.model.modules())


def test_adapters_of_which_one_stores_whole_what_another_adapts(build, tmp_path):
    whole = adapted(build("distilbert"), targets=["query"])
    save_adapter(whole, tmp_path / "whole", modules_to_save=["layer.1.ffn"])
    inner = adapted(build("distilbert"), targets=["lin1"])
    save_adapter(inner, tmp_path / "inner")
    adapters = Adapters(build("distilbert"))
    adapters.load("whole", tmp_path / "whole")
    adapters.load("inner", tmp_path / "inner")
    for name, model in (("whole", whole), ("inner", inner), ("whole", whole), (None, build("distilbert"))):
        adapters.use(name)
        torch.testing.assert_close(outputs(adapters.model), outputs(model), atol=1e-6, rtol=0)


def test_mistaken_names_and_refused_folders_leave_everything_as_it_was(three, tmp_path):
    adapters, said = three
    adapters.use("number 0")
    with pytest.raises(ConfigError, match="number 0, number 1, number 2"):
        adapters.use("number 7")
    with pytest.raises(ConfigError, match="'number 7'"):
        adapters.remove("number 7")
    with pytest.raises(ConfigError, match="remove it first"):
        adapters.load("number 1", tmp_path / "0")
    with pytest.raises(ConfigError, match="nowhere"):
        adapters.load("new", tmp_path / "nowhere")
    assert (adapters.active, len(adapters.names)) == ("number 0", 3)
    torch.testing.assert_close(outputs(adapters.model), said["number 0"], atol=1e-6, rtol=0)


# From a run to an adapter on the command line.


@pytest.fixture(scope="module")
def runs(tiny_backbone, reviews_csv, tmp_path_factory) -> Path:
    """A finished run with LoRA, head included, and one without."""
    results = tmp_path_factory.mktemp("results")
    content = {
        "name": "tiny",
        "model": {"backbone": str(tiny_backbone)},
        "lora": {"alpha": 1, "r": 2, "targets": ["query", "head"]},
        "data": {"source": str(reviews_csv), "sizes": {"train": 24, "val": 4, "test": 8}, "max_length": 16},
        "train": {"epochs": 1, "learning_rate": 0.01, "precision": "32-true", "accelerator": "cpu", "threads": 1},
    }
    content["data"]["cache_dir"] = str(results / "cache")
    config = experiment_from(content)
    for run in (config, dataclasses.replace(config, name="plain", mode="last_two_layers")):
        assert run_experiment(run, results).status == "completed"
    return results


def export(run: Path, output: Path, *more: str) -> int:
    return main(["export", "--run", str(run), "--output", str(output), *more])


def test_an_exported_run_is_the_run_to_peft(build, runs, tmp_path, capsys):
    run, output = runs / "tiny" / "seed-1", tmp_path / "deep" / "adapter"
    assert export(run, output, "--format", "peft") == 0
    printed = capsys.readouterr().out
    assert {path.name for path in output.iterdir()} == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    assert printed.startswith("adapter 0.0 MB, model ")
    theirs = peft.PeftModel.from_pretrained(build("distilbert", head_seed=5), output)
    torch.testing.assert_close(outputs(theirs), outputs(load_run(run).model), atol=1e-5, rtol=0)


def test_an_output_that_is_there_is_replaced_only_when_asked(runs, tmp_path, capsys):
    run, output = runs / "tiny" / "seed-1", tmp_path / "adapter"
    output.mkdir()  # an empty folder is as good as none
    assert export(run, output) == 0
    (output / "note").write_text("mine")
    assert export(run, output) == 2
    assert (output / "note").exists()
    assert export(run, output, "--overwrite") == 0
    assert not (output / "note").exists()
    capsys.readouterr()
    for wrong in (run, runs, tmp_path / "file", tmp_path / "file" / "below"):
        (tmp_path / "file").write_text("mine")
        before = sorted(str(path) for path in (*runs.rglob("*"), *tmp_path.rglob("*")))
        assert export(run, wrong, "--overwrite") == 2
        printed = capsys.readouterr().err
        assert printed.count("\n") == 1
        assert "--output: " in printed
        assert sorted(str(path) for path in (*runs.rglob("*"), *tmp_path.rglob("*"))) == before


def test_a_run_that_cannot_be_exported_leaves_nothing(runs, tmp_path, capsys):
    damaged = Path(shutil.copytree(runs / "tiny" / "seed-1", tmp_path / "run"))
    (damaged / "adapter.safetensors").write_bytes(b"\x80\x04}.")
    for run, word in ((runs / "plain" / "seed-1", "lora-study merge"), (damaged, "a pickle"), (tmp_path / "no", "no")):
        assert export(run, tmp_path / "out") == 2
        printed = capsys.readouterr().err
        assert printed.count("\n") == 1
        assert word in printed
        assert [path.name for path in tmp_path.iterdir()] == ["run"]
