"""Tables of reviews as files of every type."""

import gzip
from pathlib import Path

import pandas as pd


def write_table(path: Path, columns: dict) -> Path:
    """Write columns as the type that the path's ending says, in capitals or not, with .gz or not."""
    frame, plain = pd.DataFrame(columns, dtype=object), path.with_name("plain")
    kind = path.name.lower().removesuffix(".gz").rsplit(".")[-1]
    if kind == "parquet":
        frame.to_parquet(plain)
    elif kind in ("jsonl", "ndjson"):
        frame.to_json(plain, orient="records", lines=True, force_ascii=False)
    else:
        frame.to_csv(plain, index=False, sep="\t" if kind == "tsv" else ",")
    content = plain.read_bytes()
    plain.unlink()
    path.write_bytes(gzip.compress(content) if path.name.lower().endswith(".gz") else content)
    return path
