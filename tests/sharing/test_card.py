"""The model card: nothing but the record's numbers, valid metadata, and code that runs as it stands."""

import ast
import dataclasses
import importlib
import io
import re
from contextlib import redirect_stdout

import fabricate
import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DistilBertForSequenceClassification

from lora_study.config_differences import deviations
from lora_study.config_files import experiment_from
from lora_study.lora import inject_lora, lora_layers
from lora_study.lora.adapters import save_adapter
from lora_study.model.encoder import BASE_REVISION, BASE_SHA256
from lora_study.records.record import Record
from lora_study.sharing.card import model_card, without_folders, write_card

REFERENCE = {"name": "distilbert-base-uncased", "backbone": "distilbert-base-uncased", "revision": "a" * 40}
BARE = Record(name="bare", mode="lora", seed=1, status="completed")


def record(**changes):
    """A completed run of lora_default with other settings, and the departures that these are."""
    run = fabricate.record(**changes)
    return dataclasses.replace(run, deviations=deviations(experiment_from(run.config)))


def with_encoder(**encoder):
    run = record(config={"model": {"backbone": encoder["backbone"]}, "data": {"source": "hub"}}, data={"source": "hub"})
    return dataclasses.replace(run, provenance={**run.provenance, "encoder": {"stand_in": False, **encoder}})


def on_own_table(source="tickets.csv"):
    return record(config={"data": {"source": f"/home/me/{source}"}}, data={"source": source})


@pytest.mark.parametrize("kind", ["adapter", "model", "onnx"])
@pytest.mark.parametrize("run", [record(), with_encoder(**REFERENCE), on_own_table(), BARE], ids=lambda run: run.name)
def test_metadata_survives_the_round_trip_through_the_file(run, kind, tmp_path):
    write_card(run, kind, tmp_path)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert ModelCard(text).data.to_dict() == model_card(run, kind).data.to_dict()
    assert ModelCard(text).content == text


def test_metadata_names_base_data_library_and_results():
    data = model_card(with_encoder(**REFERENCE), "adapter").data.to_dict()
    assert data["base_model"] == "distilbert/distilbert-base-uncased"
    assert (data["license"], data["language"], data["library_name"]) == ("apache-2.0", "en", "peft")
    assert data["pipeline_tag"] == "text-classification"
    assert data["datasets"] == ["stanfordnlp/imdb"] and "lora" in data["tags"]
    (result,) = data["model-index"][0]["results"]
    assert result["dataset"]["type"] == "stanfordnlp/imdb"
    assert {metric["type"]: metric["value"] for metric in result["metrics"]} == {"accuracy": 0.8, "f1": 0.78}
    libraries = {kind: model_card(record(), kind).data.library_name for kind in ("adapter", "model", "onnx")}
    assert libraries == {"adapter": "peft", "model": "transformers", "onnx": "onnx"}


def test_a_folder_is_known_by_its_weights_and_else_called_by_its_name():
    known = with_encoder(name="distilbert-base-uncased", backbone="/home/me/copy", sha256=BASE_SHA256)
    data = model_card(known, "adapter").data.to_dict()
    assert data["base_model"] == "distilbert/distilbert-base-uncased" and data["license"] == "apache-2.0"
    assert f'revision="{BASE_REVISION}"' in model_card(known, "adapter").text
    named = "distilbert-base-uncased with other weights"
    other = model_card(with_encoder(name=named, backbone="/home/me/distilbert-base-uncased", sha256="ab"), "adapter")
    assert 'FOLDER/OF/distilbert-base-uncased"' in other.text and "base_model" not in other.data.to_dict()
    assert "a local folder named distilbert-base-uncased (SHA-256" in other.text and "/home/me" not in other.text


@pytest.mark.parametrize("kind", ["adapter", "model", "onnx"])
@pytest.mark.parametrize("run", [record(), with_encoder(**REFERENCE)], ids=["stand-in", "reference"])
def test_code_imports_what_there_is(run, kind):
    (code,) = re.findall(r"```python\n(.*?)```", model_card(run, kind).text, re.DOTALL)
    imports = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom)]
    assert imports
    for node in imports:
        module = importlib.import_module(str(node.module))
        assert all(hasattr(module, alias.name) for alias in node.names), node.module


def test_full_model_is_not_tagged_lora():
    assert "lora" not in model_card(fabricate.record("full"), "model").data.tags


def test_stand_in_is_named_by_its_origin_and_labelled():
    card = model_card(record(), "adapter")
    assert card.data.base_model == "sentence-transformers/all-MiniLM-L6-v2"
    assert "**Stand-in encoder.**" in card.text and "rewritten as a DistilBERT" in card.text
    assert not any(f"{word} the article" in card.text for word in ("reproduces", "reproduced", "reproducing"))
    assert "Stand-in encoder" not in model_card(with_encoder(**REFERENCE), "adapter").text


def test_local_encoder_claims_no_origin_and_no_licence():
    run = with_encoder(name="mine", backbone="/home/me/mine", revision=None, sha256="5c" * 32)
    card = model_card(run, "adapter")
    assert card.data.base_model is None and card.data.license is None
    assert "a local folder named mine" in card.text and "5c" * 32 in card.text
    assert "/home" not in str(card)


def test_the_accelerator_is_the_hardware_where_there_is_one():
    assert "| hardware | a CPU, 2 threads |" in model_card(record(), "model").text
    on_gpu = record(provenance={"hardware": {"accelerator": "NVIDIA A100"}})
    assert "| hardware | NVIDIA A100 |" in model_card(on_gpu, "model").text


