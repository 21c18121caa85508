"""peft_format/saving.py: whatever was trained is in the folder, whatever wraps the model, or nothing is written."""

import json
import resource
from collections import OrderedDict
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file
from small_networks import adapted, base, outputs, train
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from lora_study import (
    Adapters,
    ConfigError,
    LinearWithLoRA,
    LoRALayer,
    inject_lora,
    load_adapter,
    lora_layers,
    save_adapter,
)
from lora_study.lora.dora import LinearWithDoRA

# PEFT asks transformers by a name that transformers 5 is giving up.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
PREFIX = "base_model.model."


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of an adapter's folder."""
    return load_file(folder / "adapter_model.safetensors")


TRAINED = {
    "head of question answering": ("distilbert questions", {"trained": "qa_outputs"}),
    "pooler": ("bert", {"trained": "pooler"}),
    "heads of choices": ("bert choices", {"trained": "pooler classifier"}),
    "head of tokens": ("bert tokens", {"trained": "classifier"}),
    "head of two layers": ("roberta", {"trained": "classifier"}),
    "half a head": ("roberta", {"trained": "classifier.dense"}),
    "norms": ("bert", {"trained": "LayerNorm"}),
    "biases": ("bert", {"trained": "bias"}),
    "biases with dora": ("distilbert", {"trained": "bias", "layer": LinearWithDoRA}),
    "embeddings": ("bert", {"trained": "embeddings"}),
    "tied embeddings": ("gpt2", {"targets": ["c_attn"], "trained": "wte"}),
    "tied embeddings under an update": ("gpt2", {"targets": ["lm_head"], "trained": "wte"}),
    "shared embeddings": ("t5", {"targets": ["q", "wo"], "trained": "shared"}),
    "adapted layers": ("bert", {"trained": "query", "layer": LinearWithDoRA}),
    "all of bert": ("bert tokens", {"trained": "."}),
    "all of distilbert": ("distilbert", {"trained": ".", "targets": ["query", "head"]}),
    "all of gpt2": ("gpt2", {"targets": ["c_attn", "c_proj"], "trained": "."}),
    "all of t5": ("t5", {"targets": ["q"], "trained": "."}),
    "shared embeddings that are named": ("t5", {"targets": ["q"], "trained": "shared", "saved": ["shared"]}),
    "tied embeddings that are named": ("gpt2", {"targets": ["c_attn"], "trained": "wte", "saved": ["wte"]}),
    "odd places": ("odd", {"targets": ["body.proj"], "trained": "shift scales in_proj norm output"}),
    "all of the odd one": ("odd", {"targets": ["body.proj"], "trained": "shift scales body head attention output"}),
}


