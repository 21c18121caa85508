"""What a sweep's records say about its points: one row each, which one is chosen, and what each parameter matters.

Accuracies are in percent, as in `lora_study.tables`. Only validation accuracy is looked at.
"""

from collections.abc import Iterable, Sequence

import pandas as pd

from lora_study.config import flatten
from lora_study.formats import plain
from lora_study.records import Record
from lora_study.tables import all_measured, mean, spread

BEST = "best"  # the experiment that tests the chosen point
SWEEP_FILE = "sweep.yaml"  # what a results folder is the sweep of

# Columns of the table beside the parameters, and how they are stored.
COLUMNS = {
    "val_accuracy": "float64",  # mean over seeds
    "val_spread": "float64",  # sample standard deviation over seeds; null for one seed
    "seeds": "Int64",  # completed runs
    "failed": "Int64",  # failed runs
    "trainable": "Int64",
    "train_seconds": "float64",  # mean over seeds
    "total_seconds": "float64",  # sum over seeds: what the point has cost
}


def trials_of(records: Iterable[Record]) -> list[Record]:
    """The runs of a sweep's points among a folder's records: those that leave the test reviews alone."""
    return [record for record in records if not record.config.get("score_test", True)]


def point_table(records: Iterable[Record], parameters: Sequence[str]) -> pd.DataFrame:
    """One row per point, the best first: its name, the parameters by dotted name, and `COLUMNS`.

    Args:
        records: The runs of the points.
        parameters: The fields that vary. Their columns hold numbers, or text for what is none.
    """
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.name, []).append(record)
    rows = []
    for name, group in groups.items():
        settings = flatten(group[0].config)
        done = [record for record in group if record.status == "completed"]
        accuracy, deviation = mean(done, "metrics.val.accuracy"), spread(done, "metrics.val.accuracy")
        rows.append(
            {
                "point": name,
                **{parameter: _shown(settings.get(parameter)) for parameter in parameters},
                "val_accuracy": None if accuracy is None else 100 * accuracy,
                "val_spread": None if deviation is None else 100 * deviation,
                "seeds": len(done),
                "failed": len(group) - len(done),
                "trainable": next(iter(all_measured(group, "parameters.trainable")), None),
                "train_seconds": mean(done, "timing.train_seconds"),
                "total_seconds": sum(all_measured(group, "timing.total_seconds")),
            }
        )
    table = pd.DataFrame(rows, columns=["point", *parameters, *COLUMNS]).astype(COLUMNS)
    return table.sort_values(["val_accuracy", "trainable", "point"], ascending=[False, True, True], ignore_index=True)


def chosen_point(table: pd.DataFrame, seeds: int) -> str | None:
    """The point with the best mean validation accuracy; of equals, the one that trains fewer parameters.

    Args:
        table: `point_table`.
        seeds: How many completed runs a point needs: a mean over fewer is not comparable.
    """
    complete = table[(table["seeds"] == seeds) & table["val_accuracy"].notna()]
    return None if complete.empty else str(complete.iloc[0]["point"])


def pareto_front(table: pd.DataFrame) -> pd.DataFrame:
    """The points that no other beats with as few trainable parameters, from the fewest on."""
    known = table.dropna(subset=["val_accuracy", "trainable"])
    known = known.sort_values(["trainable", "val_accuracy"], ascending=[True, False])
    return known[known["val_accuracy"] > known["val_accuracy"].cummax().shift(fill_value=-1.0)]


def importance(table: pd.DataFrame, parameter: str) -> float | None:
    """Share of the points' variance in validation accuracy that lies between the values of a parameter (eta squared).

    In a grid, the parameter's main effect; None where values are seldom repeated, or all points are alike.
    """
    known = table.dropna(subset=["val_accuracy"])
    accuracies = known["val_accuracy"]
    groups = accuracies.groupby(known[parameter])
    total = float(((accuracies - accuracies.mean()) ** 2).sum())
    if not 2 <= groups.ngroups <= len(known) / 2 or total <= 0:
        return None
    return float(((groups.transform("mean") - accuracies.mean()) ** 2).sum()) / total


def _shown(value: object) -> object:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else plain(value)
