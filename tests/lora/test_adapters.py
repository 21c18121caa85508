"""adapters.py: adapters over one base change places exactly, or nothing is changed."""

import random

import peft
import pytest
import torch
from small_networks import TOKENS, adapted, base, outputs

from lora_study import (
    Adapters,
    ConfigError,
    LinearWithDoRA,
    inject_lora,
    lora_layers,
    merge_lora,
    save_adapter,
    unmerge_lora,
)

# PEFT asks transformers by a name that transformers 5 is giving up.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


@pytest.fixture
def three(tmp_path):
    """A base with three adapters of different layers, heads and kinds, and what each says."""
    adapters, said = Adapters(base("distilbert", head_seed=9)), {}
    for seed, settings in enumerate(
        ({}, {"targets": ["mlp"], "r": 2}, {"layer": LinearWithDoRA, "targets": ["value"]})
    ):
        model = adapted("distilbert", head_seed=seed, **settings)
        save_adapter(model, tmp_path / str(seed))
        adapters.load(f"number {seed}", tmp_path / str(seed))
        said[f"number {seed}"] = outputs(model)
    return adapters, said | {None: outputs(base("distilbert", head_seed=9))}


def test_switching_is_exact_and_the_base_is_never_touched(three):
    adapters, said = three
    before = {name: (value.data_ptr(), value.clone()) for name, value in adapters.model.state_dict().items()}
    assert adapters.names == ["number 0", "number 1", "number 2"]
    assert adapters.active is None
    first: dict[str | None, torch.Tensor] = {}
    order = [*said, *said, *random.Random(0).choices(list(said), k=12)]
    for name in order:
        adapters.use(name)
        assert adapters.active == name
        found = outputs(adapters.model)
        torch.testing.assert_close(found, said[name], atol=1e-6, rtol=0)
        assert torch.equal(found, first.setdefault(name, found))  # bitwise, whatever was in use before
    adapters.use(None)
    for name, value in adapters.model.state_dict().items():
        address, weights = before[name]
        assert value.data_ptr() == address
        assert torch.equal(value, weights)
    assert not list(lora_layers(adapters.model))


def test_an_adapter_is_removed_and_loaded_while_another_is_in_use(three, tmp_path):
    adapters, said = three
    adapters.use("number 1")
    adapters.load("again", tmp_path / "0")
    assert adapters.active == "number 1"
    torch.testing.assert_close(outputs(adapters.model), said["number 1"], atol=1e-6, rtol=0)
    adapters.use("again")
    torch.testing.assert_close(outputs(adapters.model), said["number 0"], atol=1e-6, rtol=0)
    adapters.remove("number 1")
    assert adapters.active == "again"
    adapters.remove("again")
    assert (adapters.active, adapters.names) == (None, ["number 0", "number 2"])
    assert torch.equal(outputs(adapters.model), said[None])


def test_an_adapter_is_left_out_while_a_block_runs_and_is_back_afterwards(three):
    adapters, said = three
    adapters.use("number 2")
    with_adapter = adapters.model(input_ids=TOKENS).logits
    with_adapter.square().sum().backward()
    trained = [parameter for parameter in adapters.model.parameters() if parameter.requires_grad]
    gradients = [parameter.grad for parameter in trained]
    with pytest.raises(KeyboardInterrupt), adapters.disabled():
        assert torch.equal(outputs(adapters.model), said[None]), "the model's own head, too"
        with adapters.disabled():
            pass
        assert adapters.active is None
        adapters.use("number 0")  # whatever is used inside
        raise KeyboardInterrupt
    assert adapters.active == "number 2"
    assert torch.equal(outputs(adapters.model), with_adapter)
    assert [id(p) for p in adapters.model.parameters() if p.requires_grad] == [id(p) for p in trained]
    assert all(parameter.grad is gradient is not None for parameter, gradient in zip(trained, gradients, strict=True))


def test_what_is_left_out_is_what_peft_leaves_out(tmp_path):
    save_adapter(adapted("distilbert"), tmp_path)
    theirs = peft.PeftModel.from_pretrained(base("distilbert", head_seed=1), tmp_path)
    adapters = Adapters(base("distilbert", head_seed=1))
    adapters.load("one", tmp_path)
    adapters.use("one")
    with theirs.disable_adapter(), adapters.disabled():
        assert torch.equal(outputs(adapters.model), outputs(theirs))
    torch.testing.assert_close(outputs(adapters.model), outputs(theirs), atol=1e-5, rtol=0)


def test_an_adapter_put_in_later_follows_the_mode_the_model_is_in_now(three):
    adapters, _ = three
    adapters.model.train()
    adapters.use("number 2")
    assert all(module.training for module in adapters.model.modules())
    adapters.use(None)
    adapters.model.eval()
    adapters.use("number 0")
    assert not any(module.training for module in adapters.model.modules())


