"""The tables of the report as a reader sees them: which columns, under which names, from a study's evidence."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import pandas as pd

from lora_study.base.text_tables import escape, markdown_table
from lora_study.config import flatten
from lora_study.evidence.claims import VERDICTS, ClaimResult
from lora_study.evidence.predictions import confusion, reliability
from lora_study.evidence.summary import encoder_label, facts_table, measured, parameters_table, rows_of
from lora_study.records.record import Record
from lora_study.report.accounts import contamination_table
from lora_study.report.inputs import Study
from lora_study.report.variants import Variant, deviations_table, variants_table

# What each kind of claim is about, and the kinds that compare: the sentences a reader remembers.
KINDS = {
    "equality": "numbers of parameters and ratios",
    "accuracy": "accuracies",
    "ordering": "which is more accurate",
    "difference": "by how many points",
    "gap": "which generalises better",
    "ratio": "time and memory",
    "fact": "counts over the reviews",
}
SENTENCES = ("ordering", "difference", "gap", "ratio")


@dataclass(frozen=True)
class Table:
    """A table of the report.

    Attributes:
        title: What it shows, and the encoder it was measured with.
        frame: Its content; text is plain text.
        links: A column of paths below the results folder, comma-separated, which the page shows as links.
    """

    title: str
    frame: pd.DataFrame
    links: str | None = None

    def markdown(self) -> str:
        """The table for the page, its title not included."""
        if self.links is None:
            return markdown_table(self.frame)
        frame = self.frame.copy()
        frame[self.links] = [None if pd.isna(paths) else _links(paths) for paths in frame[self.links]]
        return markdown_table(frame, markdown=[self.links])


def draw_up(study: Study, summary: pd.DataFrame, variants: list[Variant]) -> dict[str, Table]:
    """Every table of the report that has a row, by name."""
    encoder = encoder_label(study.records)

    def titled(what: str, frame: pd.DataFrame, **columns: str) -> Table:
        return Table(f"{what}, {encoder}", frame, **columns)

    contamination = contamination_table(study.records).rename(columns={"share": "share (%)"})
    tables = {
        "verdict_counts": titled("Verdicts by kind of claim", _counts(study)),
        "verdicts": titled("Verdicts on what the article says is better, and by how much", _verdicts(study, encoder)),
        "comparison": titled("Test accuracy (%) beside the article's", _comparison(study, summary)),
        "parts": titled("Accuracy (%) on the other parts", _parts(summary)),
        "parameters": titled("Parameters", _parameters(study, summary)),
        "cost": titled("Time and memory, means over seeds", _cost(summary)),
        "claims": titled("Evidence for each verdict", _claims(study, encoder), links="runs"),
        "deviations": titled("Departures from the article's recipe", deviations_table(study.records, variants)),
        "variants": titled("What one setting changes", variants_table(variants)),
        "errors": titled("Errors and calibration on the test reviews, means over seeds", _errors(study)),
        "contamination": titled("Reviews with a copy among the others", contamination),
        "data": titled("The data", _facts(study, _data)),
        "machine": titled("Hardware and versions", _facts(study, _machine)),
        "runs": titled("Runs", _runs(study), links="record"),
    }
    for benchmark in study.benchmarks:
        tables[benchmark.exhibit] = Table(f"{benchmark.title}, {benchmark.encoder}", benchmark.table)
    return {name: table for name, table in tables.items() if not table.frame.empty}


def verdict_counts(study: Study) -> dict[str, int]:
    """How many claims got each verdict, in the order of `VERDICTS`."""
    counts = Counter(result.verdict for result in study.verdicts)
    return {verdict: counts[verdict] for verdict in VERDICTS if counts[verdict]}


def config_path(record: Record) -> str:
    """Where the report puts the config of a run, below the results folder."""
    return f"{record.name}/seed-{record.seed}/config.yaml"


def interval_text(low: float, high: float) -> str | None:
    """An interval on one line: no-break spaces keep it there in a narrow column."""
    return None if pd.isna(low) else f"{low:.2f}\u00a0to\u00a0{high:.2f}"


def _counts(study: Study) -> pd.DataFrame:
    """One row per kind of claim and a column per verdict that was given."""
    kinds = dict.fromkeys(result.kind for result in study.verdicts)
    rows = []
    for kind in kinds:
        verdicts = [result.verdict for result in study.verdicts if result.kind == kind]
        found = {verdict: verdicts.count(verdict) for verdict in verdict_counts(study)}
        rows.append({"kind of claim": KINDS.get(kind, kind), "claims": len(verdicts), **found})
    return pd.DataFrame(rows)


def _verdicts(study: Study, encoder: str) -> pd.DataFrame:
    """The article's sentences about which is better, by how much, on experiments of this study."""
    rows = [
        {
            "verdict": result.verdict,
            "claim": result.sentence,
            "reported": result.reported,
            "this run": _measured(result, encoder),
        }
        for result in study.verdicts
        if result.kind in SENTENCES and set(result.experiments) <= study.curves.keys()
    ]
    return pd.DataFrame(rows).astype("string")


