"""dora.py: the same numbers as PEFT's DoRA, and what only DoRA promises. (What it shares with LoRA: test_lora.py.)"""

import copy

import pytest
import torch
from torch import nn

from lora_study.lora import LoRALayer, inject_lora, lora_layers, lora_parameters, merge_lora
from lora_study.lora.dora import LinearWithDoRA


def gpt2() -> tuple[nn.Module, torch.Tensor, list[str]]:
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = GPT2Config(
        vocab_size=50, n_embd=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=1, initializer_range=0.3
    )
    return GPT2LMHeadModel(shape), torch.randint(0, 50, (2, 7)), ["c_attn", "mlp.c_fc"]


def distilbert() -> tuple[nn.Module, torch.Tensor, list[str]]:
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    shape = DistilBertConfig(vocab_size=50, dim=16, n_heads=2, n_layers=2, hidden_dim=32, initializer_range=0.3)
    return DistilBertForSequenceClassification(shape), torch.randint(0, 50, (2, 7)), ["q_lin", "v_lin", "lin1"]


def adapted(bias: bool = True, dropout: float = 0.0) -> LinearWithDoRA:
    """A layer some way from where it started: random B, and lengths that are not the weight's."""
    layer = LinearWithDoRA(nn.Linear(12, 10, bias=bias), LoRALayer(12, 10, r=3, alpha=2, dropout=dropout))
    nn.init.normal_(layer.lora.lora_B)
    nn.init.uniform_(layer.magnitude, 0.2, 3.0)
    return layer


@pytest.fixture(params=[distilbert, gpt2])
def pair(request):
    """A network with our DoRA and a copy with PEFT's, of the same random weights and updates; and an input."""
    from peft import LoraConfig, inject_adapter_in_model

    torch.manual_seed(0)
    ours, tokens, targets = request.param()
    fan_in_fan_out = request.param is gpt2
    config = LoraConfig(r=4, lora_alpha=6, target_modules=targets, use_dora=True, fan_in_fan_out=fan_in_fan_out)
    theirs = inject_adapter_in_model(config, copy.deepcopy(ours))
    ours.requires_grad_(False)
    names = inject_lora(ours, targets, r=4, alpha=6, scaling="alpha/r", layer=LinearWithDoRA)
    for name in names:
        layer, peft = ours.get_submodule(name), theirs.get_submodule(name)
        torch.testing.assert_close(layer.magnitude, peft.lora_magnitude_vector["default"].weight)
        nn.init.normal_(layer.lora.lora_B)
        with torch.no_grad():
            layer.magnitude.mul_(torch.rand_like(layer.magnitude) + 0.5)
            peft.lora_magnitude_vector["default"].weight.copy_(layer.magnitude)
            peft.lora_A["default"].weight.copy_(layer.lora.lora_A.T)
            peft.lora_B["default"].weight.copy_(layer.lora.lora_B.T)
    return ours.eval(), theirs.eval(), tokens, names


def test_agrees_with_peft_in_output_gradients_and_merged_weights(pair):
    ours, theirs, tokens, names = pair
    mine, peft = ours(tokens).logits, theirs(tokens).logits
    torch.testing.assert_close(mine, peft, atol=1e-5, rtol=1e-4)
    weights = torch.randn_like(mine)
    (mine * weights).sum().backward()
    (peft * weights).sum().backward()
    for name in names:
        layer, other = ours.get_submodule(name), theirs.get_submodule(name)
        gradients = {
            "A": (layer.lora.lora_A.grad.T, other.lora_A["default"].weight.grad),
            "B": (layer.lora.lora_B.grad.T, other.lora_B["default"].weight.grad),
            "m": (layer.magnitude.grad, other.lora_magnitude_vector["default"].weight.grad),
        }
        for part, (gradient, expected) in gradients.items():
            assert expected.abs().max() > 1e-4, part
            torch.testing.assert_close(gradient, expected, atol=1e-4 * expected.abs().max().item(), rtol=1e-3)
    merge_lora(ours)
    for name in names:
        other = theirs.get_submodule(name)
        other.merge()
        torch.testing.assert_close(ours.get_submodule(name).weight, other.base_layer.weight)


