"""injection.py: layers that only look plain are found out, and dropout is refused only where it could never act."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from small_networks import base
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune

from lora_study import LinearWithLoRA, inject_lora, lora_layers, lora_parameters, merge_lora
from lora_study.lora.compatibility import ONLY_READ


@pytest.mark.parametrize(
    ("alias", "layers"),
    [
        ("query", ["attention.q_lin"]),
        ("key", ["attention.k_lin"]),
        ("value", ["attention.v_lin"]),
        ("projection", ["attention.out_lin"]),
        ("mlp", ["ffn.lin1", "ffn.lin2"]),
    ],
)
def test_a_short_name_stands_for_the_layers_it_says(alias, layers):
    model = base("distilbert")
    expected = [f"distilbert.transformer.layer.{block}.{layer}" for block in range(3) for layer in layers]
    assert inject_lora(model, [alias], r=1, scaling="alpha") == expected
    assert inject_lora(model, ["head"], r=1, scaling="alpha") == ["pre_classifier", "classifier"]


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


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def with_weight(layer: nn.Linear, weight: torch.Tensor) -> nn.Linear:
    layer.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight, weight.is_floating_point())
    return layer


def patched(layer: nn.Linear) -> nn.Linear:
    layer.forward = lambda x: x
    return layer


def hooked(layer: nn.Linear, register: str) -> nn.Linear:
    getattr(layer, register)(lambda *args: None)
    return layer


def old_weight_norm(layer: nn.Linear) -> nn.Module:
    with pytest.warns(FutureWarning, match="weight_norm"):
        return nn.utils.weight_norm(layer)


LOOKALIKES = {
    "weight_norm": parametrizations.weight_norm,
    "old weight_norm": old_weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "old spectral_norm": nn.utils.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "a computed bias": lambda layer: parametrize.register_parametrization(layer, "bias", nn.Tanh()),
    "a pruned weight": lambda layer: prune.l1_unstructured(layer, "weight", amount=3),
    "a pruned bias": lambda layer: prune.l1_unstructured(layer, "bias", amount=1),
    "a forward of its class": lambda layer: Doubled(4, 4),
    "a forward of its own": patched,
    "a hook on its input": lambda layer: hooked(layer, "register_forward_pre_hook"),
    "a hook on its output": lambda layer: hooked(layer, "register_forward_hook"),
    "bytes": lambda layer: with_weight(layer, layer.weight.to(torch.int8)),
    "8-bit floats": lambda layer: layer.to(torch.float8_e4m3fn),
    "complex numbers": lambda layer: layer.to(torch.complex64),
    "packed": lambda layer: with_weight(layer, Packed(layer.weight.detach())),
    "sparse": lambda layer: with_weight(layer, layer.weight.detach().to_sparse()),
    "flattened": lambda layer: with_weight(layer, layer.weight.detach().flatten()),
    "lazy": lambda layer: nn.LazyLinear(4),
    "quantised": lambda layer: Halves(),
    "another Conv1D": lambda layer: OldConv1D(),
}


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
@pytest.mark.parametrize("change", LOOKALIKES.values(), ids=LOOKALIKES.keys())
def test_what_only_looks_plain_is_refused_by_name_and_nothing_changes(change):
    model = nn.Sequential(nn.Linear(4, 4), change(nn.Linear(4, 4)))
    modules, state = list(model.modules()), dict(model.named_parameters())
    for targets in (["0", "1"], ["?"], ["1", "0"]):
        with pytest.raises(ValueError, match=r"^target '.': 1 cannot be adapted: .+; .+$") as error:
            inject_lora(model, targets, r=2, scaling="alpha")
        assert "\n" not in str(error.value)
        assert list(model.modules()) == modules
        assert dict(model.named_parameters()) == state
    assert inject_lora(model, ["0"], r=2, scaling="alpha") == ["0"], "the plain one is no worse for its neighbour"


def test_a_subclass_that_computes_what_linear_does_is_plain():
    class Named(nn.Linear):
        pass

    assert inject_lora(nn.Sequential(Named(4, 4)), ["0"], r=2, scaling="alpha") == ["0"]


class Reader(nn.Module):
    """Takes the weight of a layer; no table knows it."""

    def __init__(self) -> None:
        super().__init__()
        self.read: nn.Module = nn.Linear(8, 8)

    def forward(self, x):
        return F.linear(x, self.read.weight, self.read.bias)


def wavlm() -> nn.Module:
    from transformers.models.wavlm.modeling_wavlm import WavLMAttention

    return WavLMAttention(embed_dim=8, num_heads=2)


def tdnn() -> nn.Module:
    from transformers.models.wav2vec2.modeling_wav2vec2 import TDNNLayer, Wav2Vec2Config

    return TDNNLayer(Wav2Vec2Config(tdnn_dim=(8, 8), tdnn_kernel=(1, 3), tdnn_dilation=(1, 1)), layer_id=1)


def mamba() -> nn.Module:
    from transformers import MambaConfig
    from transformers.models.mamba.modeling_mamba import MambaMixer

    return MambaMixer(MambaConfig(hidden_size=8, state_size=4, time_step_rank=3), layer_idx=0)


def detr() -> nn.Module:
    from transformers.models.detr.modeling_detr import DetrMHAttentionMap

    return DetrMHAttentionMap(hidden_size=8, num_attention_heads=2)


def outputs(model: nn.Module) -> torch.Tensor:
    x = torch.linspace(-1, 1, 48).reshape(3, 2, 8)
    found = model(x, x, x) if isinstance(model, nn.MultiheadAttention) else model(x)
    return found[0] if isinstance(found, tuple) else found


@pytest.mark.parametrize(
    ("build", "target"),
    [
        (Reader, "read"),
        (lambda: nn.MultiheadAttention(8, 2), "out_proj"),
        (wavlm, "q_proj"),
        (wavlm, "out_proj"),
        (mamba, "dt_proj"),
    ],
)
def test_a_weight_that_is_read_is_the_adapted_one(build, target):
    torch.manual_seed(0)
    model = build().eval().requires_grad_(False)
    before = outputs(model)
    inject_lora(model, [target], r=2, scaling="alpha")
    torch.testing.assert_close(outputs(model), before)
    for parameter in lora_parameters(model):
        nn.init.normal_(parameter)
    adapted = outputs(model)
    assert not torch.allclose(adapted, before, atol=1e-3)
    adapted.square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in lora_parameters(model))
    merge_lora(model)
    torch.testing.assert_close(outputs(model), adapted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["relu", "gated-gelu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_t5_asks_for_a_type_and_no_weight_is_computed_for_it(kind, dtype, monkeypatch):
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(0)
    shape = {"vocab_size": 20, "d_model": 8, "d_kv": 4, "d_ff": 12, "num_layers": 2, "num_heads": 2}
    model = T5EncoderModel(T5Config(**shape, feed_forward_proj=kind)).to(dtype).eval().requires_grad_(False)
    inject_lora(model, ["wo"], r=2, scaling="alpha")
    for parameter in lora_parameters(model):
        nn.init.normal_(parameter)
    block = model.encoder.block[1].layer[1].DenseReluDense
    plain, adapted = block.wo.linear.weight, block.wo.adapted_weight()
    tokens = torch.tensor([[3, 1, 7, 2]])
    with monkeypatch.context() as patch:
        patch.delattr(LinearWithLoRA, "adapted_weight")
        found = model(tokens).last_hidden_state
    torch.testing.assert_close(block.wo.weight, adapted.to(dtype))  # anybody else gets the adapted one
    assert not torch.allclose(block.wo.weight, plain, atol=1e-2)
    merge_lora(model)
    # Merged weights are rounded to eight bits in bf16, as sums of updates and layers are.
    assert (found - model(tokens).last_hidden_state).norm() < (0.03 if dtype == torch.bfloat16 else 1e-5) * found.norm()


class CallingAttention(nn.MultiheadAttention):
    """An attention that calls its layer."""

    def forward(self, query, key, value):
        return self.out_proj(super().forward(query, key, value)[0])


@pytest.mark.parametrize(
    ("build", "target"),
    [
        (lambda: nn.MultiheadAttention(8, 2), "out_proj"),
        (lambda: nn.TransformerDecoderLayer(8, 2, 16), "multihead_attn.out_proj"),
        (wavlm, "v_proj"),
        (mamba, "dt_proj"),
        (detr, "k_proj"),
        (tdnn, "kernel"),
    ],
)
def test_dropout_on_a_layer_that_is_never_called_is_refused(build, target):
    model = build()
    modules = list(model.modules())
    with pytest.raises(ValueError, match=rf"^{target}: .* reads its weight .*dropout could never act; use 0"):
        inject_lora(model, [target], r=2, dropout=0.5, scaling="alpha")
    assert list(model.modules()) == modules
    assert inject_lora(model, [target], r=2, scaling="alpha") == [target]


def test_what_is_only_read_is_read_where_the_list_says():
    """In the sources of the installed transformers, of which an older one may lack a model."""
    models = Path(find_spec("transformers").origin).parent / "models"
    found = 0
    for forward, layers in ONLY_READ.items():
        *_, module, name, _ = forward.split(".")
        source = models / module.removeprefix("modeling_") / f"{module}.py"
        if source.exists():
            _, _, text = source.read_text().partition(f"\nclass {name}(")
            body = text.partition("\nclass ")[0]
            assert body and all(f"self.{layer}.weight" in body for layer in layers), forward
            found += 1
    assert found >= 10


@pytest.mark.parametrize(
    ("build", "target"),
    [
        (mamba, "x_proj"),
        (lambda: CallingAttention(8, 2), "out_proj"),
        (lambda: nn.TransformerEncoderLayer(8, 2, 16), "linear1"),  # read in eval mode alone
    ],
)
def test_dropout_that_acts_is_taken(build, target):
    torch.manual_seed(0)
    model = build()
    inject_lora(model, [target], r=2, dropout=0.5, scaling="alpha")
    for parameter in lora_parameters(model):
        nn.init.normal_(parameter)
    for module in model.modules():
        if isinstance(module, nn.Dropout) and module.p == 0.1:
            module.p = 0.0  # the encoder's own
    assert not torch.equal(outputs(model), outputs(model))


@pytest.mark.parametrize("wrong", [None, 3, b"0", "", [], ["0", 3], [["0"]], ("0", "")])
def test_targets_that_are_no_names_are_refused(wrong):
    with pytest.raises(ValueError, match=r"^targets: .* is not valid; name layers; this model has \*$"):
        inject_lora(nn.Sequential(nn.Linear(4, 4)), wrong, scaling="alpha")


def test_a_string_is_one_target():
    assert inject_lora(nn.ModuleDict({"abc": nn.Linear(4, 4)}), "abc", r=2, scaling="alpha") == ["abc"]


NUMBERS = {
    "r": [2.0, "2", True, None],
    "alpha": ["16", np.inf, np.nan],
    "dropout": ["0.1", 1.0, -0.1],
}


@pytest.mark.parametrize(("name", "wrong"), [(name, wrong) for name, values in NUMBERS.items() for wrong in values])
def test_numbers_that_make_no_update_are_refused(name, wrong):
    with pytest.raises(ValueError, match=f"^0: {name}=.* is not valid; use a "):
        inject_lora(nn.Sequential(nn.Linear(4, 4)), ["0"], scaling="alpha", **{"r": 2, name: wrong})


def test_numbers_of_numpy_are_numbers():
    model = nn.Sequential(nn.Linear(4, 4))
    inject_lora(model, ["0"], r=np.int64(3), alpha=np.float32(2), scaling="alpha", dropout=np.float32(0.5))
    assert type(model[0].lora.scaling) is float
    assert type(model[0].lora.dropout.p) is float


def test_alpha_that_is_not_divided_by_r_must_be_meant():
    """The same numbers would be r times as strong here as in PEFT."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    with pytest.warns(UserWarning, match=r"alpha=6, as in the article: 3 times .* scaling='alpha/r'") as told:
        inject_lora(model, ["0"], r=3, alpha=6)
    assert told[0].filename == __file__
    inject_lora(model, ["1"], r=1, alpha=6)  # one and the same
    inject_lora(model, ["2"], r=3, alpha=6, scaling="alpha/r")
    assert [layer.lora.scaling for _, layer in lora_layers(model)] == [6, 6, 2]


def test_the_update_is_in_the_mode_of_its_layer():
    model = nn.Sequential(nn.Linear(64, 4), nn.Linear(4, 4)).eval()
    inject_lora(model, ["0"], r=2, dropout=0.5, scaling="alpha")
    nn.init.normal_(model[0].lora.lora_B)
    x = torch.randn(5, 64)
    assert torch.equal(model(x), model(x))


def test_a_and_b_are_fp32_whatever_torch_makes_by_default():
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = nn.Sequential(nn.Linear(4, 4))
        inject_lora(model, ["0"], r=2, scaling="alpha")
    finally:
        torch.set_default_dtype(torch.float32)
    assert {parameter.dtype for parameter in lora_parameters(model)} == {torch.float32}
    assert model(torch.ones(1, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_a_layer_that_has_an_update_in_one_place_gets_no_second_in_another():
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.Tanh())
    inject_lora(model, ["0"], r=2, scaling="alpha")
    model.append(shared)
    with pytest.raises(ValueError, match="2 already has a LoRA update"):
        inject_lora(model, ["2"], r=2, scaling="alpha")
    assert [name for name, _ in lora_layers(model)] == ["0"]
