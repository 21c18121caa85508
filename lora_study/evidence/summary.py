"""Tables of a study, made only from records: one row per experiment, our values beside the reported ones.

Accuracies and shares are in percent, differences in percentage points; a missing value is null, never a number.
"""

import json
import math
import statistics
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from lora_study.base.text_tables import plain
from lora_study.config import ExperimentConfig, flatten, to_dict
from lora_study.config_differences import COSTS, NO_OTHER_RESULT, without
from lora_study.evidence.reported import ReportedRow
from lora_study.evidence.statistics import accuracy_over_seeds
from lora_study.records.record import Record

# Columns of the summary and how they are stored; pandas' Int64 is an integer that may be missing.
SUMMARY = {
    "experiment": "string",
    "mode": "string",
    "encoder": "string",
    "seeds": "Int64",  # completed runs that are averaged
    "failed": "Int64",  # failed runs, counted only
    "test_reviews": "Int64",
    "test_accuracy": "float64",  # mean over seeds, as are val, train, seconds and memory
    "test_spread": "float64",  # sample standard deviation over seeds; null for one seed
    "test_low": "float64",  # 95% interval of the mean: test reviews and, from two seeds on, seeds
    "test_high": "float64",
    "sampling_low": "float64",  # Wilson's 95% interval: the part of it that comes from the test reviews
    "sampling_high": "float64",
    "val_accuracy": "float64",
    "train_accuracy": "float64",
    "published_test_accuracy": "float64",
    "reported_test_accuracy": "float64",
    "reported_val_accuracy": "float64",
    "reported_train_accuracy": "float64",
    "difference": "float64",  # test_accuracy - reported_test_accuracy
    "trainable": "Int64",
    "total": "Int64",
    "trainable_share": "float64",  # percent of total
    "trainable_ratio": "float64",  # to lora_default's trainable parameters
    "train_seconds": "float64",
    "fit_seconds": "float64",
    "peak_memory_mib": "float64",
    "memory_kind": "string",
}

PARAMETERS = {
    "experiment": "string",
    "mode": "string",
    "total": "Int64",
    "trainable": "Int64",
    "lora": "Int64",
    "head": "Int64",
    "base": "Int64",
    "trainable_share": "float64",
    "reported_trainable": "Int64",
}


def summary_table(
    records: Iterable[Record], reported: Mapping[str, ReportedRow], published: Iterable[Record] = ()
) -> pd.DataFrame:
    """One row per experiment, with the columns of `SUMMARY`; experiments in the article's order, then by name.

    Args:
        records: The runs of this study.
        reported: The article's rows by experiment.
        published: The runs of the published copy of the study.

    Warns:
        UserWarning: runs of one experiment cannot be averaged; see `comparable`.
    """
    runs = _by_experiment(records, reported)
    earlier = _by_experiment(_completed(published), reported)
    default_trainable = _first(_standing(runs.get("lora_default", [])), "parameters.trainable")
    rows = []
    for name, group in runs.items():
        done, standing = _completed(group), _standing(group)
        row = reported.get(name)
        accuracies = all_measured(done, "metrics.test.accuracy")
        accuracy, reviews = mean(done, "metrics.test.accuracy"), min(all_measured(done, "metrics.test.n"), default=None)
        error = accuracy_over_seeds(accuracies, int(reviews)) if accuracies and reviews else None
        trainable, total = _first(standing, "parameters.trainable"), _first(standing, "parameters.total")
        kinds = {memory_kind(record) for record in done}
        timed = done if _cost_alike(done) else []  # what different ways of computing take has no average
        rows.append(
            {
                "experiment": name,
                "mode": standing[0].mode,
                "encoder": encoder_label(standing),
                "seeds": len(done),
                "failed": len(group) - len(done),
                "test_reviews": reviews,
                "test_accuracy": _times(accuracy, 100),
                "test_spread": _times(spread(done, "metrics.test.accuracy"), 100),
                "test_low": error and 100 * error.interval[0],
                "test_high": error and 100 * error.interval[1],
                "sampling_low": error and 100 * error.sampling[0],
                "sampling_high": error and 100 * error.sampling[1],
                "val_accuracy": _times(mean(done, "metrics.val.accuracy"), 100),
                "train_accuracy": _times(mean(done, "metrics.train.accuracy"), 100),
                "published_test_accuracy": _times(mean(earlier.get(name, []), "metrics.test.accuracy"), 100),
                "reported_test_accuracy": row and row.test,
                "reported_val_accuracy": row and row.val,
                "reported_train_accuracy": row and row.train,
                "difference": None if accuracy is None or row is None else 100 * accuracy - row.test,
                "trainable": trainable,
                "total": total,
                "trainable_share": _times(_ratio(trainable, total), 100),
                "trainable_ratio": _ratio(trainable, default_trainable),
                "train_seconds": mean(timed, "timing.train_seconds"),
                "fit_seconds": mean(timed, "timing.fit_seconds"),
                # Nor have different quantities, such as resident memory and GPU memory.
                "peak_memory_mib": _times(mean(timed, "memory.peak_bytes"), 2**-20) if len(kinds) == 1 else None,
                "memory_kind": kinds.pop() if len(kinds) == 1 else None,
            }
        )
    return pd.DataFrame(rows, columns=list(SUMMARY)).astype(SUMMARY)