def test_adapters_of_which_one_stores_whole_what_another_adapts(tmp_path):
    whole = adapted("distilbert", targets=["query"])
    save_adapter(whole, tmp_path / "whole", modules_to_save=["layer.1.ffn"])
    inner = adapted("distilbert", targets=["lin1"])
    save_adapter(inner, tmp_path / "inner")
    adapters = Adapters(base("distilbert"))
    adapters.load("whole", tmp_path / "whole")
    adapters.load("inner", tmp_path / "inner")
    for name, model in (("whole", whole), ("inner", inner), ("whole", whole), (None, base("distilbert"))):
        adapters.use(name)
        torch.testing.assert_close(outputs(adapters.model), outputs(model), atol=1e-6, rtol=0)


def test_mistaken_names_and_refused_folders_leave_everything_as_it_was(three, tmp_path):
    adapters, said = three
    adapters.use("number 0")
    with pytest.raises(ConfigError, match="number 0, number 1, number 2"):
        adapters.use("number 7")
    with pytest.raises(ConfigError, match="'number 7'"):
        adapters.remove("number 7")
    with pytest.raises(ConfigError, match="remove it first"):
        adapters.load("number 1", tmp_path / "0")
    with pytest.raises(ConfigError, match="nowhere"):
        adapters.load("new", tmp_path / "nowhere")
    assert (adapters.active, len(adapters.names)) == ("number 0", 3)
    torch.testing.assert_close(outputs(adapters.model), said["number 0"], atol=1e-6, rtol=0)


@pytest.fixture
def one(tmp_path):
    """A base with one adapter in use, of some layers and the head."""
    save_adapter(adapted("distilbert", ["query", "mlp"], head_seed=1), tmp_path / "adapter")
    adapters = Adapters(base("distilbert"))
    adapters.load("one", tmp_path / "adapter")
    adapters.use("one")
    return adapters


def test_what_was_merged_away_cannot_be_switched(one, tmp_path):
    said = outputs(one.model)
    merged = merge_lora(one.model)
    for attempt in (
        lambda: one.use(None),
        lambda: one.use("one"),
        lambda: one.remove("one"),
        lambda: one.load("two", tmp_path / "adapter"),
    ):
        with pytest.raises(
            ConfigError, match=r"'one' is no longer in distil.*q_lin, as after merge_lora.*unmerge_lora"
        ):
            attempt()
        assert (one.active, one.names) == ("one", ["one"])
        torch.testing.assert_close(outputs(one.model), said, atol=1e-4, rtol=0)
    unmerge_lora(one.model, merged)
    assert torch.equal(outputs(one.model), said)
    one.use(None)
    assert torch.equal(outputs(one.model), outputs(base("distilbert")))
    one.use("one")
    assert torch.equal(outputs(one.model), said)


def test_a_base_that_has_changed_is_refused(one):
    one.use(None)
    inject_lora(one.model, ["layer.2.attention.q_lin"], r=2, scaling="alpha")
    with pytest.raises(ConfigError, match=r"layer\.2\.attention\.q_lin is no longer what it was when adapter 'one'"):
        one.use("one")
    assert one.active is None
    assert len(list(lora_layers(one.model))) == 1
    one.remove("one")
    assert one.names == []


def test_a_base_in_half_precision_is_as_it_was_whatever_was_in_use(tmp_path):
    for seed, settings in enumerate(({}, {"layer": LinearWithDoRA})):
        save_adapter(adapted("distilbert", head_seed=seed, **settings), tmp_path / str(seed))
    adapters = Adapters(base("distilbert").to(torch.bfloat16))
    before = {name: tensor.clone() for name, tensor in adapters.model.state_dict().items()}
    for name in "01":
        adapters.load(name, tmp_path / name)
    for name in ("1", None, "1", "0", "1"):
        adapters.use(name)
        assert outputs(adapters.model).isfinite().all()
    adapters.use(None)
    after = adapters.model.state_dict()
    assert all(
        torch.equal(after[name], tensor) and after[name].dtype == tensor.dtype for name, tensor in before.items()
    )


def test_the_models_own_parts_follow_it_while_they_are_out(one):
    one.model.train()
    one.model.double()
    one.use(None)
    assert all(module.training for module in one.model.modules())
    assert {parameter.dtype for parameter in one.model.parameters()} == {torch.float64}
    one.model.float()
    one.use("one")
    assert one.model.classifier.weight.dtype == torch.float32


def test_an_adapter_with_statistics_is_left_after_the_model_has_moved(tmp_path):
    """Moving makes new tensors of buffers; it is not what merging does."""
    trained = adapted("odd", targets=["body.proj"], trained="norm")
    save_adapter(trained, tmp_path)
    for moves_first in (True, False):
        plain, model = base("odd").double(), base("odd")
        adapters = Adapters(model)
        adapters.load("one", tmp_path)
        if moves_first:
            model.double()
        adapters.use("one")
        model.double()
        torch.testing.assert_close(outputs(model), outputs(trained).double(), atol=1e-5, rtol=0)
        adapters.use(None)
        torch.testing.assert_close(outputs(model), outputs(plain), atol=1e-6, rtol=0)
