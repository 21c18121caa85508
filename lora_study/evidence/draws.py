"""Which random draw makes runs of one recipe differ: the variance between them, shared out among their seeds.

A run draws its head, LoRA's A, the order of the reviews and its dropout, each from a seed of its own. Where a study
crosses these seeds, so that every value of one stands equally often beside every value of another (all combinations,
or a Latin square), the effects of the draws can be told apart, as Dodge et al. 2020 (arXiv 2002.06305) do.
"""

from collections.abc import Sequence
from itertools import combinations

import pandas as pd
from scipy import stats

from lora_study.config_differences import without
from lora_study.evidence.summary import measured, setups_of
from lora_study.records.record import Record

DRAWS = {
    "head_init": "the head",
    "lora_init": "LoRA's A",
    "data_order": "the order of the reviews",
    "dropout": "the dropout masks",
}
COLUMNS = ("draw", "values", "lowest mean (%)", "highest mean (%)", "share of the variance (%)", "p")


def draws_table(records: Sequence[Record]) -> pd.DataFrame:
    """How much of the variance of the test accuracy is between the values of each draw; empty if the runs cannot tell.

    The share is a main effect's sum of squares over the total (η²). p, of its F test, is the probability of as large a
    share if the draw had no effect. The last row has what no draw explains by itself: interactions, and chance.

    Args:
        records: Completed runs. They must be of one recipe, and cross two draws or more.
    """
    rows = [
        {**{draw: record.provenance["seeds"].get(draw) for draw in DRAWS}, "accuracy": 100 * accuracy}
        for record in records
        if record.provenance.get("seeds") and (accuracy := measured(record, "metrics.test.accuracy")) is not None
    ]
    runs = pd.DataFrame(rows, columns=[*DRAWS, "accuracy"])
    varied = [draw for draw in DRAWS if runs[draw].nunique() > 1]
    if len(varied) < 2 or len(runs) < len(records) or not _one_recipe(records) or not _crossed(runs, varied):
        return pd.DataFrame(columns=list(COLUMNS))
    total = ((runs["accuracy"] - runs["accuracy"].mean()) ** 2).sum()
    means = {draw: runs.groupby(draw)["accuracy"].mean() for draw in varied}
    between = {draw: len(runs) * found.var(ddof=0) for draw, found in means.items()}
    rest, free = total - sum(between.values()), len(runs) - 1 - sum(len(found) - 1 for found in means.values())
    can_test = free > 0 and rest > 1e-12 * total
    lines = [
        {
            "draw": DRAWS[draw],
            "values": len(found),
            "lowest mean (%)": found.min(),
            "highest mean (%)": found.max(),
            "share of the variance (%)": 100 * between[draw] / total if total else None,
            "p": stats.f.sf(between[draw] / (len(found) - 1) * free / rest, len(found) - 1, free) if can_test else None,
        }
        for draw, found in means.items()
    ]
    lines.append({"draw": "none of these", "share of the variance (%)": 100 * max(rest, 0) / total if total else None})
    return pd.DataFrame(lines, columns=list(COLUMNS)).astype(
        {"values": "Int64"} | dict.fromkeys(COLUMNS[2:], "float64")
    )


def _one_recipe(records: Sequence[Record]) -> bool:
    """Whether the runs could be averaged but for their seeds and names."""
    first, *others = (without(setup, ("name", "seeds")) for setup in setups_of(records))
    return all(other == first for other in others)


def _crossed(runs: pd.DataFrame, varied: Sequence[str]) -> bool:
    """Whether every value of a draw stands equally often beside every value of each other."""
    tables = (pd.crosstab(runs[one], runs[other]) for one, other in combinations(varied, 2))
    return all((table == table.iloc[0, 0]).all(axis=None) for table in tables)
