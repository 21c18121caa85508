"""What LoRA and DoRA promise, on several networks."""

import contextlib
import copy

import pytest
import torch
from torch import nn

from lora_study.lora import (
    LinearWithLoRA,
    inject_lora,
    lora_disabled,
    lora_layers,
    lora_parameters,
    merge_lora,
    parameter_groups,
    unmerge_lora,
)
from lora_study.lora.dora import LinearWithDoRA


def distilbert() -> tuple[nn.Module, tuple]:
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    shape = DistilBertConfig(vocab_size=50, dim=16, n_heads=2, n_layers=2, hidden_dim=32)
    return DistilBertForSequenceClassification(shape), (torch.randint(0, 50, (2, 7)),)


def bert() -> tuple[nn.Module, tuple]:
    from transformers import BertConfig, BertModel

    shape = BertConfig(vocab_size=50, hidden_size=16, num_attention_heads=2, num_hidden_layers=2, intermediate_size=32)
    return BertModel(shape), (torch.randint(1, 50, (2, 7)),)


def roberta() -> tuple[nn.Module, tuple]:
    from transformers import RobertaConfig, RobertaModel

    shape = RobertaConfig(
        vocab_size=50, hidden_size=16, num_attention_heads=2, num_hidden_layers=2, intermediate_size=32
    )
    return RobertaModel(shape), (torch.randint(2, 50, (2, 7)),)


def gpt2() -> tuple[nn.Module, tuple]:
    from transformers import GPT2Config, GPT2Model

    shape = GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=1)
    return GPT2Model(shape), (torch.randint(0, 50, (2, 7)),)


def torch_encoder() -> tuple[nn.Module, tuple]:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), (torch.randn(2, 7, 16),)


def mlp() -> tuple[nn.Module, tuple]:
    return nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 2)), (torch.randn(3, 5),)


NETWORKS = [
    (distilbert, ["query", "value", "mlp"], 8),
    (distilbert, ["head"], 2),
    (bert, ["attention.self.query", "intermediate.dense"], 4),
    (bert, ["query"], 2),
    (roberta, ["key", "encoder.layer.?.output.dense"], 4),
    (gpt2, ["c_attn", "mlp.c_fc"], 4),
    (torch_encoder, ["linear?", "out_proj"], 6),
    (mlp, ["0", "2"], 2),
]


def output(model: nn.Module, inputs: tuple) -> torch.Tensor:
    result = model(*inputs)
    return result if isinstance(result, torch.Tensor) else result[0]


@pytest.fixture(params=NETWORKS, ids=lambda case: f"{case[0].__name__}-{case[1][0]}")
def network(request):
    build, targets, count = request.param
    torch.manual_seed(0)
    model, inputs = build()
    model.requires_grad_(False).eval()
    return model, inputs, targets, count


@pytest.fixture(params=[LinearWithLoRA, LinearWithDoRA])
def layer(request):
    """Whatever holds the update keeps LoRA's promises."""
    return request.param


def randomise(model: nn.Module) -> None:
    """B is zero at first, which would hide every mistake in A, in the scaling and in merging."""
    torch.manual_seed(1)
    for parameter in lora_parameters(model):
        nn.init.normal_(parameter, std=1.0)


def test_injection_adapts_the_named_layers_and_leaves_the_output_unchanged(network, layer):
    model, inputs, targets, count = network
    with torch.no_grad():  # with gradients, torch's own encoder would leave its fast path once there is LoRA
        before = output(model, inputs)
        names = inject_lora(model, targets, r=2, alpha=3, layer=layer, scaling="alpha")
        assert len(names) == count == len(list(lora_layers(model)))
        assert {type(module) for _, module in lora_layers(model)} == {layer}
        assert torch.equal(output(model, inputs), before)


def test_only_the_updates_are_trained_and_the_base_stays_as_it_was(network, layer):
    model, inputs, targets, _ = network
    base = {name: value.clone() for name, value in model.named_parameters()}
    inject_lora(model, targets, r=2, alpha=3, layer=layer, scaling="alpha")
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert {id(p) for p in trainable} == {id(p) for p in lora_parameters(model)}
    optimizer = torch.optim.SGD(trainable, lr=0.1)
    output(model.train(), inputs).square().sum().backward()
    before = [parameter.clone() for parameter in trainable]
    optimizer.step()
    after = {name.replace(".linear.", "."): value for name, value in model.named_parameters()}
    assert all(torch.equal(after[name], value) for name, value in base.items())
    assert any(module.lora.lora_B.abs().sum() > 0 for _, module in lora_layers(model))
    assert not all(torch.equal(*pair) for pair in zip(before, trainable, strict=True))


