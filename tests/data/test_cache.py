"""Tokens are the tokenizer's own; the cache gives the same ones, and never fails a run."""

import copy
import logging
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
from transformers import PreTrainedTokenizerFast

from lora_study.data.tokens import encode, tokenise


class Counting:
    """A tokenizer that counts how many reviews it was asked for."""

    def __init__(self, tokenizer):
        self.backend_tokenizer = tokenizer.backend_tokenizer
        self.truncation_side = tokenizer.truncation_side
        self.split_special_tokens = tokenizer.split_special_tokens
        self.tokenizer = tokenizer
        self.reviews = 0

    def __call__(self, texts, **options):
        self.reviews += len(texts)
        return self.tokenizer(texts, **options)


@pytest.fixture(scope="module")
def tokenizer(tiny_backbone):
    return PreTrainedTokenizerFast.from_pretrained(tiny_backbone)


@pytest.fixture(scope="module")
def reviews(reviews_csv):
    table = pd.read_csv(reviews_csv)
    return table.assign(id=table.index.map(str))


def reviews_tokenised(reviews, tokenizer, cache, max_length=32):
    """How many reviews were tokenised rather than read, and the tokens."""
    counting = Counting(tokenizer)
    tokens = tokenise(reviews, counting, max_length, cache)
    return counting.reviews, tokens


def same(one, other):
    arrays = ("tokens", "offsets", "truncated", "labels")
    return one.ids == other.ids and all(np.array_equal(getattr(one, name), getattr(other, name)) for name in arrays)


def test_a_tokenizer_that_takes_special_words_apart_has_tokens_of_its_own(reviews, tiny_backbone, tmp_path):
    texts = reviews.head(3).assign(text=["a [SEP] b", "[MASK]", "plain"])
    for apart in (False, True):
        tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny_backbone, split_special_tokens=apart)
        expected = [token for text in texts["text"] for token in tokenizer(text)["input_ids"]]
        assert reviews_tokenised(texts, tokenizer, tmp_path)[1].tokens.tolist() == expected


def test_tokens_are_the_tokenizers(reviews, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("lora_study.data.tokens.CHUNK", 64)  # several chunks, the last one smaller
    tokens = tokenise(reviews, tokenizer, 32, tmp_path)
    assert len(tokens) == len(reviews)
    assert tokens.tokens.dtype == np.int32
    assert tokens.ids == tuple(reviews["id"])
    assert tokens.labels.tolist() == reviews["label"].tolist()
    for row, text in enumerate(reviews["text"]):
        found = tokens.tokens[tokens.offsets[row] : tokens.offsets[row + 1]].tolist()
        assert found == tokenizer(text, truncation=True, max_length=32)["input_ids"]
        assert len(found) == tokens.lengths[row] <= 32
        assert tokens.truncated[row] == (len(tokenizer(text)["input_ids"]) > 32)
    assert 0 < tokens.truncated.mean() < 1


def test_second_run_reads_the_cache(reviews, tokenizer, tmp_path):
    made, first = reviews_tokenised(reviews, tokenizer, tmp_path)
    read, second = reviews_tokenised(reviews, tokenizer, tmp_path)
    assert (made, read) == (len(reviews), 0)
    assert same(first, second)


def test_labels_are_not_part_of_the_cache(reviews, tokenizer, tmp_path):
    tokenise(reviews, tokenizer, 32, tmp_path)
    flipped = reviews.assign(label=1 - reviews["label"])
    made, tokens = reviews_tokenised(flipped, tokenizer, tmp_path)
    assert made == 0
    assert tokens.labels.tolist() == flipped["label"].tolist()


def test_reviews_cut_at_their_beginning_are_other_tokens(reviews, tokenizer, tmp_path):
    tokenise(reviews, tokenizer, 8, tmp_path)
    ends = copy.deepcopy(tokenizer)
    ends.truncation_side = "left"
    made, tokens = reviews_tokenised(reviews, ends, tmp_path, max_length=8)
    assert made == len(reviews)
    assert tokens.tokens[:8].tolist() == ends(reviews["text"][0], truncation=True, max_length=8)["input_ids"]


def test_other_texts_lengths_and_tokenizers_have_their_own_entry(reviews, tokenizer, tmp_path):
    tokenise(reviews, tokenizer, 32, tmp_path)
    assert reviews_tokenised(reviews, tokenizer, tmp_path, max_length=31)[0] == len(reviews)
    assert reviews_tokenised(reviews[::-1], tokenizer, tmp_path)[0] == len(reviews)
    joined = reviews.assign(text=["", *(reviews["text"].iloc[0] + reviews["text"].iloc[1:])])
    assert reviews_tokenised(joined, tokenizer, tmp_path)[0] == len(reviews)
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["the"])
    assert reviews_tokenised(reviews, other, tmp_path)[0] == len(reviews)