def _claims(study: Study, encoder: str) -> pd.DataFrame:
    rows = [
        {
            "verdict": result.verdict,
            "claim": result.sentence,
            "reported": result.reported,
            "this run": _measured(result, encoder),
            "interval": result.interval,
            "evidence": result.evidence,
            "rule": result.rule,
            "if the article is right": result.power,
            "source": result.source,
            "runs": ", ".join(result.runs) or None,
            "id": result.id,
        }
        for result in study.verdicts
    ]
    return pd.DataFrame(rows).astype("string")


def _measured(result: ClaimResult, encoder: str) -> str | None:
    """What was measured; the encoder is in the table's title already."""
    return result.measured and result.measured.removesuffix(f" ({encoder})")


def _comparison(study: Study, summary: pd.DataFrame) -> pd.DataFrame:
    columns = {
        "experiment": summary.experiment,
        "this run": summary.test_accuracy,
        "95% interval": [interval_text(row.test_low, row.test_high) for row in rows_of(summary)],
        "published run": summary.published_test_accuracy,
        "article": summary.reported_test_accuracy,
        "difference (points)": summary.difference,
        "spread over seeds": summary.test_spread,
        "seeds": summary.seeds,
        "failed runs": summary.failed,
    }
    if not study.published:
        del columns["published run"]
    return pd.DataFrame(columns)


def _parts(summary: pd.DataFrame) -> pd.DataFrame:
    columns = {
        "experiment": "experiment",
        "val_accuracy": "this run, val",
        "reported_val_accuracy": "article, val",
        "train_accuracy": "this run, train",
        "reported_train_accuracy": "article, train",
    }
    return summary[list(columns)].rename(columns=columns)


def _parameters(study: Study, summary: pd.DataFrame) -> pd.DataFrame:
    frame = parameters_table(study.records, study.reported.rows)
    frame = frame.rename(columns={"trainable_share": "share (%)", "reported_trainable": "article, trainable"})
    return frame.assign(**{"ratio to lora_default": summary.trainable_ratio})


def _cost(summary: pd.DataFrame) -> pd.DataFrame:
    columns = {
        "experiment": "experiment",
        "mode": "mode",
        "train_seconds": "train seconds",
        "fit_seconds": "fit seconds",
        "peak_memory_mib": "peak memory (MiB)",
        "memory_kind": "memory is",
    }
    return summary[list(columns)].rename(columns=columns)


def _errors(study: Study) -> pd.DataFrame:
    rows = []
    for name, runs in study.predictions.items():
        counts = confusion(runs.values())
        rows.append(
            {
                "experiment": name,
                "negative found (%)": _share(counts[0, 0], counts[0].sum()),
                "positive found (%)": _share(counts[1, 1], counts[1].sum()),
                "called positive (%)": _share(counts[:, 1].sum(), counts.sum()),
                "calibration error (points)": 100 * reliability(runs.values()).error,
                "test reviews": int(counts.sum()),
            }
        )
    return pd.DataFrame(rows)


def _runs(study: Study) -> pd.DataFrame:
    rows = [
        {
            "experiment": record.name,
            "seed": record.seed,
            "status": record.status,
            "test (%)": None if (test := measured(record, "metrics.test.accuracy")) is None else 100 * test,
            "val (%)": None if (val := measured(record, "metrics.val.accuracy")) is None else 100 * val,
            "best epoch": measured(record, "metrics.best_epoch"),
            "fit seconds": measured(record, "timing.fit_seconds"),
            "total seconds": measured(record, "timing.total_seconds"),
            "error": record.error,
            "record": f"{record.name}/seed-{record.seed}/record.json",
        }
        for name in study.curves
        for record in study.records
        if record.name == name
    ]
    numbers = ("test (%)", "val (%)", "fit seconds", "total seconds")
    return pd.DataFrame(rows).astype({"best epoch": "Int64"} | dict.fromkeys(numbers, "float64"))


def _facts(study: Study, facts: Callable[[Record], list[dict[str, Any]]]) -> pd.DataFrame:
    """A table of what ``facts`` says of each record, and for which experiments."""
    by_experiment: dict[str, list[dict[str, Any]]] = {name: [] for name in study.curves}
    for record in study.records:
        by_experiment[record.name] += facts(record)
    return facts_table(by_experiment)


def _data(record: Record) -> list[dict[str, Any]]:
    # The copies have a table of their own; records of before hold near copies, which are no longer looked for.
    told = ("overlap.within.", "overlap.across.", "overlap.near.", "overlap.repeats")
    return [fact for fact in _fields(record.data) if not fact["field"].startswith(told)]


def _machine(record: Record) -> list[dict[str, Any]]:
    keys = ("encoder", "hardware", "versions", "commit", "dirty")
    return _fields({key: record.provenance[key] for key in keys if key in record.provenance})


def _fields(nested: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"field": field, "value": value} for field, value in flatten(nested).items()]


def _share(part: float, of: float) -> float | None:
    """A percentage; None where there is nothing to take it of."""
    return 100 * float(part) / float(of) if of else None


def _links(paths: str) -> str:
    return ", ".join(f"[{escape(path)}]({quote(path)})" for path in paths.split(", "))
