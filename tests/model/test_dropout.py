"""dropout.py: the distribution of torch's own dropout, drawn more cheaply."""

import pytest
import torch
from torch import nn

from lora_study.model.fast.dropout import CheapDropout, Masks, use_cheap_dropout


@pytest.mark.parametrize("p", [0.1, 0.2, 0.5, 0.97])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keeps_each_element_with_the_probability_asked_for(p, dtype):
    torch.manual_seed(0)
    masks = Masks(p)
    mask = masks.draw((1000, 1001), dtype)  # not a multiple of the four elements that 64 bits decide
    assert mask.shape == (1000, 1001) and mask.dtype == dtype
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert masks.keep == pytest.approx(1 - p, abs=2**-17)
    spread = (p * (1 - p) / mask.numel()) ** 0.5
    assert mask.double().mean().item() == pytest.approx(masks.keep, abs=4 * spread)


def test_what_rounds_to_one_is_still_below_it():
    torch.manual_seed(0)
    masks = Masks(0.999999)
    assert masks.keep > 0 and torch.isfinite(CheapDropout(0.999999)(torch.ones(1000, 1000))).all()


def test_elements_are_independent_of_their_neighbours():
    torch.manual_seed(0)
    dropped = 1 - Masks(0.3).draw((4_000_000,), torch.float32).double()
    for distance in (1, 2, 3, 4, 5, 64):  # four share a draw of 64 bits
        both = (dropped[distance:] * dropped[:-distance]).mean().item()
        assert both == pytest.approx(0.09, abs=0.001)


def test_a_stream_goes_on_with_new_masks_and_the_next_stream_differs():
    torch.manual_seed(0)
    first, second = Masks(0.5), Masks(0.5)
    drawn = [masks.draw((64, 64), torch.float32) for masks in (first, first, second)]
    assert not any(torch.equal(drawn[a], drawn[b]) for a, b in ((0, 1), (0, 2), (1, 2)))


def test_torchs_seed_and_state_decide_the_masks():
    layer, x = CheapDropout(0.4), torch.ones(50, 50)
    torch.manual_seed(7)
    first, state = layer(x), torch.get_rng_state()
    second = layer(x)
    torch.manual_seed(7)
    assert torch.equal(layer(x), first)
    torch.set_rng_state(state)
    assert torch.equal(layer(x), second)
    assert not torch.equal(first, second)


def test_keeps_the_mean_and_scales_what_it_keeps_as_torch_does():
    torch.manual_seed(0)
    x = torch.rand(400, 500).requires_grad_()
    y = CheapDropout(0.25)(x)
    kept = y != 0
    torch.testing.assert_close(y[kept], x[kept] / 0.75)
    assert y.mean().item() == pytest.approx(x.mean().item(), rel=0.01)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient, kept / 0.75)


def test_does_nothing_outside_training_or_at_zero():
    x = torch.rand(5, 5)
    assert CheapDropout(0.5).eval()(x) is x
    assert CheapDropout(0.0).train()(x) is x


def test_replaces_a_models_dropout_layers_and_nothing_else():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.3), nn.Sequential(nn.Dropout1d(0.2), nn.Dropout(0.1))).eval()
    use_cheap_dropout(model)
    kinds = [type(module) for module in model.modules()]
    assert kinds.count(CheapDropout) == 2 and kinds.count(nn.Dropout) == 0 and kinds.count(nn.Dropout1d) == 1
    assert [module.p for module in model.modules() if isinstance(module, CheapDropout)] == [0.3, 0.1]
    assert not any(module.training for module in model.modules())
