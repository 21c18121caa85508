"""Data sets that are folders: written by `save_to_disk` of datasets, or of Parquet files as on the hub.

Only Arrow and Parquet files and the descriptions beside them are read: nothing is unpickled or run.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from lora_study.base.errors import ConfigError, one_line
from lora_study.base.files import read_json
from lora_study.data.reviews import SPLITS
from lora_study.data.tables import KINDS, NOT_PARQUET, Table, arrow_rows, class_labels, kind_of, open_table, quoted

UNLABELLED = ("unsupervised", "unsup")  # splits that are skipped
NAMES = (*SPLITS, *UNLABELLED)
PIECE = re.compile(r"(.+)-\d+-of-(\d+)[-.]")  # of a table that is several files, as in train-00000-of-00003.parquet


def is_data_set(path: Path) -> bool:
    """Whether a folder is a data set that `folder_tables` reads."""
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file() or bool(_parquet_files(path))


def folder_tables(path: Path, skipped: Collection[str] = UNLABELLED) -> Iterator[Table]:
    """The tables of a folder one after the other, train first.

    Args:
        path: The folder.
        skipped: Splits that are left out; by default those without labels.

    Raises:
        ConfigError: one of its files is missing, malformed or of another kind, or the folder holds several data sets.
    """
    if (path / "dataset_dict.json").is_file():
        splits = _described(path / "dataset_dict.json").get("splits")
        if not isinstance(splits, list) or not all(isinstance(split, str) for split in splits):
            raise ConfigError(f"{path}/dataset_dict.json lists no splits; save the data set again")
        for split in sorted(splits, key=_order):
            if split not in skipped:
                yield from _saved(path / split, split)
    elif (path / "state.json").is_file():
        yield from _saved(path, None)
    else:
        files = [(split, file) for split, file in _parquet_files(path) if split not in skipped]
        _check_pieces(file for _, file in files)
        for split, file in files:
            with open_table(file, str(file)) as table:
                yield Table(table.name, table.columns, table.rows, table.classes, split)


def _saved(folder: Path, split: str | None) -> Iterator[Table]:
    """The tables of one data set that `save_to_disk` wrote."""
    try:
        files = [folder / Path(entry["filename"]).name for entry in _described(folder / "state.json")["_data_files"]]
        classes = class_labels(_described(folder / "dataset_info.json")["features"])
    except (AttributeError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{folder} does not say what it holds ({one_line(error)}); save the data set again"
        ) from error
    for file in files:
        try:
            with pa.memory_map(str(file)) as source, pa.ipc.open_stream(source) as batches:
                yield Table(str(file), batches.schema.names, partial(arrow_rows, batches, str(file)), classes, split)
        except NOT_PARQUET as error:
            raise ConfigError(f"{file} cannot be read ({one_line(error)}); save the data set again") from error


def _described(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({one_line(error)}); save the data set again") from error
    return content if isinstance(content, dict) else {}


def _parquet_files(path: Path) -> list[tuple[str | None, Path]]:
    """The Parquet files in a folder and the split of each, according to the name of the file or of its folder.

    Raises:
        ConfigError: one split is in several folders, as in a data set with several configurations, in another kind of
            file, or twice.
    """
    tables = [file for file in (*path.glob("*"), *path.glob("*/*")) if kind_of(file)[0] in KINDS and file.is_file()]
    found = [(_split_of(file), file) for file in tables if kind_of(file)[0] == ".parquet"]
    splits = {split for split, _ in found}
    for file in tables if found else ():
        if (split := _split_of(file)) and split not in splits:
            raise ConfigError(
                f"{path} holds {file.name} beside Parquet files; save all of it as Parquet, or name a file"
            )
    twice = Counter(file.with_name(file.name.lower().removesuffix(".gz")) for _, file in found)
    for file, times in twice.items():
        if times > 1:
            raise ConfigError(f"{file.parent} holds {file.name} twice, with .gz and without; remove one")
    for split in splits:
        folders = sorted({str(file.parent.relative_to(path)) for name, file in found if name == split})
        if len(folders) > 1:
            raise ConfigError(f"{path} holds several data sets ({quoted(folders)}); name the folder of one of them")
    return sorted(found, key=lambda entry: (_order(entry[0]), str(entry[1])))


def _check_pieces(files: Iterable[Path]) -> None:
    """Refuse files of which one that their names tell of is missing."""
    pieces = Counter((file.parent, piece[1], int(piece[2])) for file in files if (piece := PIECE.match(file.name)))
    for (folder, name, whole), there in pieces.items():
        if there < whole:
            raise ConfigError(f"{folder} holds {there} of the {whole} files of {name}; fetch the others")


def _split_of(file: Path) -> str | None:
    """The split that a file's name begins with, as in train-00000-of-00001.parquet, or that names its folder."""
    stem = re.split("[^a-z]", file.name.lower())[0]
    return next((name for name in (stem, file.parent.name.lower()) if name in NAMES), None)


def _order(split: str | None) -> tuple[int, str]:
    """A split's place in the order: train first, as on the hub."""
    return (NAMES.index(split) if split in NAMES else len(NAMES), split or "")
