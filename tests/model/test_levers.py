"""levers.py: a model arranged for speed computes what the plain one does."""

import copy

import pytest
import torch
from torch import nn
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from lora_study.config import ExperimentConfig, LoRAConfig
from lora_study.model.classifier import ReviewClassifier
from lora_study.model.fast.dropout import CheapDropout
from lora_study.model.fast.levers import COMPUTE_DTYPE, hold_frozen_linears_in, make_fast
from lora_study.model.modes import apply_mode

MODES = ("lora", "last_two_layers", "full")
CPU = torch.device("cpu")
TOLERANCE = {"32-true": {"atol": 1e-5, "rtol": 1e-4}, "bf16-mixed": {"atol": 3e-2, "rtol": 5e-2}}


def in_mode(mode: str, dropout: float = 0.0, **lora: object) -> DistilBertForSequenceClassification:
    torch.manual_seed(0)
    dropouts = dict.fromkeys(("dropout", "attention_dropout", "seq_classif_dropout"), dropout)
    shape = DistilBertConfig(vocab_size=60, dim=32, n_heads=4, n_layers=2, hidden_dim=64, **dropouts)
    model = DistilBertForSequenceClassification(shape)
    apply_mode(model, ExperimentConfig(mode=mode, lora=LoRAConfig(**lora)))  # type: ignore[arg-type]
    for name, parameter in model.named_parameters():
        if name.endswith("lora_B"):
            nn.init.normal_(parameter, std=0.1)  # as after some training
    return model.train()


def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    mask = (torch.arange(9) < torch.tensor([5, 9, 2, 9])[:, None]).long()
    ids = torch.randint(0, 60, (4, 9), generator=generator) * mask
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([0, 1, 1, 0])}


def step(model: DistilBertForSequenceClassification, precision: str) -> dict[str, torch.Tensor]:
    """Loss, logits and trained weights of one optimizer step, by name."""
    module = ReviewClassifier(model, ExperimentConfig())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    dtype = COMPUTE_DTYPE[precision]
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        loss, logits = module.step(batch())
    loss.backward()
    optimizer.step()
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    return {"loss": loss.detach(), "logits": logits.detach(), **trained}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("device", ["cpu", "cuda"])  # what is arranged for a GPU computes on a CPU, too
def test_one_step_without_dropout_is_the_plain_one_up_to_rounding(mode, precision, device):
    plain = in_mode(mode, targets=("query", "value", "mlp"))
    fast = copy.deepcopy(plain)
    make_fast(fast, torch.device(device), precision)
    expected, found = step(plain, precision), step(fast, precision)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name].float(), value.float(), **TOLERANCE[precision], msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_with_dropout_the_mean_loss_is_the_plain_ones(precision):
    losses = {}
    for fast in (False, True):
        model = in_mode("lora", dropout=0.2)
        if fast:
            make_fast(model, CPU, precision)
            assert not any(type(module) is nn.Dropout and module.p > 0 for module in model.modules())
        module = ReviewClassifier(model, ExperimentConfig())
        dtype = COMPUTE_DTYPE[precision]
        with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype is not None):
            losses[fast] = torch.stack([module.step(batch())[0] for _ in range(300)]).flatten()
    assert losses[True].std() > 0
    spread = (losses[True].var() / 300 + losses[False].var() / 300).sqrt()
    assert abs(losses[True].mean() - losses[False].mean()) < 4 * spread
    assert losses[True].std().item() == pytest.approx(losses[False].std().item(), rel=0.3)


def test_what_lies_in_padding_changes_nothing():
    model = in_mode("lora")
    make_fast(model, CPU, "32-true")
    inputs = {name: value for name, value in batch().items() if name != "labels"}
    expected = model(**inputs).logits
    inputs["input_ids"] = torch.where(inputs["attention_mask"].bool(), inputs["input_ids"], 59)
    assert torch.equal(model(**inputs).logits, expected)
    for review, logits in zip(range(4), expected, strict=True):  # nor who else is in the batch
        alone = model(input_ids=inputs["input_ids"][[review]], attention_mask=inputs["attention_mask"][[review]])
        torch.testing.assert_close(alone.logits[0], logits)


def test_the_same_seed_gives_the_same_step():
    found = []
    for _ in range(2):
        model = in_mode("lora", dropout=0.2)
        make_fast(model, CPU, "bf16-mixed")
        torch.manual_seed(5)
        found.append(step(model, "bf16-mixed"))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize("block", [0, 1])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_dropout_of_attention_acts_in_every_block(block, device):
    model = in_mode("lora", dropout=0.5)
    make_fast(model, torch.device(device), "32-true")
    module = ReviewClassifier(model, ExperimentConfig())
    for each in model.modules():
        if isinstance(each, (nn.Dropout, CheapDropout)):
            each.p = 0.0
    assert torch.equal(module.step(batch())[1], module.step(batch())[1])
    model.distilbert.transformer.layer[block].attention.dropout.p = 0.5
    assert not torch.equal(module.step(batch())[1], module.step(batch())[1])


def test_in_eval_mode_no_dropout_acts():
    model = in_mode("lora", dropout=0.5)
    make_fast(model, CPU, "32-true")
    assert any(isinstance(module, CheapDropout) for module in model.modules())
    module = ReviewClassifier(model.eval(), ExperimentConfig())
    assert torch.equal(module.step(batch())[1], module.step(batch())[1])


def test_trainable_weights_stay_fp32_and_frozen_linears_are_stored_in_bf16():
    model = in_mode("lora")
    make_fast(model, CPU, "bf16-mixed")
    kinds = {(p.requires_grad, p.dtype) for m in model.modules() if isinstance(m, nn.Linear) for p in m.parameters()}
    assert kinds == {(False, torch.bfloat16)}
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


def test_frozen_linears_held_in_bf16_give_what_autocast_gives():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.LayerNorm(16), nn.Linear(16, 4))
    model[0].requires_grad_(False)
    x = torch.randn(3, 16)
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(x)
        hold_frozen_linears_in(model, torch.bfloat16)
        assert torch.equal(model(x), expected)
    assert [module.weight.dtype for module in model] == [torch.bfloat16, torch.float32, torch.float32]