@pytest.mark.parametrize("name", TRAINED)
def test_whatever_was_trained_is_there_again(tmp_path, name):
    kind, settings = TRAINED[name]
    saved = settings.get("saved")
    settings = {key: value for key, value in settings.items() if key != "saved"}
    model = adapted(kind, **settings)
    only_lora = adapted(kind, **settings | {"trained": ""})
    assert not torch.allclose(outputs(model), outputs(only_lora), atol=1e-4)
    save_adapter(model, tmp_path / "once", modules_to_save=saved)
    fresh = base(kind)
    load_adapter(fresh, tmp_path / "once")
    torch.testing.assert_close(outputs(fresh), outputs(model), atol=1e-5, rtol=0)
    # Nor is it lost when the model that it was loaded into is saved.
    save_adapter(fresh, tmp_path / "twice")
    adapters = Adapters(again := base(kind))
    adapters.load("twice", tmp_path / "twice")
    for active, said in (("twice", model), (None, base(kind)), ("twice", model)):
        adapters.use(active)
        torch.testing.assert_close(outputs(again), outputs(said), atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings", "ignore:.*ensure_weight_tying", "ignore:fan_in_fan_out")
@pytest.mark.parametrize("name", TRAINED)
def test_peft_has_it_too(tmp_path, name):
    kind, settings = TRAINED[name]
    if "saved" in settings:
        pytest.skip("PEFT parts a tied module from its twin")
    model = adapted(kind, **settings)
    save_adapter(model, tmp_path)
    theirs = peft.PeftModel.from_pretrained(base(kind), tmp_path).eval()
    torch.testing.assert_close(outputs(theirs), outputs(model), atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings", "ignore:.*ensure_weight_tying", "ignore:fan_in_fan_out")
@pytest.mark.parametrize("name", ["tied embeddings", "tied embeddings under an update", "shared embeddings"])
def test_transformers_has_a_tied_tensor_in_all_its_places(tmp_path, name):
    """It puts another tensor in each place that the folder names, and leaves the others as they are."""
    kind, settings = TRAINED[name]
    model = adapted(kind, **settings)
    save_adapter(model, tmp_path)
    theirs = base(kind)
    theirs.load_adapter(str(tmp_path))
    torch.testing.assert_close(outputs(theirs.eval()), outputs(model), atol=1e-5, rtol=0)


def test_what_training_changes_and_a_folder_cannot_hold_is_named(tmp_path):
    network = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)).requires_grad_(False)
    inject_lora(network, ["0"], r=2, scaling="alpha")
    inject_lora(network, ["2"], r=2, scaling="alpha", dropout=0.5)
    with pytest.warns(UserWarning) as warned:
        save_adapter(network, tmp_path / "lacks")
    said = [str(line.message) for line in warned]
    assert any(line.startswith("the running statistics of 1 change") for line in said)
    assert any("these layers have 0, 0.5" in line for line in said)
    network[2].lora.dropout.p = 0.0
    network[0].linear.weight.requires_grad_(False)
    save_adapter(network, tmp_path / "named", modules_to_save=["1"])  # warnings are errors here
    save_adapter(network.eval(), tmp_path / "evaluated")


def test_a_frozen_base_and_its_biases_stay_out_of_the_folder(tmp_path):
    save_adapter(adapted("distilbert questions", trained="qa_outputs"), tmp_path / "head")
    save_adapter(adapted("bert", trained="bias"), tmp_path / "biases")
    save_adapter(adapted("bert", trained="LayerNorm"), tmp_path / "norms")
    names = {name: list(tensors_of(tmp_path / name)) for name in ("head", "biases", "norms")}
    assert {name for name in names["head"] if "lora_" not in name} == {
        *(f"{PREFIX}qa_outputs.weight", f"{PREFIX}qa_outputs.bias")
    }
    assert not [name for name in names["biases"] if not name.endswith(".bias") and "lora_" not in name]
    # PEFT can switch modules that are stored whole, and has them when it saves the adapter again.
    saved = json.loads((tmp_path / "norms" / "adapter_config.json").read_text())["modules_to_save"]
    assert len(saved) == 5
    assert all(name.endswith("LayerNorm") for name in saved)


def test_a_base_that_was_not_frozen_is_named(tmp_path, caplog):
    save_adapter(adapted("bert", trained="."), tmp_path)
    assert "query.weight requires gradients" in caplog.text
    assert "requires_grad_(False) before inject_lora" in caplog.text
    caplog.clear()
    save_adapter(adapted("bert", trained="LayerNorm"), tmp_path)
    assert not caplog.text


def test_tied_tensors_of_a_module_that_is_stored_whole(tmp_path):
    model = adapted("odd", ["body.proj"])
    model.tail = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    model.tail[1].weight = model.tail[0].weight
    save_adapter(model, tmp_path, modules_to_save=["tail"])
    other = base("odd")
    other.tail = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    other.tail[1].weight = other.tail[0].weight
    load_adapter(other, tmp_path)
    assert other.tail[1].weight is other.tail[0].weight
    assert torch.equal(other.tail[1].weight, model.tail[0].weight)


# Names that are mistaken.


