"""export.py: a run's LoRA in a folder that PEFT reads, written whole or not at all."""

import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
from fabricate_run import finished_run
from huggingface_hub import ModelCard

from lora_study.cli import main
from lora_study.config import ModelConfig
from lora_study.model.encoder import build_model
from lora_study.sharing.trained import load_run

# PEFT asks transformers by a name that transformers 5 is giving up.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


@pytest.fixture(scope="module")
def runs(tiny_backbone, reviews_csv, tmp_path_factory) -> Path:
    """A finished run with LoRA, head included, and one without."""
    results = tmp_path_factory.mktemp("results")
    finished_run(results, tiny_backbone, reviews_csv, lora={"targets": ["query", "head"]})
    finished_run(results, tiny_backbone, reviews_csv, name="plain", mode="last_two_layers")
    return results


def export(run: Path, output: Path, *more: str) -> int:
    return main(["export", "--run", str(run), "--output", str(output), *more])


def test_an_exported_run_is_the_run_to_peft(runs, tiny_backbone, tmp_path, capsys):
    run, output = runs / "tiny" / "seed-1", tmp_path / "deep" / "adapter"
    assert export(run, output, "--format", "peft") == 0
    printed = capsys.readouterr().out
    assert {path.name for path in output.iterdir()} == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    assert printed.startswith("adapter 0.0 MB, model ")
    base = build_model(ModelConfig(backbone=str(tiny_backbone)), head_seed=5)
    theirs, tokens = peft.PeftModel.from_pretrained(base, output), torch.tensor([[2, 7, 9, 11, 3], [2, 8, 30, 6, 3]])
    said = load_run(run).model(input_ids=tokens).logits
    torch.testing.assert_close(theirs(input_ids=tokens).logits, said, atol=1e-5, rtol=0)


def test_the_adapter_and_its_card_name_one_base(runs, tmp_path):
    run = shutil.copytree(runs, tmp_path / "results") / "tiny" / "seed-1"
    record = json.loads((run / "record.json").read_text())
    record["provenance"]["encoder"] |= {"backbone": "distilbert-base-cased", "revision": "b" * 40}
    (run / "record.json").write_text(json.dumps(record))
    assert export(run, tmp_path / "adapter") == 0
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    name = "distilbert/distilbert-base-cased"
    assert (config["base_model_name_or_path"], config["revision"]) == (name, "b" * 40)
    card = ModelCard.load(tmp_path / "adapter" / "README.md")
    assert card.data.base_model == name and f'"{name}", revision="{"b" * 40}"' in card.text


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
