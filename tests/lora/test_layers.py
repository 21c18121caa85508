"""layers.py: the mathematics beside PEFT's, in any type of number and in every place; what an adapted layer answers."""

import copy

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from lora_study import (
    LinearWithDoRA,
    LinearWithLoRA,
    LoRALayer,
    inject_lora,
    lora_layers,
    lora_parameters,
    merge_lora,
    unmerge_lora,
)

SCALINGS = {"alpha": 6.0, "alpha/r": 1.5, "alpha/sqrt(r)": 3.0}  # the factor for alpha = 6 and r = 4
TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
ROUNDING = {torch.float16: 2e-2, torch.bfloat16: 1e-1, torch.float32: 1e-5, torch.float64: 1e-12}


def learn(model, scale=0.3):
    """Put random numbers where training would have."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in lora_parameters(model):
            if parameter.ndim == 2:
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return model


def network(dtype=torch.float32):
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 5)).to(dtype).requires_grad_(False)


def outputs(model, dtype=torch.float32):
    return model(torch.linspace(-1, 1, 24).reshape(3, 8).to(dtype))


def gpt2():
    torch.manual_seed(0)
    shape = {"vocab_size": 50, "n_embd": 16, "n_layer": 1, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(**shape)).eval()


@pytest.mark.parametrize(("scaling", "factor"), SCALINGS.items())
def test_scaling_conventions(scaling, factor):
    layer = LoRALayer(5, 3, r=4, alpha=6.0, scaling=scaling)
    nn.init.normal_(layer.lora_B)
    assert layer.scaling == factor
    torch.testing.assert_close(layer(torch.eye(5)), factor * layer.lora_A @ layer.lora_B)
    torch.testing.assert_close(layer.delta(), factor * layer.lora_A @ layer.lora_B)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_agrees_with_peft_in_forward_and_gradients(scaling):
    """PEFT's layer is an independent implementation; its lora_alpha is what our three conventions convert to."""
    from peft.tuners.lora import LoraConfig
    from peft.tuners.lora.layer import Linear as PeftLinear

    torch.manual_seed(0)
    base = nn.Linear(12, 10)
    ours = LinearWithLoRA(base, LoRALayer(12, 10, r=4, alpha=6.0, scaling=scaling))
    nn.init.normal_(ours.lora.lora_B)
    theirs = PeftLinear(
        base,
        "default",
        config=LoraConfig(
            r=4, lora_alpha=24 if scaling == "alpha" else 6, use_rslora=scaling == "alpha/sqrt(r)", lora_dropout=0.0
        ),
        r=4,
        lora_alpha=24 if scaling == "alpha" else 6,
    )
    theirs.lora_A["default"].weight.data = ours.lora.lora_A.detach().T.clone()
    theirs.lora_B["default"].weight.data = ours.lora.lora_B.detach().T.clone()
    ours, theirs = ours.double(), theirs.double()  # they scale at different places, which rounds differently

    x = torch.randn(3, 7, 12, requires_grad=True, dtype=torch.float64)
    mine, peft = ours(x), theirs(x)
    torch.testing.assert_close(mine, peft)
    weights = torch.randn_like(mine)
    (x_grad,) = torch.autograd.grad((mine * weights).sum(), x, retain_graph=True)
    (peft_x_grad,) = torch.autograd.grad((peft * weights).sum(), x, retain_graph=True)
    torch.testing.assert_close(x_grad, peft_x_grad)
    (mine * weights).sum().backward()
    (peft * weights).sum().backward()
    torch.testing.assert_close(ours.lora.lora_A.grad.T, theirs.lora_A["default"].weight.grad)
    torch.testing.assert_close(ours.lora.lora_B.grad.T, theirs.lora_B["default"].weight.grad)
    torch.testing.assert_close(ours.weight, base.weight + theirs.get_delta_weight("default"))