@pytest.mark.parametrize(
    ("names", "word"),
    [
        (["clasifier"], "'clasifier'"),
        ([], "name modules"),
        ([""], "''"),
        (["classifier", "scores"], "'scores'"),
        (3, "3"),
    ],
)
def test_modules_that_are_not_there_are_refused(tmp_path, names, word):
    with pytest.raises(ConfigError, match=f"modules_to_save: .*{word}"):
        save_adapter(adapted("distilbert"), tmp_path / "out", modules_to_save=names)
    assert not (tmp_path / "out").exists()


def test_one_name_is_one_name(tmp_path):
    save_adapter(adapted("distilbert"), tmp_path, modules_to_save="classifier")
    assert json.loads((tmp_path / "adapter_config.json").read_text())["modules_to_save"] == [
        "pre_classifier",
        "classifier",
    ]


# Numbers of other libraries, and other paths.


def test_numbers_of_numpy_are_numbers(tmp_path):
    numbers = {"r": np.int64(3), "alpha": np.float32(1.5), "dropout": np.float32(0.25)}
    model = base("distilbert")
    inject_lora(model, ["query"], **numbers, scaling="alpha/r")
    save_adapter(train(model), tmp_path)
    content = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (content["r"], content["lora_alpha"], content["lora_dropout"]) == (3, 1.5, 0.25)


