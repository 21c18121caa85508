"""attention.py: the same attention as torch's own, written as matrix products."""

import pytest
import torch
from torch.nn import functional as F
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from lora_study.model.fast.attention import matrix_product_attention, use_matrix_products
from lora_study.model.fast.dropout import Masks


def padding_mask(lengths: list[int], seq: int) -> torch.Tensor:
    """(batch, 1, 1, seq), True where there is a token."""
    return (torch.arange(seq) < torch.tensor(lengths)[:, None])[:, None, None, :]


def assert_same_outputs_and_gradients(ours, theirs, inputs):
    torch.testing.assert_close(ours, theirs)
    weights = torch.randn_like(ours)
    for mine, other in zip(
        torch.autograd.grad((ours * weights).sum(), inputs),
        torch.autograd.grad((theirs * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("scaling", [None, 0.5])
def test_agrees_with_torch_in_output_and_gradients(masked, scaling):
    torch.manual_seed(0)
    heads = [torch.randn(3, 7, 4, 8).transpose(1, 2).requires_grad_() for _ in range(3)]  # (batch, heads, seq, width)
    mask = padding_mask([7, 4, 1], 7) if masked else None
    ours, _ = matrix_product_attention(torch.nn.Identity(), *heads, mask, scaling=scaling)
    theirs = F.scaled_dot_product_attention(*heads, attn_mask=mask, scale=scaling).transpose(1, 2)
    assert_same_outputs_and_gradients(ours, theirs, heads)


def test_dropout_drops_attention_probabilities_and_keeps_their_mean():
    torch.manual_seed(0)
    heads = [torch.randn(1, 1, 6, 4) for _ in range(3)]
    exact, _ = matrix_product_attention(torch.nn.Identity(), *heads, None)
    draws = torch.stack(
        [matrix_product_attention(torch.nn.Identity(), *heads, None, dropout=0.3)[0] for _ in range(4000)]
    )
    assert draws.std(0).min() > 0.05
    torch.testing.assert_close(draws.mean(0), exact, atol=0.05, rtol=0.05)


def test_dropout_has_the_gradients_of_the_mask_it_drew():
    """Dropout on probabilities of one-hot values shows which were kept; the gradients must be those of that mask."""
    torch.manual_seed(0)
    heads = [torch.randn(3, 2, 6, 6, requires_grad=True) for _ in range(3)]
    mask = padding_mask([6, 5, 3], 6)
    state = torch.get_rng_state()
    ours, _ = matrix_product_attention(torch.nn.Identity(), *heads, mask, dropout=0.4)
    torch.set_rng_state(state)
    one_hot = torch.eye(6).expand(3, 2, 6, 6)
    shown, _ = matrix_product_attention(torch.nn.Identity(), *heads[:2], one_hot, mask, dropout=0.4)
    kept = shown.transpose(1, 2).detach() > 0  # (batch, heads, seq, seq)
    scores = (heads[0] @ heads[1].transpose(2, 3) * 6**-0.5).masked_fill(~mask, -1e4)
    theirs = ((scores.softmax(-1) * kept / Masks(0.4).keep) @ heads[2]).transpose(1, 2)
    assert 0.2 < kept.float().mean() < 0.6
    assert_same_outputs_and_gradients(ours, theirs, heads)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_cutting_the_batch_into_chunks_changes_nothing(monkeypatch, dropout):
    heads = [torch.randn(5, 2, 4, 8) for _ in range(3)]
    found = []
    for chunk in (2**20, 70, 1):  # all five reviews at once, two at a time (2 · 4 · 4 scores each), one at a time
        monkeypatch.setattr("lora_study.model.fast.attention.CHUNK", chunk)
        torch.manual_seed(0)
        found.append(matrix_product_attention(torch.nn.Identity(), *heads, None, dropout=dropout)[0])
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])


def test_scoring_without_gradients_gives_the_same():
    heads = [torch.randn(2, 2, 5, 8, requires_grad=True) for _ in range(3)]
    trained, _ = matrix_product_attention(torch.nn.Identity(), *heads, None)
    with torch.no_grad():
        scored, _ = matrix_product_attention(torch.nn.Identity(), *(x.detach() for x in heads), None)
    assert torch.equal(trained, scored)


def test_a_whole_model_gives_the_same_logits_and_loss_gradients():
    """In fp32; test_levers.py has bf16."""
    torch.manual_seed(0)
    no_dropout = dict.fromkeys(("dropout", "attention_dropout", "seq_classif_dropout"), 0.0)
    shape = DistilBertConfig(vocab_size=60, dim=32, n_heads=4, n_layers=2, hidden_dim=64, **no_dropout)
    model = DistilBertForSequenceClassification(shape).train()
    ids, mask = torch.randint(0, 60, (4, 9)), padding_mask([9, 9, 5, 2], 9)[:, 0, 0].long()

    def step():
        logits = model(input_ids=ids, attention_mask=mask).logits
        return logits, torch.autograd.grad(
            F.cross_entropy(logits, torch.tensor([0, 1, 1, 0])), list(model.parameters())
        )

    logits, gradients = step()
    use_matrix_products(model)
    assert model.config._attn_implementation == "matrix_products"
    ours, our_gradients = step()
    torch.testing.assert_close([ours, *our_gradients], [logits, *gradients], atol=1e-5, rtol=1e-4)
