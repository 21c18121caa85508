"""injection.py: layers that only look plain are found out, and dropout is refused only where it could never act."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize, prune

from lora_study import inject_lora, lora_layers, lora_parameters


class Packed(nn.Parameter):
    """As bitsandbytes holds its weights: numbers that only their own layer can read."""


class Halves(nn.Module):
    """A quantised layer that is no nn.Linear, but says how wide it is."""

    def __init__(self) -> None:
        super().__init__()
        self.in_features = self.out_features = 4
        self.register_buffer("packed", torch.zeros(4, 2, dtype=torch.uint8))


class OldConv1D(nn.Module):
    """Of another library than transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.nf = 4
        self.weight = nn.Parameter(torch.zeros(4, 4))


OldConv1D.__name__ = "Conv1D"


def changed(layer: nn.Linear, kind: str) -> nn.Module:
    if kind == "old weight_norm":
        with pytest.warns(FutureWarning, match="weight_norm"):
            return nn.utils.weight_norm(layer)
    if kind == "a computed bias":
        parametrize.register_parametrization(layer, "bias", nn.Tanh())
    if kind == "a pruned bias":
        return prune.l1_unstructured(layer, "bias", amount=1)
    if kind == "packed":
        layer.weight = Packed(layer.weight.detach())
    if kind == "sparse":
        layer.weight = nn.Parameter(layer.weight.detach().to_sparse())
    if kind == "flattened":
        layer.weight = nn.Parameter(layer.weight.detach().flatten())
    if kind == "a hook on its input":
        layer.register_forward_pre_hook(lambda module, args: (2 * args[0],))
    if kind == "a hook on its output":
        layer.register_forward_hook(lambda module, args, output: 2 * output)
    return {"quantised": Halves(), "another Conv1D": OldConv1D()}.get(kind, layer)


KINDS = [
    *("old weight_norm", "a computed bias", "a pruned bias", "packed", "sparse", "flattened"),
    *("a hook on its input", "a hook on its output", "quantised", "another Conv1D"),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("targets", [["0", "1"], ["?"], ["1", "0"]])
def test_what_only_looks_plain_is_refused_by_name_and_nothing_changes(kind, targets):
    model = nn.Sequential(nn.Linear(4, 4), changed(nn.Linear(4, 4), kind))
    modules, state = list(model.modules()), dict(model.named_parameters())
    with pytest.raises(ValueError, match=r"^target '.': 1 cannot be adapted: .+; .+$") as error:
        inject_lora(model, targets, r=2)
    assert "\n" not in str(error.value)
    assert list(model.modules()) == modules
    assert dict(model.named_parameters()) == state


def test_a_subclass_that_computes_what_linear_does_is_plain():
    class Named(nn.Linear):
        pass

    assert inject_lora(nn.Sequential(Named(4, 4)), ["0"], r=2) == ["0"]


class Reader(nn.Module):
    """Takes the weight of a layer and calls another."""

    def __init__(self) -> None:
        super().__init__()
        self.read: nn.Module = nn.Linear(8, 8)
        self.called = nn.Linear(8, 8)
        nn.init.ones_(self.called.weight)

    def forward(self, x):
        return self.called(F.linear(x, self.read.weight, self.read.bias))


class Both(Reader):
    """Calls it in the class that it is, and reads it in the one it comes from."""

    def forward(self, x):
        return super().forward(x) + self.read(x)


class CallingAttention(nn.MultiheadAttention):
    """An attention that calls its layer."""

    def forward(self, query, key, value):
        return self.out_proj(super().forward(query, key, value)[0])


@pytest.mark.parametrize(
    ("build", "target"),
    [
        (lambda: nn.MultiheadAttention(8, 2), "out_proj"),
        (lambda: nn.TransformerDecoderLayer(8, 2, 16), "multihead_attn.out_proj"),
        (Reader, "read"),
    ],
)
def test_dropout_on_a_layer_that_is_never_called_is_refused(build, target):
    model = build()
    modules = list(model.modules())
    with pytest.raises(ValueError, match=rf"^{target}: .* reads its weight .*dropout could never act; use 0"):
        inject_lora(model, [target], r=2, dropout=0.5)
    assert list(model.modules()) == modules
    assert inject_lora(model, [target], r=2) == [target]


@pytest.mark.parametrize(
    ("build", "target"),
    [
        (Reader, "called"),
        (Both, "read"),
        (lambda: CallingAttention(8, 2), "out_proj"),
        (lambda: nn.TransformerEncoderLayer(8, 2, 16), "linear1"),  # read in eval mode alone
    ],
)
def test_dropout_that_acts_is_taken(build, target):
    torch.manual_seed(0)
    model = build()
    inject_lora(model, [target], r=2, dropout=0.5)
    for parameter in lora_parameters(model):
        nn.init.normal_(parameter)
    x = torch.randn(3, 2, 8)
    inputs = (x, x, x) if isinstance(model, nn.MultiheadAttention) else (x,)
    for module in model.modules():
        if isinstance(module, nn.Dropout) and module.p == 0.1:
            module.p = 0.0  # the encoder's own
    assert not torch.equal(model(*inputs), model(*inputs))


@pytest.mark.parametrize("wrong", [None, 3, b"0", ["0", 3], [["0"]], ("0", "")])
def test_targets_that_are_no_names_are_refused(wrong):
    with pytest.raises(ValueError, match=r"^targets: .* is not valid; name layers; this model has \*$"):
        inject_lora(nn.Sequential(nn.Linear(4, 4)), wrong)


@pytest.mark.parametrize(
    "wrong", [{"r": 2.0}, {"r": "2"}, {"r": True}, {"r": None}, {"alpha": "16"}, {"dropout": "0.1"}]
)
def test_what_is_no_number_is_refused(wrong):
    with pytest.raises(ValueError, match=f"^0: {next(iter(wrong))}=.* is not valid; use a .* number"):
        inject_lora(nn.Sequential(nn.Linear(4, 4)), ["0"], **{"r": 2, **wrong})


def test_the_update_is_in_the_mode_of_its_layer():
    model = nn.Sequential(nn.Linear(64, 4), nn.Linear(4, 4)).eval()
    inject_lora(model, ["0"], r=2, dropout=0.5)
    nn.init.normal_(model[0].lora.lora_B)
    x = torch.randn(5, 64)
    assert torch.equal(model(x), model(x))


def test_a_and_b_are_fp32_whatever_torch_makes_by_default():
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = nn.Sequential(nn.Linear(4, 4))
        inject_lora(model, ["0"], r=2)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {parameter.dtype for parameter in lora_parameters(model)} == {torch.float32}
    assert model(torch.ones(1, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_a_layer_that_has_an_update_in_one_place_gets_no_second_in_another():
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.Tanh())
    inject_lora(model, ["0"], r=2)
    model.append(shared)
    with pytest.raises(ValueError, match="2 has a LoRA update already"):
        inject_lora(model, ["2"], r=2)
    assert [name for name, _ in lora_layers(model)] == ["0"]
