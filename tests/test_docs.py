"""The README and docs/: every file and link is there, every config is valid, every example runs."""

import re

import pytest
import torch
from miniature_checkout import write_checkout
from pages import FENCED, PAGES, ROOT

from lora_study import unmerge_lora
from lora_study.config_files import load_experiment, load_study, load_sweep

EXAMPLE = re.compile(r"<!-- example: tests/test_docs.py runs it -->\n```python\n(.*?)```", re.DOTALL)
LINK = re.compile(r"\[[^\]\[]*\]\(([^)\s#]+)(?:#[^)]*)?\)")
FILE = re.compile(r"(?<![\w./-])(?:configs|docs|lora_study|results/published|scripts|tests)/[\w./*-]*[\w*/]")
PLACEHOLDER = re.compile(r"\b[A-Z]{3,}\b")  # NAME, EXPERIMENT ...


@pytest.fixture
def checkout(tiny_backbone, reviews_csv, tmp_path, monkeypatch):
    """A miniature checkout as the current folder."""
    monkeypatch.chdir(write_checkout(tmp_path, tiny_backbone, reviews_csv))
    return tmp_path


@pytest.mark.parametrize("page", PAGES)
def test_every_link_and_named_file_is_there(page):
    text = PAGES[page]
    links = [link for link in LINK.findall(text) if "://" not in link]
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []
    named = {name for name in FILE.findall(text) if not PLACEHOLDER.search(name)}
    assert [name for name in named if not list(ROOT.glob(name.rstrip("/")))] == []


def test_the_readme_leads_to_every_page_and_wing():
    readme = PAGES["README.md"]
    assert [page for page in PAGES if page != "README.md" and f"({page})" not in readme] == []
    wings = [path.parent.name for path in (ROOT / "lora_study").glob("*/__init__.py")]
    assert len(wings) >= 10 and [wing for wing in wings if f"    lora_study/{wing}/" not in readme] == []


def test_the_configs_that_a_page_writes_out_are_valid(checkout):
    shown = [code for text in PAGES.values() for language, code in FENCED.findall(text) if language == "yaml"]
    assert len(shown) == 3
    for code in shown:
        if "experiments:" in code:
            kind, load = "studies", load_study
        elif "experiment:" in code:
            kind, load = "sweeps", load_sweep
        else:
            kind, load = "reference", load_experiment
        file = checkout / "configs" / kind / "shown.yaml"
        file.write_text(code)
        assert load(file)
        if kind == "reference":
            assert load_experiment(file) == load_experiment(checkout / "configs" / "reference" / "lora_best.yaml")


def run_example(page, number):
    names: dict = {}
    exec(compile(EXAMPLE.findall(PAGES[page])[number], page, "exec"), names)
    return names


def test_every_example_is_run():
    assert {page: len(EXAMPLE.findall(text)) for page, text in PAGES.items() if "```python" in text} == {
        "README.md": 1,
        "docs/using.md": 4,
    }
    assert all(text.count("```python") == len(EXAMPLE.findall(text)) for text in PAGES.values())


def test_the_short_example_trains_lora_alone_and_leaves_a_plain_model(checkout):
    names = run_example("README.md", 0)
    assert len(names["names"]) == 12
    assert not any("lora" in name for name in names["model"].state_dict())
    assert (checkout / "my_adapter" / "adapter_model.safetensors").exists()


def test_the_example_of_a_language_model_does_what_it_says(checkout, capsys):
    names = run_example("docs/using.md", 0)
    losses = [float(line.rsplit(" ", 1)[1]) for line in capsys.readouterr().out.splitlines()]
    assert len(losses) == 30
    assert sum(losses[-3:]) < 0.5 * sum(losses[:3])
    model, base = names["model"], names["base"]
    merged = model.state_dict()
    assert merged.keys() == base.keys()
    assert {name for name in base if not torch.equal(merged[name], base[name])} == {
        f"transformer.h.{block}.{layer}.weight" for block in (0, 1) for layer in ("attn.c_attn", "mlp.c_fc")
    }
    unmerge_lora(model, names["merged"])
    after = {name.replace(".linear.", "."): weight for name, weight in model.state_dict().items()}
    assert all(torch.equal(after[name], weight) for name, weight in base.items()), "training did not touch the base"
    assert sorted(path.name for path in (checkout / "my_adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert len(names["names"]) == 6
    encoder, x = names["encoder"], torch.randn(2, 5, 32)
    encoder(x).square().mean().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters() if parameter.requires_grad)


def test_the_example_of_several_adapters_does_what_it_says(checkout):
    run_example("docs/using.md", 1)  # it asserts


def test_the_example_of_an_experiment_does_what_it_says(checkout, capsys):
    names = run_example("docs/using.md", 2)
    assert names["record"].status == "completed" and names["record"].data["sizes"]["train"] == 48
    status, first, second = capsys.readouterr().out.splitlines()
    assert status.startswith("completed ")
    assert all(line.split()[0] in ("positive", "negative") for line in (first, second))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore:.*LeafSpec:FutureWarning")  # Lightning's advice to its users
def test_the_example_of_an_own_trainer_does_what_it_says(checkout):
    names = run_example("docs/using.md", 3)
    assert sorted(row for batch in names["said"] for row in batch["index"].tolist()) == list(range(16))
    assert names["trainer"].current_epoch == 2
    assert set(names["trainer"].callback_metrics) == {"train/loss", "train/accuracy", "val/loss", "val/accuracy"}
    assert list((checkout / "logs").rglob("metrics.csv"))
    weights = (checkout / "distilbert/model.safetensors").stat().st_size
    assert all(path.stat().st_size < weights / 4 for path in (checkout / "checkpoints").iterdir())
