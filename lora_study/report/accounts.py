"""What the reviews have in common across the parts of the data, from records alone."""

from collections.abc import Iterable, Iterator
from typing import Any

import pandas as pd

from lora_study.evidence.summary import all_or
from lora_study.records.record import Record

CONTAMINATION = {
    "reviews": "string",
    "copies": "Int64",
    "of": "Int64",
    "share": "float64",
    "experiments": "string",
}


def contamination_table(records: Iterable[Record]) -> pd.DataFrame:
    """Reviews that have a copy among the others (white space folded), per pair of parts.

    Columns: reviews (what is counted), copies, of (reviews of that part), share (percent of these), experiments ('all'
    if every one has these counts).
    """
    records = [record for record in records if record.data.get("overlap")]
    holds: dict[tuple[Any, ...], list[str]] = {}
    for record in records:
        for row in _copies(record):
            names = holds.setdefault(row, [])
            names += [] if record.name in names else [record.name]
    everyone = len({record.name for record in records})
    rows = [
        {
            "reviews": what,
            "copies": copies,
            "of": size,
            "share": 100 * copies / size if copies is not None and size else None,
            "experiments": all_or(names, everyone),
        }
        for (what, copies, size), names in holds.items()
    ]
    order = list(dict.fromkeys(row["reviews"] for row in rows))
    rows.sort(key=lambda row: order.index(row["reviews"]))
    return pd.DataFrame(rows, columns=list(CONTAMINATION)).astype(CONTAMINATION)


def _copies(record: Record) -> Iterator[tuple[str, int | None, int | None]]:
    """What is counted, copies and out of how many reviews; the most telling pair first."""
    overlap, sizes = record.data["overlap"], record.data.get("sizes") or {}
    across, within = overlap.get("across") or {}, overlap.get("within") or {}
    for pair in sorted(across, key=lambda pair: pair != "test_in_train"):
        part, _, other = pair.partition("_in_")
        yield f"{part} reviews with a copy in {other.replace('_', ' ')}", across[pair], sizes.get(part)
    for part, count in within.items():
        yield f"{part} reviews that repeat another", count, sizes.get(part)
    if (repeats := overlap.get("repeats")) is not None:
        yield "reviews of all parts that repeat another", repeats, sum(sizes.values()) or None