def test_merged_equals_unmerged_with_random_updates_and_unmerging_is_the_inverse(network, layer):
    model, inputs, targets, count = network
    names = [name for name, _ in model.named_parameters()]
    base = {name: value.clone() for name, value in model.named_parameters()}
    plain = output(model, inputs)
    inject_lora(model, targets, r=2, alpha=3, layer=layer, scaling="alpha")
    randomise(model)
    adapted = output(model, inputs)
    assert not torch.allclose(adapted, plain, atol=1e-4)

    removed = merge_lora(model)
    assert len(removed) == count
    assert [name for name, _ in model.named_parameters()] == names
    merged = output(model, inputs)
    torch.testing.assert_close(merged, adapted, atol=1e-5, rtol=1e-4)
    assert merge_lora(model) == {}, "merging again is harmless"
    assert torch.equal(output(model, inputs), merged)

    unmerge_lora(model, removed)
    assert torch.equal(output(model, inputs), adapted), "exactly, however often"
    after = {name.replace(".linear.", "."): value for name, value in model.named_parameters()}
    assert all(torch.equal(after[name], value) for name, value in base.items())
    merge_lora(model)
    assert torch.equal(output(model, inputs), merged)


def test_without_its_updates_a_model_is_exactly_the_one_it_was_and_has_them_back_afterwards(network, layer):
    model, inputs, targets, count = network
    plain, names = output(model, inputs), list(model.state_dict())
    inject_lora(model, targets, r=2, alpha=3, scaling="alpha", layer=layer)
    randomise(model)
    adapted = output(model, inputs)
    adapted.square().sum().backward()
    gradients = {parameter: parameter.grad for parameter in lora_parameters(model)}
    with pytest.raises(KeyboardInterrupt), lora_disabled(model):
        assert list(model.state_dict()) == names
        with lora_disabled(model):
            pass
        assert torch.equal(output(model, inputs), plain), "still"
        raise KeyboardInterrupt
    assert torch.equal(output(model, inputs), adapted)
    assert len(list(lora_layers(model))) == count
    assert all(parameter.grad is gradients[parameter] is not None for parameter in lora_parameters(model))


def test_a_model_that_is_its_own_reference_learns_as_beside_a_copy(layer):
    """The loss of preference training (DPO) compares the adapted model with the plain one."""
    model, inputs = mlp()
    model.requires_grad_(False)
    reference = copy.deepcopy(model)
    inject_lora(model, ["0", "2"], r=2, alpha=3, scaling="alpha", layer=layer)
    randomise(model)

    def gradients(own: bool) -> tuple:
        said = model(*inputs)
        with lora_disabled(model) if own else contextlib.nullcontext(), torch.no_grad():
            before = (model if own else reference)(*inputs)
        return torch.autograd.grad(nn.functional.softplus(before - said).sum(), list(lora_parameters(model)))

    for mine, expected in zip(gradients(own=True), gradients(own=False), strict=True):
        assert expected.abs().max() > 0
        assert torch.equal(mine, expected)


def test_updates_that_were_left_out_follow_the_model_and_return_to_their_places_alone():
    shared = nn.Linear(5, 5)
    model = nn.Sequential(nn.Linear(5, 5), shared)
    inject_lora(model, ["1"], r=2, alpha=3, scaling="alpha", dropout=0.5)
    model.append(model[1]).append(shared)
    updated = model[1]
    with lora_disabled(model.train()):
        assert model[1] is model[2] is model[3] is shared
        model.eval()
    assert model[1] is model[2] is updated
    assert model[3] is shared
    assert not any(module.training for module in model.modules())
    with pytest.raises(ValueError, match="is an adapted layer itself"), lora_disabled(updated):
        pass


def test_a_weight_tied_to_an_embedding_leaves_the_embedding_alone_when_merged():
    model = nn.ModuleDict({"embed": nn.Embedding(9, 4), "out": nn.Linear(4, 9, bias=False)})
    model["out"].weight = model["embed"].weight
    before = model["embed"].weight.clone()
    inject_lora(model, ["out"], r=2, scaling="alpha")
    randomise(model)
    removed = merge_lora(model)
    assert torch.equal(model["embed"].weight, before)
    assert not torch.equal(model["out"].weight, before)
    unmerge_lora(model, removed)
    assert model["out"].linear.weight is model["embed"].weight, "and tied again when unmerged"


