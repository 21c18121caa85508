"""peft_format: PEFT reads what is written here, and what PEFT writes is read here."""

import peft
import pytest
import torch
from small_networks import adapted, base, outputs, train

from lora_study import ConfigError, LinearWithDoRA, inject_lora, load_adapter, lora_layers, save_adapter

# PEFT asks transformers by a name that transformers 5 is giving up.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


OURS = {
    "alpha": ("distilbert", {"scaling": "alpha"}),
    "alpha/r": ("distilbert", {"scaling": "alpha/r", "targets": ["query", "key", "value", "projection", "mlp"]}),
    "alpha/sqrt(r)": ("distilbert", {"scaling": "alpha/sqrt(r)", "r": 3}),
    "with the head": ("distilbert", {"targets": ["value", "head"]}),
    "dora": ("distilbert", {"layer": LinearWithDoRA, "targets": ["value", "mlp"]}),
    "dora with the head": ("distilbert", {"layer": LinearWithDoRA, "targets": ["value", "head"]}),
    "bert": ("bert classifier", {"targets": ["attention.self.query", "output.dense"]}),
    "gpt2": ("gpt2", {"targets": ["c_attn", "c_proj"]}),
    "gpt2 with dora": ("gpt2", {"targets": ["c_attn"], "layer": LinearWithDoRA}),
    "gpt2 classifier": ("gpt2 classifier", {"targets": ["c_attn"]}),
    "no transformer": ("stack", {"targets": ["inner.proj"]}),
}


@pytest.mark.parametrize("name", OURS)
def test_peft_loads_what_we_save_over_a_base_with_another_head(tmp_path, name):
    kind, settings = OURS[name]
    model = adapted(kind, **settings)
    save_adapter(model, tmp_path, base="the-base")
    other = base(kind, head_seed=1)
    assert not torch.allclose(outputs(other), outputs(model), atol=1e-3)
    theirs = peft.PeftModel.from_pretrained(other, tmp_path)  # a missing key would be a warning, and so an error
    torch.testing.assert_close(outputs(theirs), outputs(model), atol=1e-5, rtol=0)
    assert theirs.peft_config["default"].base_model_name_or_path == "the-base"


@pytest.mark.parametrize("name", OURS)
def test_we_load_what_we_save(tmp_path, name):
    kind, settings = OURS[name]
    model = adapted(kind, **settings)
    save_adapter(model, tmp_path)
    again = base(kind, head_seed=1)
    names = load_adapter(again, tmp_path)
    assert names == [name for name, _ in lora_layers(again)] == [n for n, _ in lora_layers(model) if "classif" not in n]
    torch.testing.assert_close(outputs(again), outputs(model), atol=1e-5, rtol=0)


def test_layers_of_different_rank_and_strength(tmp_path):
    model = base("distilbert")
    inject_lora(model, ["query"], r=4, alpha=1.5, scaling="alpha")
    inject_lora(model, ["value"], r=2, alpha=1.5, scaling="alpha")
    inject_lora(model, ["layer.1.ffn.lin1"], r=4, alpha=0.3, scaling="alpha")
    train(model)
    save_adapter(model, tmp_path)
    theirs = peft.PeftModel.from_pretrained(base("distilbert", 1), tmp_path)
    torch.testing.assert_close(outputs(theirs), outputs(model), atol=1e-5, rtol=0)
    ours = base("distilbert", 1)
    load_adapter(ours, tmp_path)
    torch.testing.assert_close(outputs(ours), outputs(model), atol=1e-6, rtol=0)


def test_only_the_saved_layers_are_adapted_where_one_name_is_the_end_of_another(tmp_path):
    """PEFT takes a target "proj" for "inner.proj" as well."""
    model = base("stack")
    model.inner.requires_grad_(False)
    inject_lora(model, ["proj"], r=2, alpha=1, scaling="alpha")
    model.inner["proj"] = model.inner["proj"].linear
    train(model)
    save_adapter(model, tmp_path)
    theirs = peft.PeftModel.from_pretrained(base("stack"), tmp_path)
    torch.testing.assert_close(outputs(theirs), outputs(model), atol=1e-5, rtol=0)
    assert load_adapter(base("stack"), tmp_path) == ["proj"]


def test_modules_to_save_says_what_is_stored_whole(tmp_path):
    model = adapted("distilbert")
    save_adapter(model, tmp_path / "last", modules_to_save=["pre_classifier"])
    other = base("distilbert", head_seed=1)
    load_adapter(other, tmp_path / "last")
    torch.testing.assert_close(other.pre_classifier.weight, model.pre_classifier.weight)
    torch.testing.assert_close(other.classifier.weight, base("distilbert", 1).classifier.weight)
    model.distilbert.transformer.layer[1].output_layer_norm.weight.data += 0.5
    save_adapter(model, tmp_path / "norm", modules_to_save=["layer.1.output_layer_norm", "classifier"])
    load_adapter(fresh := base("distilbert", head_seed=1), tmp_path / "norm")
    torch.testing.assert_close(outputs(fresh), outputs(model), atol=1e-6, rtol=0)


def test_a_model_without_lora_beside_its_head_is_no_adapter(tmp_path):
    for model in (adapted("distilbert", ["head"]), base("distilbert")):
        with pytest.raises(ConfigError, match="has no LoRA layers"):
            save_adapter(model, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_lora_and_dora_in_one_model_are_no_adapter(tmp_path):
    model = base("distilbert")
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
    "bert": ("bert classifier", {"target_modules": ["query", "value"], "task_type": "SEQ_CLS"}),
    "gpt2": ("gpt2", {"target_modules": ["c_attn"], "fan_in_fan_out": True}),
    "gpt2 with dora": ("gpt2", {"target_modules": ["c_attn"], "fan_in_fan_out": True, "use_dora": True}),
}


@pytest.mark.parametrize("name", THEIRS)
def test_we_load_what_peft_saves(tmp_path, name):
    kind, settings = THEIRS[name]
    theirs = peft.get_peft_model(base(kind), peft.LoraConfig(r=4, lora_alpha=6, lora_dropout=0.1, **settings)).eval()
    train(theirs).save_pretrained(tmp_path, save_embedding_layers=False)
    ours = base(kind, head_seed=1 if "task_type" in settings else 0)
    load_adapter(ours, tmp_path)
    torch.testing.assert_close(outputs(ours), outputs(theirs), atol=1e-5, rtol=0)
    plain = outputs(base(kind))
    assert not torch.allclose(outputs(ours), plain, atol=1e-3)
    # And back: what was loaded is saved as PEFT loads it.
    save_adapter(ours, tmp_path / "again")
    back = peft.PeftModel.from_pretrained(base(kind, head_seed=2), tmp_path / "again")
    torch.testing.assert_close(outputs(back), outputs(theirs), atol=1e-5, rtol=0)


def test_loading_draws_no_random_number_and_follows_the_models_mode(tmp_path):
    save_adapter(adapted("distilbert", dropout=0.2), tmp_path)
    model, state = base("distilbert"), torch.random.get_rng_state()
    model.train()
    load_adapter(model, tmp_path)
    assert torch.equal(torch.random.get_rng_state(), state)
    layer = next(layer for _, layer in lora_layers(model))
    assert layer.training
    assert layer.lora.dropout.training
    assert layer.lora.dropout.p == 0.2
