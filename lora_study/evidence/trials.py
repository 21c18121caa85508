"""What a sweep's records say about the settings it tried: a row for each, which was chosen, and which runs tested it.

Accuracies are in percent, as in `lora_study.evidence.summary`. Only validation accuracy decides the choice.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from lora_study.base.text_tables import plain
from lora_study.config import flatten
from lora_study.evidence.summary import measured
from lora_study.records.record import Record

BEST = "best"  # the experiment that tests the chosen settings
SWEEP_FILE = "sweep.yaml"  # in a results folder: the sweep it belongs to

# Columns of the table besides the parameters: which number of a run, and how the seeds are summarised. Failed
# runs have no accuracy.
COLUMNS: dict[str, Any] = {
    "val_accuracy": ("val_accuracy", "mean"),
    "val_spread": ("val_accuracy", "std"),  # the sample's; null for one seed
    "seeds": ("val_accuracy", "count"),
    "failed": ("val_accuracy", lambda accuracies: accuracies.isna().sum()),
    "trainable": ("trainable", "max"),  # the same for all seeds
    "train_seconds": ("train_seconds", "mean"),
    "total_seconds": ("total_seconds", "sum"),  # what trying the settings has cost
}
NUMBERS = {
    "val_accuracy": "metrics.val.accuracy",
    "trainable": "parameters.trainable",
    "train_seconds": "timing.train_seconds",
    "total_seconds": "timing.total_seconds",
}


def is_trial(record: Record) -> bool:
    """Whether a run only tried settings of a sweep: it leaves the test reviews alone."""
    return not record.config.get("score_test", True)


def trials_of(records: Iterable[Record]) -> list[Record]:
    """A sweep's trial runs among its folder's records."""
    return [record for record in records if is_trial(record)]


def trials_table(records: Iterable[Record], parameters: Sequence[str]) -> pd.DataFrame:
    """One row per settings tried, the best first: their name, the parameters by dotted name, and `COLUMNS`.

    Args:
        records: All records of a sweep's folder.
        parameters: The fields that vary. Their columns hold numbers or, if one value is none, text.
    """
    rows = []
    for record in trials_of(records):
        settings = flatten(record.config)
        row = {"trial": record.name, **{parameter: settings.get(parameter) for parameter in parameters}}
        rows.append(row | {name: measured(record, path) for name, path in NUMBERS.items()})
        rows[-1] |= {} if record.status == "completed" else {"val_accuracy": None}
    runs = pd.DataFrame(rows, columns=["trial", *parameters, *NUMBERS], dtype=object)
    for parameter in parameters:
        if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in runs[parameter]):
            runs[parameter] = ["null" if value is None else plain(value) for value in runs[parameter]]
    runs = runs.infer_objects()
    runs = runs.astype(dict.fromkeys(NUMBERS, "float64")).astype({"trainable": "Int64"})
    columns = {parameter: (parameter, "first") for parameter in parameters} | COLUMNS
    table: pd.DataFrame = runs.groupby("trial").agg(**columns).reset_index()
    # Equal means must stay equal whatever the order of their seeds.
    table[["val_accuracy", "val_spread"]] = (100 * table[["val_accuracy", "val_spread"]]).round(10)
    return table.sort_values(["val_accuracy", "trainable", "trial"], ascending=[False, True, True], ignore_index=True)


def with_all_seeds(table: pd.DataFrame, seeds: int) -> pd.DataFrame:
    """The rows of settings that can be compared: a mean over fewer seeds, after a failure or a pruner, cannot."""
    return table[table["seeds"] == seeds]


def chosen_trial(table: pd.DataFrame, seeds: int) -> str | None:
    """The settings with the best mean validation accuracy over all seeds; of equals, those of the fewest parameters."""
    complete = with_all_seeds(table, seeds)
    return None if complete.empty else str(complete.iloc[0]["trial"])


def runs_of_best(records: Iterable[Record], chosen: str | None, parameters: Sequence[str]) -> list[Record]:
    """The completed runs that tested the chosen settings, and not those that tested an earlier choice."""
    records = list(records)

    def settings(record: Record) -> list[object]:
        config = flatten(record.config)
        return [config.get(parameter) for parameter in parameters]

    wanted = [settings(record) for record in records if record.name == chosen]
    return [r for r in records if r.name == BEST and r.status == "completed" and settings(r) in wanted]


def pareto_front(table: pd.DataFrame) -> pd.DataFrame:
    """The rows that no row with as few trainable parameters beats, from the fewest parameters up."""
    known = table.dropna(subset=["val_accuracy", "trainable"])
    known = known.sort_values(["trainable", "val_accuracy"], ascending=[True, False])
    return known[known["val_accuracy"] > known["val_accuracy"].cummax().shift(fill_value=-1.0)]
