"""Reviews that are in the data more than once: exact copies, up to white space, and near copies.

IMDb has 418 exact copies. Where one stands in train and another in test, accuracy on test is a little too good, so
every run reports the overlap and `deduplicate` removes it. Near copies, a review posted again with an edit or quoted
in a longer one, are reported beside them and left in the data.

Two reviews are near copies if the sets of their shingles, the runs of `SHINGLE` words (Broder, 1997, "On the
resemblance and containment of documents"), have a Jaccard similarity of `THRESHOLD` or more. Read side by side, the 22
such pairs in the official training split are one review posted again with an edit or an addition, or an answer that
quotes it. Of the two from 0.4 to 0.5 one shares only the site's terms of use, pasted in; below, one author's set
phrases for different films take over.

The similarity is computed, not estimated by MinHash: nearly all shingles stand in one review only, so all pairs that
share any are a sparse matrix product, and it takes no longer.
"""

import itertools
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from lora_study.data.cache import Arrays, cached, fingerprint
from lora_study.small_files import user_path

PAIRS = (("val", "train"), ("test", "train"), ("test", "val"))
SHINGLE = 5  # words
THRESHOLD = 0.5
EXAMPLES = 3  # pairs of near copies that a report names, per pair of parts

FORMAT = 1  # of a cache entry; part of its name
CHUNK = 1000  # texts that are compared with all others at once; bounds memory
MARKUP = re.compile(r"<br\s*/?>")
WORD = re.compile(r"\w+")


def fold(text: str) -> str:
    """The text with every stretch of white space folded into one space; case and punctuation count."""
    return " ".join(text.split())


