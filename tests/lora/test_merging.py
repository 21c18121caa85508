"""merging.py: a merged model computes what the adapted one did, or nothing is merged; and what follows the model."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from lora_study import (
    LinearWithDoRA,
    LinearWithLoRA,
    LoRALayer,
    inject_lora,
    lora_disabled,
    lora_layers,
    lora_parameters,
    merge_lora,
    unmerge_lora,
)


@pytest.fixture(params=[LinearWithLoRA, LinearWithDoRA])
def model(request):
    """Two adapted layers, some way from where they started."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 4)).requires_grad_(False)
    inject_lora(network, ["0", "2"], r=3, alpha=2, dropout=0.5, layer=request.param, scaling="alpha")
    for parameter in lora_parameters(network):
        nn.init.normal_(parameter)
    return network.eval()


X = torch.linspace(-1, 1, 18).reshape(3, 6)


def patch(module: nn.Module) -> None:
    module.forward = lambda x: x


SPOILT = {
    "a hook on the adapted layer": lambda layer: layer.register_forward_hook(lambda m, args, y: 2 * y),
    "a hook on its linear layer": lambda layer: layer.linear.register_forward_hook(lambda m, args, y: y.relu()),
    "a weight that is computed now": lambda layer: parametrizations.weight_norm(layer.linear),
    "a hook on its input": lambda layer: layer.register_forward_pre_hook(lambda m, args: (2 * args[0],)),
    "a hook on the update": lambda layer: layer.lora.register_forward_hook(lambda m, args, y: 2 * y),
    "a forward of its own": patch,
    "an update with a forward of its own": lambda layer: patch(layer.lora),
    "a layer without numbers": lambda layer: layer.to("meta"),
    "an infinite weight": lambda layer: layer.linear.weight.data[0, 0].fill_(torch.inf),
    "a NaN in A": lambda layer: layer.lora.lora_A.data[0, 0].fill_(torch.nan),
    "an infinite B": lambda layer: layer.lora.lora_B.data[0, 0].fill_(-torch.inf),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT.keys())
def test_nothing_is_merged_where_one_layer_cannot_be(model, spoil):
    spoil(model[2])
    modules, first = list(model.modules()), model[0](X)
    with pytest.raises(ValueError, match=r"^2 cannot be merged: .+; nothing was changed$"):
        merge_lora(model)
    assert list(model.modules()) == modules
    assert torch.equal(model[0](X), first)


def test_what_holds_the_infinity_is_named():
    model = nn.Sequential(nn.Linear(4, 4))
    inject_lora(model, ["0"], r=2, scaling="alpha")
    nn.init.constant_(model[0].lora.lora_B, torch.nan)
    with pytest.raises(ValueError, match=r"lora\.lora_B holds numbers that are not finite"):
        merge_lora(model)


def test_a_sum_that_the_weights_type_cannot_hold_is_not_merged():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).half()
    inject_lora(model, ["0", "1"], r=2, scaling="alpha")
    for parameter in lora_parameters(model[1]):
        nn.init.constant_(parameter, 1e4)  # finite, but their product is not in fp16
    with pytest.raises(ValueError, match=r"^1 cannot be merged: as torch\.float16 the sum would hold .*not finite"):
        merge_lora(model)
    assert [name for name, _ in lora_layers(model)] == ["0", "1"]


def test_a_layer_that_stands_elsewhere_without_its_update_is_not_changed_there():
    shared = nn.Linear(4, 4)
    model = nn.Sequential(LinearWithLoRA(shared, LoRALayer(4, 4, 2, 1)), shared)
    with pytest.raises(ValueError, match="0 cannot be merged: its linear layer also stands in another place"):
        merge_lora(model)


def test_a_layer_that_was_compiled_by_itself_is_refused_and_stays_as_it_is(model):
    model[2] = torch.compile(model[2], backend="eager")  # goes on calling what it was given
    with torch.no_grad():
        said = model(X)
    with pytest.raises(ValueError, match=r"cannot be merged: it is compiled by itself; compile the model it belongs"):
        merge_lora(model)
    with pytest.raises(ValueError, match="cannot be disabled: it is compiled by itself"), lora_disabled(model):
        pass
    with torch.no_grad():
        assert torch.equal(model(X), said)
    with pytest.raises(ValueError, match="it is compiled by itself"):
        merge_lora(torch.compile(LinearWithLoRA(nn.Linear(4, 4), LoRALayer(4, 4, 2, 1)), backend="eager"))


def test_an_adapted_layer_alone_has_no_place_for_a_plain_one():
    with pytest.raises(ValueError, match="the model cannot be merged: it is an adapted layer itself"):
        merge_lora(LinearWithLoRA(nn.Linear(4, 4), LoRALayer(4, 4, 2, 1)))


def test_what_was_frozen_stays_frozen_and_what_was_trained_trained(model):
    model[2].linear.weight.requires_grad_(True)
    merge_lora(model)
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == ["2.weight"]


def test_merging_under_autocast_is_as_exact_as_without(model):
    expected = model(X)
    with torch.autocast("cpu", torch.bfloat16):
        merge_lora(model)
    torch.testing.assert_close(model(X), expected)


def test_what_was_merged_follows_the_model_into_another_mode_and_type(model):
    said = model(X)
    removed = merge_lora(model.train())
    model.eval().double()
    unmerge_lora(model, removed)
    assert torch.equal(model(X.double()), model(X.double())), "dropout is off"
    torch.testing.assert_close(model(X.double()).float(), said)


def test_copies_pickles_and_states_say_the_same(model):
    model.bfloat16()
    said = model(X.bfloat16())
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(X.bfloat16()), said)
        nn.init.zeros_(twin[0].lora.lora_B)
        assert twin.load_state_dict(model.state_dict()).missing_keys == []
        assert torch.equal(twin(X.bfloat16()), said)


def test_a_weight_or_bias_of_another_shape_is_not_taken(model):
    weight, bias = nn.Parameter(torch.randn(9, 6)), nn.Parameter(torch.randn(9))
    model[0].weight, model[0].bias = weight, bias
    assert model[0].linear.weight is weight
    assert model[0].bias is bias
    with pytest.raises(ValueError, match=r"its weight of shape \(9, 6\) for one of \(12, 6\); merge_lora first"):
        model[0].weight = nn.Parameter(torch.zeros(12, 6))
    assert model[0].linear.weight is weight
    assert [name for name, _ in lora_layers(model)] == ["0", "2"]
