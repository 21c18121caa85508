"""checks.py: what LoRA promises is measured on the run, and a run that breaks a promise shows it."""

import pytest
import torch

from lora_study.training import checks
from lora_study.training.checks import check_lora
from lora_study.training.experiment import run_experiment
from lora_study.training.places import Place
from lora_study.training.stages import build, pick_computer, read_reviews


@pytest.fixture(scope="module")
def trained(tiny):
    """A config of mode "lora", its reviews and a model whose A and B are as if trained; each test gets a fresh one."""
    config = tiny("lora")

    def make():
        computer = pick_computer(config, Place())
        built = build(config, computer)
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for parameter in built.model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn(parameter.shape, generator=generator) / 4)
        return config, read_reviews(config), built

    return make


@pytest.mark.parametrize("name", ["lora", "lora_with_head", "bf16"])
def test_a_run_records_that_its_promises_hold(tiny, tmp_path, name):
    found = run_experiment(tiny(name), tmp_path).metrics["lora"]
    assert found["start_difference"] == 0
    assert found["changed_tensors"] == 0
    assert 0 < found["merge_difference"] < 1e-5
    if name == "lora_with_head":
        assert found["least_probability"] is found["most_probability"] is None
    else:
        assert 0 < found["least_probability"] < 0.5 < found["most_probability"] < 1


@pytest.mark.parametrize("changes", [{"score_test": False}, {"mode": "full", "lora": {"targets": ["query"]}}])
def test_what_is_not_checked_is_null(tiny, tmp_path, changes):
    found = run_experiment(tiny("lora", **changes, train={"epochs": 1}), tmp_path).metrics["lora"]
    assert len(found) == 5 and set(found.values()) == {None}


def test_a_changed_frozen_weight_is_counted(trained):
    config, reviews, built = trained()
    assert check_lora(config, reviews, built)["changed_tensors"] == 0
    state = built.model.state_dict()
    for name in ("distilbert.embeddings.LayerNorm.bias", "distilbert.transformer.layer.1.attention.k_lin.weight"):
        state[name].view(-1)[3] += 0.5
    assert check_lora(config, reviews, built)["changed_tensors"] == 2


def test_an_update_that_is_not_zero_at_the_start_is_measured(trained, monkeypatch):
    def apply_mode(model, config):
        real(model, config)
        for name, parameter in model.named_parameters():
            if name.endswith("lora_B"):
                parameter.data.fill_(0.1)

    real = checks.apply_mode
    monkeypatch.setattr(checks, "apply_mode", apply_mode)
    assert check_lora(*trained())["start_difference"] > 1e-3


def test_a_merge_that_loses_the_update_is_measured(trained, monkeypatch):
    def merge_lora(model):
        for name, parameter in model.named_parameters():
            if name.endswith("lora_B"):
                parameter.data.zero_()

    monkeypatch.setattr(checks, "merge_lora", merge_lora)
    assert check_lora(*trained())["merge_difference"] > 1e-3


def test_the_trained_model_is_left_as_it_is(trained):
    config, reviews, built = trained()
    before = {name: value.clone() for name, value in built.model.state_dict().items()}
    check_lora(config, reviews, built)
    after = built.model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