@pytest.mark.parametrize(
    ("targets", "r", "words"),
    [
        (["nowhere"], 2, ["'nowhere'", "transformer.layer.*.attention.q_lin", "classifier"]),
        (["query", "nowhere"], 2, ["'nowhere'", "q_lin"]),
        (["sa_layer_norm"], 2, ["LayerNorm", "q_lin"]),
        (["attention"], 2, ["DistilBertSelfAttention", "q_lin"]),
        (["query"], 0, ["r=0", "q_lin", "1 to 16"]),
        (["query"], 17, ["r=17", "16 inputs"]),
        (["q_lin"], -3, ["r=-3"]),
    ],
)
def test_a_mistake_is_named_and_changes_nothing(targets, r, words):
    model, _ = distilbert()
    before = [name for name, _ in model.named_modules()]
    with pytest.raises(ValueError) as error:
        inject_lora(model, targets, r=r, scaling="alpha")
    assert all(word in str(error.value) for word in words), str(error.value)
    assert [name for name, _ in model.named_modules()] == before


def test_a_layer_is_not_adapted_twice_but_others_may_be():
    model, _ = distilbert()
    inject_lora(model, ["query"], r=2, scaling="alpha")
    with pytest.raises(ValueError, match="already has a LoRA update"):
        inject_lora(model, ["value", "query"], r=2, scaling="alpha")
    assert len(list(lora_layers(model))) == 2
    inject_lora(model, ["head"], r=2, scaling="alpha")
    assert len(list(lora_layers(model))) == 4


def test_unmerging_onto_another_model_or_twice_is_refused_and_changes_nothing():
    model, inputs = mlp()
    other, _ = mlp()
    inject_lora(model, ["0", "2"], r=2, scaling="alpha")
    randomise(model)
    removed = merge_lora(model)
    before = output(other, inputs)
    with pytest.raises(ValueError, match="'0' is not the layer that was merged"):
        unmerge_lora(other, removed)
    assert torch.equal(output(other, inputs), before)
    unmerge_lora(model, removed)
    with pytest.raises(ValueError, match="'0' is not the layer that was merged"):
        unmerge_lora(model, removed)


@pytest.mark.parametrize("train_head", [False, True])
def test_lora_plus_gives_b_its_own_rate_as_peft_does(train_head):
    """PEFT trains every vector, such as the head's bias, at B's rate; the paper speaks of B alone, and so do we."""
    from peft import LoraConfig, inject_adapter_in_model
    from peft.optimizers import create_loraplus_optimizer

    theirs, _ = distilbert()
    theirs = inject_adapter_in_model(LoraConfig(r=2, target_modules=["q_lin", "v_lin"]), theirs)
    ours, _ = distilbert()
    ours.requires_grad_(False)
    inject_lora(ours, ["query", "value"], r=2, scaling="alpha")
    for model in (ours, theirs):
        model.classifier.requires_grad_(train_head)

    def rates(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, float]:
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        return {
            names[id(parameter)].replace(".default.weight", "").replace(".lora.", "."): group["lr"]
            for group in optimizer.param_groups
            for parameter in group["params"]
        }

    mine = rates(ours, torch.optim.AdamW(parameter_groups(ours, 1e-3, lr_ratio=16)))
    peft = rates(theirs, create_loraplus_optimizer(theirs, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16))
    assert len(mine) == 8 + 2 * train_head
    assert {rate for name, rate in mine.items() if name.endswith("lora_B")} == {0.016}
    assert {rate for name, rate in mine.items() if not name.endswith("lora_B")} == {0.001}
    assert mine == peft | ({"classifier.bias": 0.001} if train_head else {})


def test_a_ratio_of_one_changes_nothing_and_every_trained_parameter_is_there_once(layer):
    model, _ = distilbert()
    model.requires_grad_(False)
    model.classifier.requires_grad_(True)
    inject_lora(model, ["query"], r=2, layer=layer, scaling="alpha")
    trained = [id(parameter) for parameter in model.parameters() if parameter.requires_grad]
    (group,) = parameter_groups(model, 0.5)
    assert [id(parameter) for parameter in group["params"]] == trained
    assert group["lr"] == 0.5
    groups = parameter_groups(model, 0.5, lr_ratio=4)
    assert sorted(id(parameter) for group in groups for parameter in group["params"]) == sorted(trained)
    assert [group["lr"] for group in groups] == [0.5, 2.0]
    assert len(parameter_groups(nn.Linear(2, 2), 0.5, lr_ratio=4)) == 1, "without LoRA there is nothing to speed up"
