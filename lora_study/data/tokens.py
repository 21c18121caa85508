"""Tokenised reviews, cached on disk.

Reviews are tokenised once per text, tokenizer and length. Their tokens follow one another in one flat array, unpadded,
so that 35,000 reviews take about 40 MB and batches are padded only to their own longest review.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from transformers import PreTrainedTokenizerFast

from lora_study.base.errors import ConfigError
from lora_study.base.files import user_path
from lora_study.data.cache import Arrays, cached, fingerprint

FORMAT = 1  # of a cache entry; part of its name
CHUNK = 1000  # reviews per call of the tokenizer, whose own result is many times larger than the tokens


@dataclass(frozen=True, eq=False)
class TokenisedReviews:
    """Tokens, labels and ids of n reviews.

    Attributes:
        tokens: All tokens, review after review, [CLS] and [SEP] included; int32, (total,).
        offsets: Review i holds tokens[offsets[i] : offsets[i + 1]]; int64, (n + 1,).
        truncated: Whether a review was cut to the maximal length; bool, (n,).
        labels: 0 or 1; int64, (n,).
        ids: The reviews' ids.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    truncated: np.ndarray
    labels: np.ndarray
    ids: tuple[str, ...]

    def __len__(self) -> int:
        """Number of reviews."""
        return len(self.labels)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per review; int64, (n,)."""
        return np.diff(self.offsets)


def tokenise(
    reviews: pd.DataFrame, tokenizer: PreTrainedTokenizerFast, max_length: int, cache_dir: str | Path
) -> TokenisedReviews:
    """Tokenise a review table, or take its tokens from the cache.

    Runs may share the cache: if several want the same tokens, one makes them and the others wait. A damaged entry is
    made again. A folder that cannot be used is logged as a warning, and costs only time.

    Args:
        reviews: A review table.
        tokenizer: A fast tokenizer.
        max_length: Tokens a review is cut to, special tokens included.
        cache_dir: Folder of the cache.
    """
    texts = reviews["text"].tolist()
    name = fingerprint([f"format {FORMAT}, {max_length} tokens", tokenizer_content(tokenizer), *texts])
    path = user_path(cache_dir) / "tokens" / f"{name}.safetensors"
    arrays = cached(path, lambda: encode(texts, tokenizer, max_length))
    return TokenisedReviews(**arrays, labels=reviews["label"].to_numpy(), ids=tuple(reviews["id"]))


def encode(texts: list[str], tokenizer: PreTrainedTokenizerFast, max_length: int) -> Arrays:
    """Arrays tokens, offsets and truncated of `TokenisedReviews`.

    Raises:
        ConfigError: a text has no tokens.
    """
    tokens, lengths, truncated = [], [0], []
    for start in range(0, len(texts), CHUNK):
        batch = tokenizer(texts[start : start + CHUNK], truncation=True, max_length=max_length)
        for text, encoding in zip(texts[start:], batch.encodings or (), strict=False):
            if not encoding.ids:
                raise ConfigError(
                    f"model.backbone: its tokenizer gives no token for the text {text!r:.80}; leave it out"
                )
            tokens.append(np.array(encoding.ids, dtype=np.int32))
            lengths.append(len(encoding.ids))
            truncated.append(len(encoding.overflowing) > 0)
    return {
        "tokens": np.concatenate(tokens),
        "offsets": np.cumsum(lengths, dtype=np.int64),
        "truncated": np.array(truncated),
    }


def tokenizer_content(tokenizer: PreTrainedTokenizerFast) -> str:
    """Everything in a fast tokenizer that affects its tokens, as one JSON text.

    Calling a tokenizer leaves that call's truncation and padding behind in it, so these do not count.
    """
    content = json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
    if tokenizer.truncation_side != "right":  # said here alone, and not where it is usual: old entries stay good
        content["truncation_side"] = tokenizer.truncation_side
    if getattr(tokenizer, "split_special_tokens", False):  # likewise
        content["split_special_tokens"] = True
    return json.dumps(content, sort_keys=True)