@pytest.mark.parametrize("r", [1, 4, 16])
def test_a_has_variance_one_over_r_and_b_is_zero(r):
    layer = LoRALayer(4096, 8, r=r, alpha=1, generator=torch.Generator().manual_seed(0))
    assert layer.lora_A.shape == (4096, r)
    assert layer.lora_A.mean().abs().item() < 0.06
    assert layer.lora_A.var().item() == pytest.approx(1 / r, rel=0.1)
    assert not layer.lora_B.any()


def test_initialisation_follows_the_generator_and_leaves_the_global_one_alone():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first, second, other = (LoRALayer(8, 8, 2, 1, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(first.lora_A, second.lora_A)
    assert not torch.equal(first.lora_A, other.lora_A)
    assert torch.equal(torch.get_rng_state(), state)


def test_dropout_acts_on_the_branch_while_training_only():
    layer = LinearWithLoRA(nn.Linear(64, 8), LoRALayer(64, 8, r=4, alpha=1, dropout=0.5))
    nn.init.normal_(layer.lora.lora_B)
    x = torch.randn(5, 64)
    update = layer.eval()(x) - layer.linear(x)
    torch.testing.assert_close(layer(x) - layer.linear(x), update)
    torch.manual_seed(0)
    draws = torch.stack([layer.train()(x) - layer.linear(x) for _ in range(400)])
    assert draws.std(0).mean() > 0.1, "each draw differs"
    torch.testing.assert_close(draws.mean(0), update, atol=1.5, rtol=0.2)


def test_dropout_takes_inputs_away_and_not_what_a_makes_of_them():
    torch.manual_seed(0)
    layer = LoRALayer(6, 5, r=4, alpha=1, dropout=0.5)
    nn.init.normal_(layer.lora_B)
    each = layer.eval()(torch.eye(6))  # a row for each input alone
    draws = torch.stack([layer.train()(torch.eye(6)) for _ in range(30)])
    kept = (draws != 0).all(-1)
    assert 0.3 < kept.float().mean() < 0.7
    torch.testing.assert_close(draws, kept[..., None] * 2 * each)


def test_unknown_scaling_is_refused():
    with pytest.raises(ValueError, match="alpha/sqrt"):
        LoRALayer(4, 4, 2, 1, scaling="r/alpha")


@pytest.mark.parametrize("layer", [LinearWithLoRA, LinearWithDoRA])
@pytest.mark.parametrize("dtype", TYPES)
def test_a_model_of_any_type_trains_merges_and_goes_back(dtype, layer):
    model = network(dtype)
    before = outputs(model, dtype)
    inject_lora(model, ["0", "2"], r=3, alpha=2, layer=layer, scaling="alpha")
    assert {module.lora.lora_A.dtype for _, module in lora_layers(model)} == {torch.float32}
    assert torch.allclose(outputs(model, dtype), before, atol=ROUNDING[dtype])
    outputs(model, dtype).float().square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in lora_parameters(model))
    said = outputs(learn(model), dtype)
    assert said.dtype == dtype
    assert not torch.allclose(said, before, atol=3 * ROUNDING[dtype])
    removed = merge_lora(model)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert torch.allclose(outputs(model, dtype), said, atol=ROUNDING[dtype])
    unmerge_lora(model, removed)
    assert torch.equal(outputs(model, dtype), said)


@pytest.mark.parametrize("layer", [LinearWithLoRA, LinearWithDoRA])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("cast", ["before", "after"])
def test_a_model_of_any_type_says_under_autocast_what_it_says_in_fp32(dtype, layer, cast):
    def adapted(dtype):
        model = network(dtype if cast == "before" else torch.float32)
        inject_lora(model, ["0", "2"], r=3, alpha=2, scaling="alpha", layer=layer)
        return learn(model).to(dtype) if cast == "after" else learn(model)

    expected, model = outputs(adapted(torch.float32)), adapted(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        low = outputs(model, dtype)
    assert low.dtype == (dtype if dtype == torch.float64 else torch.bfloat16)  # autocast leaves fp64 alone
    torch.testing.assert_close(low.float(), expected, atol=0.1, rtol=0)
    torch.testing.assert_close(outputs(model, dtype).float(), expected, atol=0.1, rtol=0)
    assert len(merge_lora(model)) == 2


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # PEFT asks for it
def test_a_bf16_model_is_within_rounding_of_peft():
    peft = pytest.importorskip("peft")
    shape = {"vocab_size": 50, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
    torch.manual_seed(0)
    base = BertForSequenceClassification(BertConfig(**shape, intermediate_size=32)).to(torch.bfloat16).eval()
    theirs = peft.get_peft_model(
        copy.deepcopy(base), peft.LoraConfig(r=4, lora_alpha=12, target_modules=["query", "value"])
    ).eval()
    inject_lora(base, ["query", "value"], r=4, alpha=12, scaling="alpha/r")
    learn(base)
    for name, module in lora_layers(base):
        other = theirs.base_model.model.get_submodule(name)
        with torch.no_grad():
            other.lora_A["default"].weight.copy_(module.lora.lora_A.T)
            other.lora_B["default"].weight.copy_(module.lora.lora_B.T)
    ids = torch.arange(2, 14).reshape(2, 6)
    assert torch.allclose(base(ids).logits, theirs(ids).logits, atol=2e-2)


def test_a_layer_in_two_places_is_adapted_in_both_and_merged_in_both():
    shared = nn.Linear(8, 8)
    model = nn.Sequential(shared, nn.Tanh(), shared, nn.Sequential(shared))
    assert inject_lora(model.requires_grad_(False), ["2"], r=4, scaling="alpha") == ["0"]
    assert model[0] is model[2] is model[3][0]
    assert isinstance(model[0], LinearWithLoRA)
    x = torch.randn(4, 8)
    said = learn(model)(x)
    removed = merge_lora(model)
    assert model[0] is model[2] is model[3][0] is shared
    assert torch.allclose(model(x), said, atol=1e-4)
    unmerge_lora(model, removed)
    assert model[0] is model[2] is model[3][0]
    assert torch.equal(model(x), said)


def test_two_layers_of_one_weight_are_merged_each_for_itself():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    inject_lora(model.requires_grad_(False), ["0"], r=4, scaling="alpha")
    x = torch.randn(4, 8)
    said = learn(model)(x)
    merge_lora(model)
    assert torch.allclose(model(x), said, atol=1e-4)


def test_an_adapted_layer_answers_what_a_linear_layer_is_asked():
    model = network()
    inject_lora(model, ["0"], r=3, alpha=6, scaling="alpha/r", dropout=0.25)
    assert (model[0].in_features, model[0].out_features) == (8, 12)
    shown = repr(model[0])
    assert "r=3" in shown
    assert "scaling=2" in shown
    assert "p=0.25" in shown
    model = gpt2()
    inject_lora(model, ["c_attn"], r=2, scaling="alpha")
    assert [(module.in_features, module.out_features) for _, module in lora_layers(model)] == [(16, 48)]


def test_an_adapted_output_layer_is_tied_again(tmp_path):
    model = gpt2()
    inject_lora(model.requires_grad_(False), ["lm_head"], r=2, scaling="alpha")
    model.tie_weights()
    assert model.lm_head.linear.weight is model.transformer.wte.weight
    said = learn(model)(torch.tensor([[1, 2, 3]])).logits
    embeddings = model.transformer.wte.weight.clone()
    merge_lora(model)
    assert torch.equal(model.transformer.wte.weight, embeddings)
    assert torch.allclose(model(torch.tensor([[1, 2, 3]])).logits, said, atol=1e-4)
    model.save_pretrained(tmp_path)
    again = GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    assert torch.allclose(again(torch.tensor([[1, 2, 3]])).logits, said, atol=1e-4), "and is saved as it was merged"