def overlap_report(splits: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """Count the copies within and across the parts of a split, ready for JSON.

    Returns:
        ``within``: per part, the reviews that repeat an earlier one of it. ``across``: the reviews of val and test
        that have a copy in train, and those of test that have one in val. ``conflicting_labels``: the distinct
        texts that carry both labels.
    """
    folded = {part: reviews["text"].map(fold) for part, reviews in splits.items()}
    everything = pd.DataFrame(
        {
            "text": pd.concat(list(folded.values())),
            "label": pd.concat([reviews["label"] for reviews in splits.values()]),
        }
    )
    return {
        "within": {part: int(texts.duplicated().sum()) for part, texts in folded.items()},
        "across": {f"{part}_in_{other}": int(folded[part].isin(folded[other]).sum()) for part, other in PAIRS},
        "conflicting_labels": int((everything.groupby("text")["label"].nunique() > 1).sum()),
    }


def near_overlap_report(splits: dict[str, pd.DataFrame], cache_dir: str | Path) -> dict[str, Any]:
    """Count the near copies within and across the parts of a split, ready for JSON. Exact copies are near ones too.

    Args:
        splits: A review table per part.
        cache_dir: Folder of the cache: near copies are looked for once per collection of texts.

    Returns:
        ``threshold`` and ``shingle`` (words) say what a near copy is. ``within`` and ``across`` count reviews as
        `overlap_report` does, with near copies for copies. ``conflicting_labels``: the reviews that have a near copy
        with the other label. ``examples``: per two parts the least similar near copies across them, as [id, id,
        similarity].
    """
    reviews = pd.concat(list(splits.values()), ignore_index=True)
    labels, rows = reviews["label"].to_numpy(), np.arange(len(reviews))
    part_of = np.repeat(list(splits), [len(part) for part in splits.values()])
    copies = cached_near_copies(reviews["text"].tolist(), cache_dir)

    def with_copy(reviews: np.ndarray, among: np.ndarray) -> int:
        return int(np.sum(first_copy(copies, among)[reviews] < len(rows)))

    def examples(part: str, other: str) -> list[list[Any]]:
        found = pairs_between(copies, part_of == part, part_of == other)[:EXAMPLES]
        return [[*reviews["id"].iloc[pair], round(similarity, 3)] for *pair, similarity in found]

    return {
        "threshold": THRESHOLD,
        "shingle": SHINGLE,
        "within": {part: int(np.sum((first_copy(copies, part_of == part) < rows)[part_of == part])) for part in splits},
        "across": {f"{part}_in_{other}": with_copy(part_of == part, part_of == other) for part, other in PAIRS},
        "conflicting_labels": with_copy(labels == 0, labels == 1) + with_copy(labels == 1, labels == 0),
        "examples": {f"{part}_in_{other}": examples(part, other) for part, other in PAIRS},
    }


def first_copy(copies: Arrays, among: np.ndarray) -> np.ndarray:
    """For every review the first one, among some, that it is a near copy of or is itself.

    Args:
        copies: Result of `near_copies`.
        among: Which reviews to look among; bool, (reviews,).

    Returns:
        Their rows, or the number of reviews where there is none; int64, (reviews,).
    """
    own = first_of_group(copies, among)
    first = own.copy()
    for one, other in (copies["pairs"].T, copies["pairs"].T[::-1]):
        np.minimum.at(first, one, own[other])
    return first[copies["group"]]


def first_of_group(copies: Arrays, among: np.ndarray) -> np.ndarray:
    """The first review of every group, among some, or the number of reviews where there is none; (groups,)."""
    group = copies["group"]
    first = np.full(group.max() + 1, len(group))
    np.minimum.at(first, group[among], np.flatnonzero(among))
    return first


def pairs_between(copies: Arrays, ones: np.ndarray, others: np.ndarray) -> list[tuple[int, int, float]]:
    """Pairs of near copies of different words, least similar first: a row of ones, a row of others, similarity.

    Of reviews of the same words the first stands for all.
    """
    left, right = first_of_group(copies, ones), first_of_group(copies, others)
    found = [
        (int(left[one]), int(right[other]), float(similarity))
        for pair, similarity in zip(copies["pairs"], copies["similarity"], strict=True)
        for one, other in (pair, pair[::-1])
        if max(left[one], right[other]) < len(ones)
    ]
    return sorted(found, key=lambda pair: (pair[2], pair))


def cached_near_copies(texts: Sequence[str], cache_dir: str | Path) -> Arrays:
    """`near_copies`, or what it gave for the same texts before; a cache that cannot be used costs only time."""
    name = fingerprint([f"format {FORMAT}, {SHINGLE} words, similarity {THRESHOLD}", *texts])
    return cached(user_path(cache_dir) / "near_copies" / f"{name}.safetensors", lambda: near_copies(texts))


def near_copies(texts: Sequence[str], threshold: float = THRESHOLD) -> Arrays:
    """Find all pairs of texts whose shingles have a Jaccard similarity of a threshold or more.

    Texts of the same words are one group, so that a text that is there very often does not make very many pairs.

    Args:
        texts: One text or more.
        threshold: In (0, 1].

    Returns:
        group: The group of each text, numbered by first appearance; int64, (texts,).
        pairs: Pairs of groups, the smaller number first, in ascending order; int64, (pairs, 2).
        similarity: Their Jaccard similarity; float64, (pairs,).
    """
    group, distinct = pd.factorize(np.array([" ".join(words(text)) for text in texts], dtype=object))
    shared, sizes = shared_shingles(distinct.tolist())
    transposed = shared.T.tocsr()
    pairs, similarities = [], []
    for start in range(0, len(distinct), CHUNK):
        common = (shared[start : start + CHUNK] @ transposed).tocoo()  # entries: how many shingles two texts share
        one, other = common.coords[0].astype(np.int64) + start, common.coords[1].astype(np.int64)
        similarity = common.data / (sizes[one] + sizes[other] - common.data)
        found = (one < other) & (similarity >= threshold)
        pairs.append(np.column_stack([one[found], other[found]]))
        similarities.append(similarity[found])
    joined = np.concatenate(pairs)
    order = np.lexsort(joined.T[::-1])
    return {"group": group, "pairs": joined[order], "similarity": np.concatenate(similarities)[order]}


def words(text: str) -> list[str]:
    """The words of a text in lower case, without the markup of line breaks; where there are none, all its signs."""
    plain = MARKUP.sub(" ", text.lower())
    return WORD.findall(plain) or plain.split()


def shared_shingles(texts: Sequence[str]) -> tuple[sparse.csr_array, np.ndarray]:
    """Which shingles that are found more than once each text has, and how many shingles it has in all.

    A text of fewer words than a shingle is one shingle. Shingles are told apart by a hash of 64 bits: among 10 million
    the chance that any two are mistaken for one another is about 3 in a million.

    Args:
        texts: Words with a space between.

    Returns:
        Ones, int32, (texts, shared shingles); number of distinct shingles, int64, (texts,).
    """
    number: defaultdict[str, int] = defaultdict(itertools.count(1).__next__)  # of a word; 0 fills up short texts
    numbers_of = []
    for text in texts:
        numbers = [number[word] for word in text.split(" ")]
        numbers_of.append(np.array(numbers + [0] * (SHINGLE - len(numbers)), dtype=np.uint64))
    text_of = np.repeat(np.arange(len(texts), dtype=np.int32), [len(numbers) for numbers in numbers_of])
    flat = np.concatenate(numbers_of)
    places = len(flat) - SHINGLE + 1  # where a shingle can start
    hashes = np.zeros(places, dtype=np.uint64)
    for k in range(SHINGLE):
        hashes ^= flat[k : k + places]
        hashes *= np.uint64(0x9E3779B97F4A7C15)  # odd, so nothing is lost; its bits carry each word's upwards
        hashes ^= hashes >> np.uint64(32)  # and this back down
    inside = text_of[:places] == text_of[SHINGLE - 1 :]  # the others reach into the next text
    hashes, text_of = hashes[inside], text_of[:places][inside]

    ordered = np.sort(hashes)
    repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    column = pd.Index(repeated).get_indexer(pd.Index(hashes))  # -1 for a shingle found once
    shared = column >= 0
    # Of one place each, so an entry counts how often the text has the shingle; a set has it or not.
    matrix = sparse.csr_array(
        (np.ones(shared.sum(), dtype=np.int32), (text_of[shared], column[shared])), shape=(len(texts), len(repeated))
    )
    matrix.data[:] = 1
    return matrix, np.bincount(text_of[~shared], minlength=len(texts)) + np.diff(matrix.indptr)


def deduplicate(reviews: pd.DataFrame) -> pd.DataFrame:
    """The reviews with one copy of each, in their order.

    An official test review is kept before a training one, so that the official test split loses only its copies of
    itself and it is the training part that gives way; otherwise the first copy is kept.
    """
    test_first = reviews.iloc[np.argsort((reviews["split"] != "test").to_numpy(), kind="stable")]
    kept = test_first[~test_first["text"].map(fold).duplicated()]
    return reviews.loc[kept.index.sort_values()].reset_index(drop=True)
