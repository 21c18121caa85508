"""What the reviews have in common across the parts of the data, and what the runs cost; from records alone."""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import pandas as pd

from lora_study.records import Record
from lora_study.tables import all_measured, all_or

CONTAMINATION = {
    "reviews": "string",
    "copies": "Int64",
    "of": "Int64",
    "share": "float64",
    "experiments": "string",
}

COMPUTE = {
    "experiment": "string",
    "runs": "Int64",
    "failed": "Int64",
    "untimed": "Int64",
    "hours": "float64",
    "failed_hours": "float64",
    "hardware": "string",
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


def compute_table(records: Iterable[Record], names: Iterable[str]) -> pd.DataFrame:
    """Time that the runs of each experiment took, failed ones included, and in the last row all of them.

    Columns: experiment, runs, failed, untimed (runs whose record has no time: their process was killed), hours,
    failed_hours, hardware.
    """
    records = list(records)
    groups = {name: [record for record in records if record.name == name] for name in names} | {"all runs": records}
    rows = []
    for name, group in groups.items():
        failed = [record for record in group if record.status != "completed"]
        timed = all_measured(group, "timing.total_seconds")
        rows.append(
            {
                "experiment": name,
                "runs": len(group),
                "failed": len(failed),
                "untimed": len(group) - len(timed),
                "hours": math.fsum(timed) / 3600 if timed else None,
                "failed_hours": math.fsum(all_measured(failed, "timing.total_seconds")) / 3600,
                "hardware": "; ".join(sorted({label for record in group if (label := hardware_label(record))})) or None,
            }
        )
    return pd.DataFrame(rows, columns=list(COMPUTE)).astype(COMPUTE)


def hardware_label(record: Record) -> str | None:
    """What a run computed on, such as 'NVIDIA A100' or a processor's name and its threads."""
    hardware = record.provenance.get("hardware") or {}
    if (accelerator := hardware.get("accelerator")) not in (None, "cpu"):
        return str(accelerator)
    threads = hardware.get("threads")
    return hardware.get("cpu") and f"{hardware['cpu']}{f', {threads} threads' if threads else ''}"


def _copies(record: Record) -> Iterator[tuple[str, int | None, int | None]]:
    """What is counted, copies and out of how many reviews; the most telling pair first."""
    overlap, sizes = record.data["overlap"], record.data.get("sizes") or {}
    across, within = overlap.get("across") or {}, overlap.get("within") or {}
    for pair in sorted(across, key=lambda pair: pair != "test_in_train"):
        part, _, other = pair.partition("_in_")
        yield f"{part} reviews with a copy in {other}", across[pair], sizes.get(part)
    for part, count in within.items():
        yield f"{part} reviews that repeat another", count, sizes.get(part)