def parameters_table(records: Iterable[Record], reported: Mapping[str, ReportedRow]) -> pd.DataFrame:
    """Parameters per experiment, with the columns of `PARAMETERS`.

    lora, head and base count the trainable parameters of each kind; reported_trainable is the article's count on
    distilbert-base-uncased.
    """
    rows = []
    for name, group in _by_experiment(records, reported).items():
        standing = _standing(group)
        counts = {key: _first(standing, f"parameters.{key}") for key in ("total", "trainable", "lora", "head", "base")}
        rows.append(
            {
                "experiment": name,
                "mode": standing[0].mode,
                **counts,
                "trainable_share": _times(_ratio(counts["trainable"], counts["total"]), 100),
                "reported_trainable": reported[name].trainable if name in reported else None,
            }
        )
    return pd.DataFrame(rows, columns=list(PARAMETERS)).astype(PARAMETERS)


def facts_table(facts: Mapping[str, Iterable[Mapping[str, Any]]]) -> pd.DataFrame:
    """One row per distinct fact, and the experiments it holds for ('all' if for every one).

    Args:
        facts: For each experiment what is true of its runs, as mappings that all have the same keys. Facts with the
            same first value (the field) stand together.
    """
    holds: dict[str, tuple[Mapping[str, Any], list[str]]] = {}
    for name, rows_of_name in facts.items():
        for fact in rows_of_name:
            names = holds.setdefault(json.dumps(fact, default=str), (fact, []))[1]
            if name not in names:
                names.append(name)
    rows = [
        {**{key: plain(value) for key, value in fact.items()}, "experiments": all_or(names, len(facts))}
        for fact, names in holds.values()
    ]
    fields = [next(iter(row.values())) for row in rows]
    rows.sort(key=lambda row: fields.index(next(iter(row.values()))))
    return pd.DataFrame(rows)


def comparable(records: Iterable[Record]) -> tuple[list[Record], list[str]]:
    """The records that may stand together, and one line per record that is left out.

    Runs of one experiment are averaged only if they share encoder, test reviews, mode and settings (those of most
    completed runs) and have different seeds. Failed records are kept: they are counted, never averaged.
    """
    records = list(records)
    kept, left_out = [record for record in records if record.status != "completed"], []
    for name in dict.fromkeys(record.name for record in records):
        group = _completed(record for record in records if record.name == name)
        keys = [json.dumps(_setup(record), sort_keys=True, default=str) for record in group]
        usual = Counter(keys).most_common(1)[0][0] if keys else ""
        seeds: set[int] = set()
        for record, key in zip(group, keys, strict=True):
            if key != usual:
                ours, theirs = json.loads(key), json.loads(usual)
                fields = sorted(field for field in ours.keys() | theirs if ours.get(field) != theirs.get(field))
                reason = f"it differs from the other runs of this experiment in {', '.join(fields)}"
            elif record.seed in seeds:
                reason = "there is another record of this seed"
            else:
                seeds.add(record.seed)
                kept.append(record)
                continue
            left_out.append(f"{name} seed {record.seed} is left out: {reason}")
    return sorted(kept, key=lambda record: (record.name, record.seed)), left_out