def test_options_of_an_earlier_call_do_not_matter(reviews, tokenizer, tmp_path):
    tokenizer(["x"], truncation=True, max_length=7, padding="max_length")
    _, first = reviews_tokenised(reviews, tokenizer, tmp_path)
    tokenizer(["x"], truncation=False)
    made, second = reviews_tokenised(reviews, tokenizer, tmp_path)
    assert made == 0
    assert same(first, second)


@pytest.mark.parametrize("damage", ["empty", "truncated", "one bit", "other file"])
def test_damaged_entry_is_made_again(reviews, tokenizer, tmp_path, damage):
    whole = tokenise(reviews, tokenizer, 32, tmp_path)
    (entry,) = tmp_path.rglob("*.safetensors")
    content = entry.read_bytes()
    flipped = content[:-100] + bytes([content[-100] ^ 1]) + content[-99:]
    entry.write_bytes({"empty": b"", "truncated": content[:-8], "one bit": flipped, "other file": b"{}" * 99}[damage])
    made, tokens = reviews_tokenised(reviews, tokenizer, tmp_path)
    assert made == len(reviews)
    assert same(tokens, whole)
    assert reviews_tokenised(reviews, tokenizer, tmp_path)[0] == 0


def test_unusable_cache_folder_costs_a_warning_only(reviews, tokenizer, tmp_path, caplog):
    blocked = tmp_path / "file"  # a file where a folder should be: not even root can write below it
    blocked.write_text("")
    with caplog.at_level(logging.WARNING):
        made, tokens = reviews_tokenised(reviews, tokenizer, blocked)
    assert made == len(reviews)
    assert same(tokens, tokenise(reviews, tokenizer, 32, tmp_path / "usable"))
    assert "not cached" in caplog.text


def test_failed_write_costs_a_warning_only(reviews, tokenizer, tmp_path, caplog, monkeypatch):
    def disk_full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lora_study.data.cache.save_file", disk_full)
    made, tokens = reviews_tokenised(reviews, tokenizer, tmp_path)
    assert made == len(reviews) == len(tokens)  # tokenised once, not again after the failure
    assert "No space left" in caplog.text
    assert not [file for file in tmp_path.rglob("*") if file.suffix in (".safetensors", ".tmp")]


def test_of_runs_at_once_one_tokenises(reviews, tokenizer, tmp_path, monkeypatch):
    def slowly(*arguments):
        time.sleep(0.2)  # time enough for the others to find no entry
        return encode(*arguments)

    monkeypatch.setattr("lora_study.data.tokens.encode", slowly)
    # A thread's lock excludes the other threads' just as another process's would.
    copies = [copy.deepcopy(tokenizer) for _ in range(3)]
    with ThreadPoolExecutor(len(copies)) as pool:
        results = list(pool.map(lambda own: reviews_tokenised(reviews, own, tmp_path), copies))
    assert sorted(made for made, _ in results) == [0, 0, len(reviews)]
    assert all(same(tokens, results[0][1]) for _, tokens in results)