@pytest.mark.parametrize("bias", [True, False])
def test_each_row_of_the_weight_is_as_long_as_its_magnitude_and_points_where_lora_turned_it(bias):
    layer = adapted(bias)
    torch.testing.assert_close(layer.weight.norm(dim=1), layer.magnitude)
    turned = layer.linear.weight + layer.lora.delta().T
    torch.testing.assert_close(torch.cosine_similarity(layer.weight, turned), torch.ones(10))
    x = torch.randn(4, 12)
    torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.weight, layer.bias))


def test_the_weight_has_the_gradients_of_the_layer():
    """Networks that read the weight, such as torch's TransformerEncoder, train it as those do that call the layer."""
    layer, x = adapted(), torch.randn(4, 12)
    parameters = [layer.magnitude, layer.lora.lora_A, layer.lora.lora_B]
    called = torch.autograd.grad(layer(x).square().sum(), parameters)
    reached = torch.autograd.grad(nn.functional.linear(x, layer.weight, layer.bias).square().sum(), parameters)
    torch.testing.assert_close(reached, called, atol=1e-3, rtol=1e-4)


def test_a_magnitude_per_output_is_all_that_dora_adds():
    counts = []
    for options in ({}, {"layer": LinearWithDoRA}):
        model, _, targets = distilbert()
        inject_lora(model, targets, r=2, scaling="alpha", **options)
        counts.append(sum(parameter.numel() for parameter in lora_parameters(model)))
    lora, dora = counts
    assert lora == 2 * 2 * (2 * (16 + 16) + (16 + 32))
    assert dora == lora + 2 * (16 + 16 + 32)
    assert {layer.magnitude.shape[0] for _, layer in lora_layers(model)} == {16, 32}


def test_dropout_acts_on_the_update_alone():
    torch.manual_seed(0)
    layer, x = adapted(dropout=0.5), torch.randn(5, 12)
    expected = layer.eval()(x)
    draws = torch.stack([layer.train()(x) for _ in range(2000)])
    assert draws.std(0).mean() > 0.1, "each draw differs"
    torch.testing.assert_close(draws.mean(0), expected, atol=0.5, rtol=0.1)
    nn.init.zeros_(layer.lora.lora_B)
    torch.testing.assert_close(layer.train()(x), layer.eval()(x), msg="no update, nothing to drop")


def test_a_row_of_zeros_stays_zero_and_makes_no_nan():
    linear = nn.Linear(4, 3)
    with torch.no_grad():
        linear.weight[1] = 0
    x = torch.randn(5, 4)
    before = linear(x)
    layer = LinearWithDoRA(linear, LoRALayer(4, 3, r=2, alpha=1))
    assert torch.equal(layer(x), before)
    layer(x).square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in lora_parameters(layer))
    assert torch.equal(layer.weight[1], torch.zeros(4))


def test_a_small_change_of_length_is_felt_in_bf16():
    """In bf16, numbers near 1 are further apart than a training step moves a scale."""
    layer = LinearWithDoRA(nn.Linear(64, 64), LoRALayer(64, 64, r=2, alpha=1))
    x = torch.randn(256, 64)
    with torch.autocast("cpu", torch.bfloat16):
        before = layer(x)
        with torch.no_grad():
            layer.magnitude.mul_(1.0015)
        after = layer(x)
    assert before.dtype == after.dtype == torch.bfloat16, "as a plain linear layer under autocast"
    assert (after - before).float().abs().mean() > 0


def test_it_learns_what_a_change_of_lengths_can_do():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8))
    target, x = 3 * model[0].weight.detach(), torch.randn(64, 8)
    model.requires_grad_(False)
    inject_lora(model, ["0"], r=1, layer=LinearWithDoRA, scaling="alpha")
    optimizer = torch.optim.Adam(lora_parameters(model), lr=0.03)
    losses = []
    for _ in range(400):
        loss = nn.functional.mse_loss(model(x) - model[0].bias, x @ target.T)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.01 * losses[0]