def test_own_table_is_not_called_imdb():
    card = model_card(on_own_table(), "model")
    assert card.data.datasets is None and card.data.language is None
    assert card.data.eval_results[0].dataset_name == "tickets.csv"
    body = card.text.partition("## Citation")[0]
    assert "IMDb" not in body and "English" not in body and "tickets.csv" in body


def test_results_are_the_records_with_wilsons_interval():
    text = model_card(fabricate.record(test=0.8), "model").text
    assert re.search(r"\| test \| 1,000 \| 80\.00 \| 77\.41 to 82\.36 \| 0\.7800 \| 0\.8500 \| 0\.4200 \|", text)
    assert "73,728 of 22,785,410 parameters" in text


def test_what_the_record_lacks_is_said_and_no_number_is_made_up():
    card = model_card(BARE, "adapter")
    assert card.data.eval_results is None
    results = card.text.partition("## Results")[2].partition("## Data")[0]
    assert results.count("not measured") >= 9
    assert not re.search(r"\d\.\d", results)
    assert "| train.epochs | unknown |" in card.text


def test_contamination_is_told():
    told = "4 test reviews have an exact copy in the training part"
    assert told in model_card(record(), "model").text
    clean = record(data={"overlap": {"across": {"test_in_train": 0}}})
    assert "Contamination" not in model_card(clean, "model").text
    assert "not measured whether test reviews have" in model_card(BARE, "model").text


def test_departures_are_listed_and_only_the_articles_recipe_may_claim_its_numbers():
    mine = model_card(record(config={"train": {"epochs": 7}}), "model").text
    assert "| train.epochs | 3 | 7 |" in mine
    assert "its numbers are not the article's" in mine
    assert "its numbers are not the article's" not in model_card(with_encoder(**REFERENCE), "model").text


def test_same_record_same_card():
    assert str(model_card(record(), "adapter")) == str(model_card(record(), "adapter"))


def test_no_folder_of_the_machine_is_told():
    run = on_own_table()
    command = "lora-study run --config configs/embedded/full.yaml --data.source '/home/me/my data/tickets.csv'"
    run.provenance["command"] = f"{command} --results-dir=~/secret/runs"
    text = str(model_card(run, "model"))
    assert "/home" not in text and "secret" not in text and "my data" not in text
    assert "--config configs/embedded/full.yaml --data.source tickets.csv --results-dir=runs" in text


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("run --config ../a.yaml ./b/c.yaml", "run --config ../a.yaml ./b/c.yaml"),
        ("run --data.source /srv/data/aclImdb/", "run --data.source aclImdb/"),
        ("run --data.source /srv/hub", "run --data.source ./hub"),
        ('run --x \'{"source": "/srv/d.csv"}\'', 'run --x \'{"source": "d.csv"}\''),
        ("HF_ENDPOINT=https://hub.example/a/b run", "HF_ENDPOINT=https://hub.example/a/b run"),
        ("run 'unfinished /srv/d.csv", "run ''\"'\"'unfinished' d.csv"),
        ("run 'two\nlines'", "run 'two lines'"),
    ],
)
def test_commands_keep_all_but_absolute_folders(command, shown):
    assert without_folders(command) == shown


def test_text_of_a_record_cannot_become_markup():
    run = on_own_table("a<script>|[x](y).csv")
    run.deviations[0]["here"] = "<i>"
    run.provenance["versions"]["python"] = "{{ 7 * 7 }} *3*"
    text = model_card(dataclasses.replace(run, name="| <u> |", mode="<b>"), "model").text
    assert "<script>" not in text and "<b>" not in text and "[x](y)" not in text
    assert r"\<i\>" in text and r"# \| \<u\> \|, seed 1" in text and r"python {{ 7 \* 7 }} \*3\*" in text


def run_code(card, **replaced):
    """What the code on a card prints, with folders in place of the names that a reader has to fill in."""
    (code,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    for name, folder in replaced.items():
        assert name.replace("_", "/") in code
        code = code.replace(name.replace("_", "/"), folder)
    with redirect_stdout(io.StringIO()) as printed:
        exec(code, {})
    return printed.getvalue()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT asks for a name of the past
def test_code_for_an_adapter_runs(tiny_backbone, tmp_path):
    pytest.importorskip("peft")
    torch.manual_seed(1)
    model = DistilBertForSequenceClassification.from_pretrained(tiny_backbone)
    inject_lora(model, ["query", "value"], scaling="alpha")
    for _, layer in lora_layers(model):
        torch.nn.init.normal_(layer.lora.lora_B)
    save_adapter(model.eval(), tmp_path)
    tokens = AutoTokenizer.from_pretrained(tiny_backbone)(["A wonderful film."], return_tensors="pt")
    card = model_card(with_encoder(name="tiny", backbone="./tiny", revision=None, sha256=None), "adapter")
    with torch.no_grad():
        expected = model(**tokens).logits.softmax(-1)
    printed = run_code(card, FOLDER_OF_tiny=str(tiny_backbone), USER_NAME=str(tmp_path))
    found = [float(number) for number in re.findall(r"\d\.\d+(?:e-\d+)?", printed)]
    assert found == pytest.approx(expected[0].tolist(), abs=1e-4)


def test_code_for_a_merged_model_runs(tiny_backbone, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(tiny_backbone, id2label={0: "negative", 1: "positive"})
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_backbone).save_pretrained(tmp_path)
    assert re.search(
        r"'label': '(negative|positive)'", run_code(model_card(record(), "model"), USER_NAME=str(tmp_path))
    )
