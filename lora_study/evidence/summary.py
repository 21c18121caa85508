"""Tables of a study, made only from records: one row per experiment, our values beside the reported ones.

Accuracies and shares are in percent, differences in percentage points; a missing value is null, never a number.
"""

import dataclasses
import itertools
import json
import math
import statistics
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from lora_study.base.text_tables import plain
from lora_study.config import flatten
from lora_study.config_differences import COSTS, NO_OTHER_RESULT, without
from lora_study.evidence.reported import ReportedRow
from lora_study.evidence.statistics import accuracy_over_seeds
from lora_study.records.record import Encoder, Record

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
    "trainable": "Int64",
    "total": "Int64",
    "trainable_share": "float64",  # percent of total
    "trainable_ratio": "float64",  # to lora_default's trainable parameters
    "train_seconds": "float64",
    "fit_seconds": "float64",
    "peak_memory_mib": "float64",
    "memory_kind": "string",
}

# Settings that say which reviews, and which encoder, where the files that they stand for are not known.
REVIEWS = tuple(f"data.{name}" for name in ("source", "revision", "text_column", "label_column", "labels"))
ENCODER = ("model.backbone", "model.revision")

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
    runs, earlier = _averaged(records), _averaged(record for record in published if record.status == "completed")
    counts = {name: _counts(group) for name, group in runs.items()}
    rows = []
    for name in in_order(runs, reported):
        row = {
            "experiment": name,
            **counts[name],
            **_measurements(runs[name]),
            "published_test_accuracy": mean(
                _of_the_seeds(earlier.get(name, ()), runs[name]), "metrics.test.accuracy", 100
            ),
            "trainable_ratio": _ratio(counts[name]["trainable"], counts.get("lora_default", {}).get("trainable")),
        }
        if name in reported:
            row |= {f"reported_{part}_accuracy": getattr(reported[name], part) for part in ("test", "val", "train")}
        rows.append(row)
    return pd.DataFrame(rows, columns=list(SUMMARY)).astype(SUMMARY)


def parameters_table(records: Iterable[Record], reported: Mapping[str, ReportedRow]) -> pd.DataFrame:
    """Parameters per experiment, with the columns of `PARAMETERS`.

    lora, head and base count the trainable parameters of each kind; reported_trainable is the article's count on
    distilbert-base-uncased.
    """
    runs = _averaged(records)
    rows = [
        {
            "experiment": name,
            **_counts(runs[name]),
            "reported_trainable": reported[name].trainable if name in reported else None,
        }
        for name in in_order(runs, reported)
    ]
    return pd.DataFrame(rows, columns=list(PARAMETERS)).astype(PARAMETERS)


def _of_the_seeds(published: Sequence[Record], runs: Sequence[Record]) -> Sequence[Record]:
    """The published runs of the seeds that are completed here, too; all of them if there is none."""
    seeds = {record.seed for record in runs if record.status == "completed"}
    return [record for record in published if record.seed in seeds] or published


def _measurements(runs: Sequence[Record]) -> dict[str, Any]:
    """What the completed runs of one experiment measured, averaged where that makes sense."""
    done = [record for record in runs if record.status == "completed"]
    accuracies, reviews = (all_measured(done, f"metrics.test.{key}") for key in ("accuracy", "n"))
    error = accuracy_over_seeds(accuracies, int(min(reviews))) if accuracies and reviews else None
    # The costs of different ways of computing have no mean, nor do resident memory and a GPU's.
    timed = done if len({_cost(record) for record in done}) == 1 else []
    weighed = timed if len({memory_kind(record) for record in done}) == 1 else []
    return {
        "seeds": len(done),
        "failed": len(runs) - len(done),
        "test_reviews": min(reviews, default=None),
        "test_accuracy": mean(done, "metrics.test.accuracy", 100),
        "test_spread": 100 * statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        "test_low": error and 100 * error.interval[0],
        "test_high": error and 100 * error.interval[1],
        "sampling_low": error and 100 * error.sampling[0],
        "sampling_high": error and 100 * error.sampling[1],
        "val_accuracy": mean(done, "metrics.val.accuracy", 100),
        "train_accuracy": mean(done, "metrics.train.accuracy", 100),
        "train_seconds": mean(timed, "timing.train_seconds"),
        "fit_seconds": mean(timed, "timing.fit_seconds"),
        "peak_memory_mib": mean(weighed, "memory.peak_bytes", 2**-20),
        "memory_kind": memory_kind(weighed[0]) if weighed else None,
    }


