"""attention.py: each review's attention as torch's own computes it, written as matrix products."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lora_study.model.fast import attention
from lora_study.model.fast.attention import packed_attention, pieces
from lora_study.model.fast.dropout import Masks

LENGTHS = [6, 6, 4, 2, 4, 4, 4]  # some equal neighbours, one review between equal ones
HEADS, WIDTH = 2, 8
STARTS = torch.tensor([0, 6, 12, 16, 18, 22, 26])
CUT_BY_ITSELF = 10_000  # scores in a piece: more than there are


def row(tokens: int = sum(LENGTHS), width: int = WIDTH, trained: bool = True) -> Tensor:
    """As DistilBERT makes queries, keys and values: (1, heads, tokens, width), a view of (1, tokens, heads, width)."""
    return torch.randn(1, tokens, HEADS, width, requires_grad=trained).transpose(1, 2)


def ours(heads: list[Tensor], **options: object) -> Tensor:
    found, none = packed_attention(torch.nn.Identity(), *heads, None, pieces=pieces(LENGTHS, HEADS), **options)
    assert none is None
    return found


def theirs(heads: list[Tensor], scaling: float | None = None) -> Tensor:
    """torch's attention of one review after the other."""
    every = [heads[0].split(LENGTHS if heads[0].shape[2] == sum(LENGTHS) else 1, 2)]
    every += [x.split(LENGTHS, 2) for x in heads[1:]]
    each = [F.scaled_dot_product_attention(*review, scale=scaling) for review in zip(*every, strict=True)]
    return torch.cat(each, 2).transpose(1, 2)


def assert_same_outputs_and_gradients(found, expected, inputs):
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(found)
    for mine, other in zip(
        torch.autograd.grad((found * weights).sum(), inputs),
        torch.autograd.grad((expected * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("queries", [sum(LENGTHS), len(LENGTHS)], ids=["every token asks", "first tokens ask"])
@pytest.mark.parametrize("scaling", [None, 0.5])
def test_agrees_with_torch_review_by_review_in_output_and_gradients(queries, scaling):
    torch.manual_seed(0)
    heads = [row(queries), row(), row()]
    assert_same_outputs_and_gradients(ours(heads, scaling=scaling), theirs(heads, scaling), heads)


@pytest.mark.parametrize("chunk", [1, 70, CUT_BY_ITSELF])
def test_pieces_are_neighbours_of_one_length_and_no_more_than_fit(monkeypatch, chunk):
    monkeypatch.setattr(attention, "CHUNK", chunk)
    found = pieces(LENGTHS, HEADS)
    assert [review for piece in found for review in range(len(LENGTHS))[piece.reviews]] == list(range(len(LENGTHS)))
    for piece in found:
        lengths = LENGTHS[piece.reviews]
        assert piece.tokens.start == STARTS[piece.reviews.start]
        assert piece.tokens.stop == piece.tokens.start + sum(lengths)
        assert len(set(lengths)) == 1
        assert len(lengths) == 1 or HEADS * sum(length**2 for length in lengths) <= chunk
    assert len(found) == {1: 7, 70: 6, CUT_BY_ITSELF: 4}[chunk]  # 70 scores are two reviews of four tokens


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_size_of_pieces_changes_nothing(monkeypatch, dropout):
    heads, found = [row(), row(), row()], []
    for chunk in (CUT_BY_ITSELF, 70, 1):
        monkeypatch.setattr(attention, "CHUNK", chunk)
        torch.manual_seed(0)
        found.append(ours(heads, dropout=dropout))
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])


def test_dropout_drops_attention_probabilities_and_keeps_their_mean():
    torch.manual_seed(0)
    heads = [row(), row(), row()]
    exact = ours(heads).detach()
    with torch.no_grad():
        draws = torch.stack([ours(heads, dropout=0.3) for _ in range(1000)])
    assert draws.std(0).min() > 0
    assert ((draws.mean(0) - exact).abs() < 5 * draws.std(0) / 1000**0.5).all()


def test_dropout_has_the_gradients_of_the_mask_it_drew():
    """Dropout on probabilities of one-hot values shows which were kept; the gradients must be those of that mask."""
    torch.manual_seed(0)
    heads = [row(), row(), row()]
    state = torch.get_rng_state()
    found = ours(heads, dropout=0.4)
    torch.set_rng_state(state)
    one_hot = torch.cat([torch.eye(length, WIDTH) for length in LENGTHS]).expand(1, HEADS, -1, -1)
    shown = ours([*heads[:2], one_hot], dropout=0.4).detach() > 0  # (1, tokens, heads, width)
    expected = []
    for start, length in zip(STARTS.tolist(), LENGTHS, strict=True):
        q, k, v = (x[:, :, start : start + length] for x in heads)
        kept = shown.transpose(1, 2)[:, :, start : start + length, :length]
        expected.append((q @ k.transpose(2, 3) * WIDTH**-0.5).softmax(-1) * kept / Masks(0.4).keep @ v)
    assert 0.5 < shown[0, : LENGTHS[0], :, : LENGTHS[0]].float().mean() < 0.7
    assert_same_outputs_and_gradients(found, torch.cat(expected, 2).transpose(1, 2), heads)


def test_scoring_without_gradients_gives_the_same():
    heads = [row(), row(), row()]
    trained = ours(heads)
    with torch.no_grad():
        assert torch.equal(trained, ours([x.detach() for x in heads]))
