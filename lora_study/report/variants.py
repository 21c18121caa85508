"""Experiments that differ from another one in a setting or two, and what that changed.

They measure what a departure from the article, or a choice the article made, is worth.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from lora_study.base.text_tables import plain
from lora_study.config import flatten
from lora_study.config_differences import NO_OTHER_RESULT, NO_OTHER_RUN, without
from lora_study.evidence.predictions import correct
from lora_study.evidence.statistics import paired_difference
from lora_study.evidence.summary import facts_table, mean
from lora_study.records.record import Record

MOST_CHANGES = 3  # what differs in more settings is another experiment, not a variant
NOT_MEASURED = "not measured"
Predictions = Mapping[str, Mapping[int, pd.DataFrame]]  # by experiment and seed


@dataclass(frozen=True)
class Variant:
    """One experiment beside the one it varies.

    Attributes:
        name: The variant.
        base: What it varies.
        changes: {field: (value in the base, value in the variant)}.
        effect: Test accuracy of the variant minus the base's, in points: the mean over the seeds both have. None if
            they share none, or one of them was not measured.
        low: Lower end of the effect's 95% interval (`statistics.paired_difference`); None unless both have the
            predictions on the same reviews.
        high: Its upper end.
        seeds: Seeds both have.
    """

    name: str
    base: str
    changes: Mapping[str, tuple[Any, Any]]
    effect: float | None
    low: float | None
    high: float | None
    seeds: int


def find_variants(records: Iterable[Record], predictions: Predictions, bases: Iterable[str]) -> list[Variant]:
    """The variants among the completed runs, by name.

    Args:
        records: Runs that can be compared.
        predictions: Their predictions.
        bases: Experiments that are varied. Any other experiment is a variant of the base of its mode from which it
            differs in the fewest settings, if those are at most `MOST_CHANGES`.
    """
    runs: dict[str, list[Record]] = {}
    for record in records:
        if record.status == "completed":
            runs.setdefault(record.name, []).append(record)
    bases = [name for name in bases if name in runs]
    variants = []
    for name in sorted(runs.keys() - set(bases)):
        found = [
            (base, _changes(runs[base][0], runs[name][0])) for base in bases if runs[base][0].mode == runs[name][0].mode
        ]
        base, changes = min(found, key=lambda pair: len(pair[1]), default=("", {}))
        if 0 < len(changes) <= MOST_CHANGES:
            variants.append(compare(name, base, changes, runs, predictions))
    return variants


def variants_table(variants: Iterable[Variant]) -> pd.DataFrame:
    """One row per variant: what it changes, and the effect in points with its 95% interval."""
    columns = {"variant": "string", "of": "string", "change": "string", "effect (points)": "float64"}
    columns |= {"95% interval": "string", "shared seeds": "Int64"}
    rows = [
        {
            "variant": variant.name,
            "of": variant.base,
            "change": "; ".join(f"{key}: {plain(a)} to {plain(b)}" for key, (a, b) in variant.changes.items()),
            "effect (points)": variant.effect,
            "95% interval": None if variant.low is None else f"{variant.low:+.2f} to {variant.high:+.2f}",
            "shared seeds": variant.seeds,
        }
        for variant in variants
    ]
    return pd.DataFrame(rows, columns=list(columns)).astype(columns)


def deviations_table(records: Iterable[Record], variants: Iterable[Variant]) -> pd.DataFrame:
    """One row per departure from the article's recipe: for which experiments, and its measured effect.

    The effect is that of departing: accuracy with the value here minus accuracy with the article's, taken from a
    variant that changes only this setting, between exactly these two values; otherwise 'not measured'.
    """
    records, variants = list(records), list(variants)
    facts: dict[str, list[dict[str, Any]]] = {record.name: [] for record in records}
    for record in records:
        for row in record.deviations:
            departure = {"setting": row.get("field"), "article": row.get("article"), "here": row.get("here")}
            facts[record.name].append(departure)
    table = facts_table(facts)
    if table.empty:
        return table
    known = table.astype(object).where(table.notna(), None)
    departures = zip(known["setting"], known["article"], known["here"], strict=True)
    effects = ["; ".join(_effects(*departure, variants)) or NOT_MEASURED for departure in departures]
    return table.assign(**{"effect of departing (points)": effects}).astype("string")


def _changes(base: Record, other: Record) -> dict[str, tuple[Any, Any]]:
    """Settings in which two runs of one mode differ, apart from those that the mode does not read."""
    ours, theirs = flatten(base.config), flatten(other.config)
    unread = {"lora", "partial"} - {base.mode}
    changes = {
        key: (value, theirs[key])
        for key, value in without(ours, {"name", "seed", *NO_OTHER_RUN, *unread}).items()
        if key in theirs and value != theirs[key]
    }
    return without(changes, NO_OTHER_RESULT) or changes  # what only changes the cost counts where nothing else differs


def compare(
    name: str,
    base: str,
    changes: Mapping[str, tuple[Any, Any]],
    runs: Mapping[str, list[Record]],
    predictions: Predictions,
) -> Variant:
    """One experiment beside another, over the seeds both have; the changes are passed on as they are."""
    seeds = sorted({run.seed for run in runs[base]} & {run.seed for run in runs[name]})
    means = [mean([run for run in runs[each] if run.seed in seeds], "metrics.test.accuracy") for each in (base, name)]
    effect = None if means[0] is None or means[1] is None else 100 * (means[1] - means[0])
    ours, theirs = ([predictions.get(each, {}).get(seed) for seed in seeds] for each in (base, name))
    low, high = _paired_interval(ours, theirs)
    return Variant(name, base, changes, effect, low, high, len(seeds))


def _paired_interval(
    base: list[pd.DataFrame | None], variant: list[pd.DataFrame | None]
) -> tuple[float | None, float | None]:
    """95% interval, in points, of the difference on the reviews both were tested on; none if these are not the same."""
    runs = [rows.set_index("id").sort_index() for rows in (*base, *variant) if rows is not None]
    complete = 0 < len(runs) == len(base) + len(variant) and len(runs[0]) > 1
    if not complete or not all(runs[0]["label"].equals(rows["label"]) for rows in runs):
        return None, None
    scores = [correct(rows) for rows in runs]
    low, high = paired_difference(scores[len(base) :], scores[: len(base)]).interval()
    return 100 * low, 100 * high


def _effects(setting: str, article: str | None, here: str | None, variants: Iterable[Variant]) -> list[str]:
    found = []
    for variant in variants:
        if list(variant.changes) != [setting] or variant.effect is None:
            continue
        before, after = map(plain, variant.changes[setting])
        ends = (variant.low, variant.high)
        if (before, after) == (article, here):
            sign, names = 1, f"{variant.name} minus {variant.base}"
        elif (before, after) == (here, article):
            sign, names, ends = -1, f"{variant.base} minus {variant.name}", ends[::-1]
        else:
            continue
        between = "" if None in ends else " ({:+.2f} to {:+.2f})".format(*(sign * (end or 0.0) for end in ends))
        found.append(f"{sign * variant.effect:+.2f}{between}, {names}")
    return found