def _counts(runs: Sequence[Record]) -> dict[str, Any]:
    """Mode, encoder and numbers of parameters, which an experiment's runs share, as they have the same settings.

    Failed runs, which may have had others, count only if none completed.
    """
    standing = [record for record in runs if record.status == "completed"] or runs
    keys = ("total", "trainable", "lora", "head", "base")
    counts = {key: next(iter(all_measured(standing, f"parameters.{key}")), None) for key in keys}
    share = _ratio(counts["trainable"], counts["total"])
    return {
        "mode": standing[0].mode,
        "encoder": encoder_label(standing),
        **counts,
        "trainable_share": None if share is None else 100 * share,
    }


def facts_table(facts: Mapping[str, Iterable[Mapping[str, Any]]]) -> pd.DataFrame:
    """One row per distinct fact, and the experiments it holds for ('all' if for every one).

    Args:
        facts: For each experiment what is true of its runs, as mappings that all have the same keys. Facts with the
            same first value (the field) stand together.
    """
    rows = [
        {**{key: plain(value) for key, value in fact.items()}, "experiments": name}
        for name, facts_of_name in facts.items()
        for fact in facts_of_name
    ]
    if not rows:
        return pd.DataFrame()
    frame = pd.DataFrame(rows, dtype="string").drop_duplicates()
    keys = list(frame.columns[:-1])

    def all_or(names: pd.Series) -> str:
        return "all" if len(names) == len(facts) else ", ".join(names)

    table = frame.groupby(keys, sort=False, dropna=False)["experiments"].agg(all_or).reset_index()
    return table.sort_values(keys[0], key=lambda field: pd.factorize(field)[0], kind="stable", ignore_index=True)


def comparable(records: Iterable[Record]) -> tuple[list[Record], list[str]]:
    """The records that can be compared, and one line per record that is left out.

    Runs of one experiment are averaged only if they share encoder, test reviews, mode and settings (those of most
    completed runs) and have different seeds: a run whose every draw has another's seed is that run once more. Failed
    records are kept: they are counted, never averaged.
    """
    records = list(records)
    kept, left_out = [record for record in records if record.status != "completed"], []
    for name in dict.fromkeys(record.name for record in records):
        group = [record for record in records if record.name == name and record.status == "completed"]
        keys = [_key(setup) for setup in setups_of(group)]
        usual = Counter(keys).most_common(1)[0][0] if keys else ""
        seeds: set[str] = set()
        for record, key in zip(group, keys, strict=True):
            if key != usual:
                reason = f"it differs from the other runs of this experiment in {', '.join(_differing(key, usual))}"
            elif (drawn := _key(_draws(record))) in seeds:
                reason = "another record has the same seed, or the same seed of every draw"
            else:
                seeds.add(drawn)
                kept.append(record)
                continue
            left_out.append(f"{name} seed {record.seed} is left out: {reason}")
    return sorted(kept, key=lambda record: (record.name, record.seed)), left_out


def _draws(record: Record) -> dict[str, Any]:
    """The seed of each random draw of a run."""
    own = record.config.get("seeds") or {"all": None}
    return {draw: record.seed if seed is None else seed for draw, seed in own.items()}


def of_the_same(records: Sequence[Record], earlier: Sequence[Record]) -> tuple[list[Record], list[str]]:
    """The earlier runs of which no experiment has changed since, and one line per experiment that is left out.

    A setting that is newer than a record had its default.

    Args:
        records: Completed runs that can be compared.
        earlier: Likewise.
    """
    changed: dict[str, list[str]] = {}
    now = {record.name: record for record in records}
    for record in earlier:
        if record.name in now and record.name not in changed:
            fields = _differing(*map(_key, setups_of([now[record.name], record])))
            changed |= {record.name: fields} if fields else {}
    lines = [f"{name} is left out: it differs from the runs here in {', '.join(fs)}" for name, fs in changed.items()]
    return [record for record in earlier if record.name not in changed], lines


def _key(setup: Mapping[str, Any]) -> str:
    return json.dumps(setup, sort_keys=True, default=str)