def encoder_label(records: Iterable[Record]) -> str:
    """The encoder(s) the records were run with, such as 'stand-in encoder: all-MiniLM-L6-v2'."""
    encoders = [record.provenance.get("encoder") or {} for record in records]
    labels = {
        f"{'stand-in encoder' if encoder.get('stand_in') else 'encoder'}: {encoder['name']}"
        for encoder in encoders
        if encoder.get("name")
    }
    return "; ".join(sorted(labels)) or "encoder: unknown"


def memory_kind(record: Record) -> str | None:
    """What the peak memory of a record counts, such as 'resident set'; None if it does not say.

    Older records have the peak of the whole run, where scoring in large batches may have taken the most.
    """
    kind = record.memory.get("kind")
    return kind if kind is None or "peak_bytes_with_scoring" in record.memory else f"{kind}, scoring included"


def measured(record: Record, path: str) -> float | None:
    """A number of a record by its dotted path, such as 'metrics.test.accuracy'; None if it is missing."""
    section, *keys = path.split(".")
    value: Any = getattr(record, section)
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if is_number else None


def mean(records: Iterable[Record], path: str) -> float | None:
    """Mean over the records that have the value."""
    values = all_measured(records, path)
    return statistics.fmean(values) if values else None


def spread(records: Iterable[Record], path: str) -> float | None:
    """Sample standard deviation over the records that have the value; None for fewer than two."""
    values = all_measured(records, path)
    return statistics.stdev(values) if len(values) > 1 else None


def rows_of(frame: pd.DataFrame) -> list[Any]:
    """The rows of a table, with the columns as attributes."""
    return list(frame.itertuples())


def in_order(names: Iterable[str], reported: Mapping[str, ReportedRow]) -> list[str]:
    """Names of experiments in the article's order, then by name."""
    names = set(names)
    return [name for name in reported if name in names] + sorted(names - set(reported))


def _by_experiment(records: Iterable[Record], reported: Mapping[str, ReportedRow]) -> dict[str, list[Record]]:
    kept, left_out = comparable(records)
    for line in left_out:
        warnings.warn(line, stacklevel=3)
    names = in_order((record.name for record in kept), reported)
    return {name: [record for record in kept if record.name == name] for name in names}


def _setup(record: Record) -> dict[str, Any]:
    """What runs of one experiment must share to be averaged."""
    fingerprint = record.data.get("fingerprint")
    return without(flatten(record.config), ("seed", *NO_OTHER_RESULT)) | {
        "mode": record.mode,
        "encoder": record.provenance.get("encoder"),
        "test reviews": fingerprint.get("test") if isinstance(fingerprint, Mapping) else fingerprint,
    }


def _cost_alike(records: Iterable[Record]) -> bool:
    """Whether runs of one experiment were computed in the same way, so that their times have a mean."""
    defaults = flatten(to_dict(ExperimentConfig()))  # which a record has that is older than a setting
    return len({str([(defaults | flatten(record.config)).get(name) for name in COSTS]) for record in records}) <= 1


def all_or(names: list[str], everyone: int) -> str:
    """Names of experiments with commas, or 'all' where they are all there are."""
    return "all" if len(names) == everyone else ", ".join(names)


def _completed(records: Iterable[Record]) -> list[Record]:
    return [record for record in records if record.status == "completed"]


def _standing(group: list[Record]) -> list[Record]:
    """The runs that speak for an experiment: a failed one, which may have had other settings, only where none ended."""
    return _completed(group) or group


def all_measured(records: Iterable[Record], path: str) -> list[float]:
    """The numbers of the records that have one; see `measured`."""
    return [value for record in records if (value := measured(record, path)) is not None]


def _first(records: Iterable[Record], path: str) -> float | None:
    """A number that all these records share: they have the same settings; see `comparable`."""
    return next(iter(all_measured(records, path)), None)


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _ratio(value: float | None, of: float | None) -> float | None:
    return None if value is None or not of else value / of