def test_a_number_that_json_cannot_hold_leaves_the_folder_as_it_was(tmp_path):
    save_adapter(adapted("distilbert"), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    model = adapted("distilbert", ["value"])
    dict(lora_layers(model))["distilbert.transformer.layer.1.attention.v_lin"].lora.scaling = float("inf")
    with pytest.raises(ConfigError, match=r"layer\.1\.attention\.v_lin has inf"):
        save_adapter(model, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_paths_may_begin_at_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save_adapter(adapted("distilbert"), "~/adapter", base="~/base")
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        tmp_path / "base"
    )
    assert load_adapter(base("distilbert"), "~/adapter")
    (adapters := Adapters(base("distilbert"))).load("one", "~/adapter")
    assert adapters.names == ["one"]
    save_adapter(adapted("distilbert"), tmp_path, base=Path("some") / "base")
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == "some/base"


@pytest.mark.parametrize("damage", ["nan", "meta", "no tensor"])
def test_what_no_one_could_load_is_not_written(tmp_path, damage):
    model = adapted("distilbert")
    save_adapter(model, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    if damage == "nan":
        nn.init.constant_(
            dict(lora_layers(model))["distilbert.transformer.layer.1.attention.q_lin"].lora.lora_B, np.nan
        )
    elif damage == "meta":
        model.classifier.to("meta")
    else:
        model.classifier.__class__ = type("Counting", (nn.Linear,), {"get_extra_state": lambda self: {"steps": 3}})
    word = {
        "nan": r"layer\.1\..*not finite",
        "meta": "meta device",
        "no tensor": "classifier._extra_state is no tensor",
    }
    with pytest.raises(ConfigError, match=word[damage]):
        save_adapter(model, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_full_disk_is_an_oserror_and_costs_nothing_that_was_there(tmp_path):
    model = adapted("distilbert")
    save_adapter(model, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            save_adapter(train(model), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("head", ["linear", "dropout", "out"])
@pytest.mark.parametrize("trained", [False, True])
def test_a_head_may_be_called_as_a_part_of_an_adapted_layer(tmp_path, head, trained):
    def network(seed):
        torch.manual_seed(seed)
        model = nn.Sequential(OrderedDict(enc=nn.Linear(4, 6))).requires_grad_(False)
        torch.manual_seed(seed + 1)
        model.add_module(head, nn.Linear(6, 3).requires_grad_(trained))
        return model

    model = network(0)
    inject_lora(model, ["enc"], r=2, alpha=3, scaling="alpha")
    train(model)
    save_adapter(model, tmp_path, modules_to_save=None if trained else [head])
    assert json.loads((tmp_path / "adapter_config.json").read_text())["modules_to_save"] == [head]
    other = network(0)
    nn.init.zeros_(other.get_submodule(head).weight)
    load_adapter(other, tmp_path)
    x = torch.linspace(-1, 1, 8).reshape(2, 4)
    torch.testing.assert_close(other(x), model(x))


def test_an_adapted_layer_alone_is_no_model_to_save(tmp_path):
    with pytest.raises(ConfigError, match="the model is an adapted layer itself; save the model it belongs to"):
        save_adapter(LinearWithLoRA(nn.Linear(4, 4), LoRALayer(4, 4, 2, 1)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_head_that_cannot_be_merged_is_named(tmp_path):
    model = adapted("distilbert", ["query", "classifier"])
    nn.init.constant_(model.classifier.lora.lora_B, np.nan)
    with pytest.raises(ConfigError, match=r"^classifier cannot be merged: lora\.lora_B holds numbers"):
        save_adapter(model, tmp_path)


def test_a_frozen_head_goes_with_the_adapter_whatever_it_is_called(tmp_path):
    model = adapted("distilbert questions")
    nn.init.ones_(model.qa_outputs.weight)
    save_adapter(model, tmp_path)
    load_adapter(other := base("distilbert questions"), tmp_path)
    assert torch.equal(other.qa_outputs.weight, model.qa_outputs.weight)
    assert not other.qa_outputs.weight.requires_grad


def test_a_classifiers_head_goes_with_it_under_names_that_no_other_has(tmp_path):
    model = adapted("xlnet classifier", ["layer_1"], head_seed=1)
    save_adapter(model, tmp_path)
    load_adapter(ours := base("xlnet classifier", head_seed=2), tmp_path)
    theirs = peft.PeftModel.from_pretrained(base("xlnet classifier", head_seed=3), tmp_path)
    for found in (ours, theirs):
        torch.testing.assert_close(outputs(found), outputs(model), atol=1e-6, rtol=0)
    assert not ours.logits_proj.weight.requires_grad


# Models in a wrapper.


@pytest.fixture
def one_process(tmp_path):
    """A process group of this process alone."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")  # type: ignore[no-any-return]


def distributed(model: nn.Module) -> nn.Module:
    """It wants parameters to train; the buffers' broadcast does not compile."""
    return DistributedDataParallel(model.requires_grad_(True), broadcast_buffers=False)


def with_inner_wrappers(model: nn.Module) -> nn.Module:
    """Compile one block and one layer of a DistilBERT, as people do whose whole model does not compile."""
    layers = model.distilbert.transformer.layer
    layers[0] = compiled(layers[0])
    layers[1].attention = DataParallel(layers[1].attention)
    model.classifier = compiled(model.classifier)
    return model


WRAPPERS = {
    "compile": compiled,
    "data parallel": DataParallel,
    "distributed": lambda model: distributed(model),
    "distributed, then compile": lambda model: compiled(distributed(model)),
    "compile, then distributed": lambda model: distributed(compiled(model)),
    "data parallel, then compile": lambda model: compiled(DataParallel(model)),
    "average": AveragedModel,
    "inside": with_inner_wrappers,
}


@pytest.mark.filterwarnings("ignore:.*broadcast_buffers:FutureWarning")
@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("name", WRAPPERS)
def test_a_wrapped_model_is_saved_and_loaded_as_what_it_wraps(tmp_path, name):
    wrap = WRAPPERS[name]
    model = adapted("distilbert", ["query", "value"])
    save_adapter(model.requires_grad_("distributed" in name), tmp_path / "plain")
    save_adapter(wrap(model), tmp_path / "wrapped")
    plain, wrapped = ({path.name: path.read_bytes() for path in (tmp_path / n).iterdir()} for n in ("plain", "wrapped"))
    assert wrapped == plain

    said = outputs(adapted("distilbert", ["query", "value"]))
    loaded = wrap(base("distilbert"))
    outputs(loaded)  # a compiled model is compiled before
    names = load_adapter(loaded, tmp_path / "plain")
    assert names == [name for name, _ in lora_layers(adapted("distilbert", ["query", "value"]))]
    torch.testing.assert_close(outputs(loaded), said, atol=1e-6, rtol=0)
    adapters = Adapters(switched := wrap(base("distilbert")))
    adapters.load("one", tmp_path / "plain")
    for active, expected in (("one", said), (None, outputs(base("distilbert"))), ("one", said)):
        adapters.use(active)
        torch.testing.assert_close(outputs(switched), expected, atol=1e-6, rtol=0)


def test_a_childs_own_name_is_no_wrapper(tmp_path):
    model = nn.Sequential()
    model.add_module("module", nn.Linear(4, 4))
    inject_lora(model.requires_grad_(False), ["module"], r=2, scaling="alpha")
    save_adapter(model, tmp_path)
    assert list(tensors_of(tmp_path)) == [f"{PREFIX}module.lora_A.weight", f"{PREFIX}module.lora_B.weight"]


def test_a_model_that_is_spread_over_processes_is_refused(tmp_path):
    class FullyShardedDataParallel(nn.Module):
        """Known by its name, for the real one needs a GPU."""

        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self._fsdp_wrapped_module = module

    model = FullyShardedDataParallel(adapted("distilbert"))
    with pytest.raises(ConfigError, match="spread over processes"):
        save_adapter(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# What PEFT does with it.


@pytest.mark.parametrize(
    ("network", "targets", "word"),
    [
        (lambda: nn.ModuleDict({"att": nn.MultiheadAttention(8, 2)}), ["out_proj"], r"att\.out_proj"),
        (lambda: nn.TransformerEncoderLayer(8, 2, 16), ["linear1", "linear2"], "linear1, linear2"),
    ],
)
def test_layers_that_peft_would_ignore_are_named(tmp_path, network, targets, word):
    model = network().requires_grad_(False)
    inject_lora(model, targets, r=2, scaling="alpha")
    with pytest.warns(UserWarning, match=f"PEFT ignores the updates of {word}"):
        save_adapter(model, tmp_path)


def test_layers_of_the_same_names_elsewhere_are_not(tmp_path):
    model = nn.ModuleDict({"out_proj": nn.Linear(4, 4), "linear1": nn.Linear(4, 4)}).requires_grad_(False)
    inject_lora(model, ["out_proj", "linear1"], r=2, scaling="alpha")
    save_adapter(model, tmp_path)


@pytest.mark.parametrize(
    ("kind", "auto"),
    [
        ("distilbert", peft.AutoPeftModelForSequenceClassification),
        ("distilbert questions", peft.AutoPeftModelForQuestionAnswering),
        ("bert tokens", peft.AutoPeftModelForTokenClassification),
        ("bert tokens", peft.AutoPeftModel),
        ("bert", peft.AutoPeftModelForFeatureExtraction),
        ("gpt2", peft.AutoPeftModelForCausalLM),
        ("gpt2", peft.AutoPeftModel),
        ("t5", peft.AutoPeftModelForSeq2SeqLM),
    ],
)
def test_pefts_auto_classes_read_it(tmp_path, kind, auto):
    base(kind).save_pretrained(tmp_path / "base")
    targets = {"gpt2": ["c_attn"], "t5": ["q"]}.get(kind, ["query"])
    model = adapted(kind, targets, trained="qa_outputs classifier")
    save_adapter(model, tmp_path / "adapter", base=tmp_path / "base", revision="a-tag")
    assert peft.PeftConfig.from_pretrained(tmp_path / "adapter").revision == "a-tag"
    theirs = auto.from_pretrained(tmp_path / "adapter")
    torch.testing.assert_close(outputs(theirs), outputs(model), atol=1e-5, rtol=0)