def _differing(one: str, other: str) -> list[str]:
    """The fields in which two setups differ, which are given as their `_key`s."""
    ours, theirs = json.loads(one), json.loads(other)
    return [field for field in sorted(ours.keys() | theirs) if ours.get(field) != theirs.get(field)]


def encoder_label(records: Iterable[Record]) -> str:
    """The encoder(s) the records were run with, such as 'stand-in encoder: all-MiniLM-L6-v2'."""
    known = [record.encoder for record in records if record.encoder.name]
    labels = {f"{'stand-in encoder' if encoder.stand_in else 'encoder'}: {encoder.name}" for encoder in known}
    return "; ".join(sorted(labels)) or "encoder: unknown"


def memory_kind(record: Record) -> str | None:
    """What the peak memory of a record counts, such as 'resident set'; None if it does not say.

    Older records have the peak of the whole run, where scoring in large batches may have taken the most.
    """
    kind = record.memory.get("kind")
    return kind if kind is None or "peak_bytes_with_scoring" in record.memory else f"{kind}, scoring included"


def machine_of(record: Record) -> str:
    """What computed a run and how: runs of which this differs took times and memory that cannot be compared.

    Without the size of the machine's memory, of which a system reports a little less or more after every update, and
    without the kind of attention, which belongs to the work and not to the machine.
    """
    return str(without(record.provenance.get("hardware") or {}, ("memory_bytes", "attention")))


def measured(record: Record, name: str) -> float | None:
    """A number of a record by its dotted name, such as 'metrics.test.accuracy'; None if it is missing."""
    value = record.flat.get(name)
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if is_number else None


def all_measured(records: Iterable[Record], name: str) -> list[float]:
    """The numbers of the records that have one; see `measured`."""
    return [value for record in records if (value := measured(record, name)) is not None]


def mean(records: Iterable[Record], name: str, factor: float = 1) -> float | None:
    """Mean over the records that have the value, times a factor."""
    values = all_measured(records, name)
    return factor * statistics.fmean(values) if values else None


def rows_of(frame: pd.DataFrame) -> list[Any]:
    """The rows of a table, with the columns as attributes."""
    return list(frame.itertuples())


def in_order(names: Iterable[str], reported: Mapping[str, ReportedRow]) -> list[str]:
    """Names of experiments in the article's order, then by name."""
    names = set(names)
    return [name for name in reported if name in names] + sorted(names - set(reported))


def _averaged(records: Iterable[Record]) -> dict[str, list[Record]]:
    """The records that can be compared, by experiment; warns of those that cannot."""
    kept, left_out = comparable(records)
    for line in left_out:
        warnings.warn(line, stacklevel=3)
    return {name: list(group) for name, group in itertools.groupby(kept, lambda record: record.name)}


def setups_of(records: Sequence[Record]) -> list[dict[str, Any]]:
    """What runs of one experiment must share to be averaged, by dotted name.

    Where the reviews and the encoder lie does not matter if the record knows their content.
    """
    setups = []
    for record, encoder in zip(records, encoders_of(records), strict=True):
        reviews = record.reviews
        shared = {
            "mode": record.mode,
            "encoder": dataclasses.astuple(encoder),
            "reviews": reviews.get("all", reviews.get("test")),
        }
        known = (*REVIEWS * ("all" in reviews), *ENCODER * (encoder.name is None))
        setups.append(without(flatten(record.config), ("seed", *NO_OTHER_RESULT, *known)) | shared)
    return setups


def encoders_of(records: Sequence[Record]) -> list[Encoder]:
    """The encoders of runs, to be compared: of one whose files are known, these alone, wherever they lie.

    An older record, which does not say with what settings, had those of one that does.
    """
    encoders = [record.encoder for record in records]
    said = {encoder.sha256: encoder.settings_sha256 for encoder in reversed(encoders) if encoder.settings_sha256}
    found = []
    for encoder in encoders:
        settings = encoder.settings_sha256 or said.get(encoder.sha256)
        place = {"name": None, "backbone": None, "revision": None} if encoder.sha256 and settings else {}
        found.append(dataclasses.replace(encoder, settings_sha256=settings, **place))
    return found


def _cost(record: Record) -> str:
    """The settings and the machine, which decide what a run costs: where they differ, times and memory have no mean."""
    settings = flatten(record.config)
    return str([machine_of(record), *(settings.get(name) for name in COSTS)])


def _ratio(value: float | None, of: float | None) -> float | None:
    return None if value is None or not of else value / of
