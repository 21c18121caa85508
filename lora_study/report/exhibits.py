"""The tables of the report as a reader sees them: which columns, under which names, from a study's evidence."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import pandas as pd

from lora_study.base.text_tables import count, escape, markdown_table
from lora_study.config import flatten
from lora_study.evidence.claims import ClaimResult
from lora_study.evidence.claims.evidence import different_cost
from lora_study.evidence.claims.rules import WORDS
from lora_study.evidence.draws import draws_table
from lora_study.evidence.statistics import mean_t
from lora_study.evidence.summary import encoder_label, encoders_of, facts_table, measured, rows_of
from lora_study.records.record import Record
from lora_study.report.material import Study
from lora_study.report.variants import Variant, compare, deviations_table, variants_table

REFERENCE_ROWS = ("full", "layerwise_all")  # what the other rows are compared with: every layer trained
# What a run costs: names of its column and its ratio, the record's field, factor and unit, the summary's column.
COSTS = (
    ("training steps", "training time", "timing.train_seconds", 1.0, "s", "train_seconds"),
    ("peak memory", "peak memory", "memory.peak_bytes", 2**-20, "MiB", "peak_memory_mib"),
)
VERDICT_COLUMNS = ["claim", "article", "here", "95% interval", "verdict", "rule"]
KEPT = ("claims", "runs")  # tables that are also files, for further computation


@dataclass(frozen=True)
class Table:
    """A table of the report.

    Attributes:
        frame: Its content; text is plain text.
        links: A column of paths below the results folder, comma-separated, which the page shows as links.
    """

    frame: pd.DataFrame
    links: str | None = None

    def markdown(self) -> str:
        """The table for the page."""
        if self.links is None:
            return markdown_table(self.frame)
        frame = self.frame.copy()
        frame[self.links] = [None if pd.isna(paths) else _links(paths) for paths in frame[self.links]]
        return markdown_table(frame, markdown=[self.links])


def draw_up(study: Study, summary: pd.DataFrame, variants: list[Variant]) -> dict[str, Table]:
    """Every table of the report that has a row, by name."""
    tables = {
        "verdicts": Table(_verdicts(study)),
        "draws": Table(draws_table(study.completed)),
        "accuracies": Table(accuracies(study, summary)),
        "parts": Table(_parts(summary)),
        "parameters": Table(_parameters(summary, study)),
        "cost": Table(_cost(study, summary)),
        "claims": Table(_claims(study, study.verdicts), links="runs"),
        "deviations": Table(deviations_table(study.records, variants)),
        "variants": Table(variants_table(variants)),
        "data": Table(_facts(study, _data)),
        "machine": Table(_facts(study, _machine)),
        "runs": Table(_runs(study), links="record"),
    }
    return {name: table for name, table in tables.items() if not table.frame.empty}


def judged(study: Study) -> list[ClaimResult]:
    """The article's sentences that runs of this study say something about; of arithmetic, only what does not agree.

    An accuracy is among them only where it was measured on the article's encoder: elsewhere it has no verdict.
    """
    return [
        result
        for result in study.verdicts
        if result.basis is not None
        and (result.kind != "equality" or result.verdict != WORDS["arithmetic"][0])
        and (result.kind != "accuracy" or result.basis == "recipe")
    ]


def accuracies(study: Study, summary: pd.DataFrame) -> pd.DataFrame:
    """Test accuracy by experiment, and the gaps between the rows here beside those between the article's."""
    done = study.completed
    runs = {name: [record for record in done if record.name == name] for name in summary["experiment"]}
    base = next((name for name in REFERENCE_ROWS if runs.get(name)), None)
    rows = []
    for row in rows_of(summary):
        line = {
            "experiment": row.experiment,
            "seeds": row.seeds,
            "here (%)": row.test_accuracy,
            "95% interval": None if pd.isna(row.test_low) else f"{row.test_low:.2f}\u00a0to\u00a0{row.test_high:.2f}",
            "published (%)": row.published_test_accuracy,
            "article (%)": row.reported_test_accuracy,
        }
        if base:
            ours, theirs = study.reported.rows.get(row.experiment), study.reported.rows.get(base)
            reported = f"{ours.test - theirs.test:+.2f}" if ours and theirs and row.experiment != base else None
            line[f"here less {base} (points)"] = _gap(study, runs, base, row.experiment)
            line[f"article less {base} (points)"] = reported
        rows.append(line)
    frame = pd.DataFrame(rows)
    return frame if study.published else frame.drop(columns="published (%)", errors="ignore")


def _gap(study: Study, runs: Mapping[str, list[Record]], base: str, name: str) -> str | None:
    """Points of test accuracy above another row of the same encoder, with the interval where it is known."""
    if name == base or not runs[name] or len(set(encoders_of([runs[base][0], runs[name][0]]))) > 1:
        return None
    found = compare(name, base, {}, runs, study.predictions)
    if found.effect is None:
        return None
    between = "" if found.low is None or found.high is None else f" ({found.low:+.2f} to {found.high:+.2f})"
    fewer = found.seeds < max(len(runs[base]), len(runs[name]))  # then it is no difference of the means beside it
    return f"{found.effect:+.2f}{between}".replace(" ", "\u00a0") + f", {count(found.seeds, 'shared seed')}" * fewer


def _verdicts(study: Study) -> pd.DataFrame:
    """The one table that a reader in a hurry reads."""
    return _claims(study, judged(study)).reindex(columns=VERDICT_COLUMNS)


def _claims(study: Study, results: Iterable[ClaimResult]) -> pd.DataFrame:
    encoder = encoder_label(study.records)
    rows = [
        {
            "verdict": result.verdict,
            "claim": result.sentence,
            "article": result.reported,
            # The encoder is in the page's head already.
            "here": result.measured and result.measured.removesuffix(f" ({encoder})"),
            "95% interval": result.interval,
            "evidence": result.evidence,
            "rule": result.rule,
            "if the article is right": result.power,
            "source": result.source,
            "runs": ", ".join(result.runs) or None,
            "id": result.id,
        }
        for result in results
    ]
    return pd.DataFrame(rows).astype("string")


def _parts(summary: pd.DataFrame) -> pd.DataFrame:
    columns = {
        "experiment": "experiment",
        "val_accuracy": "validation, here (%)",
        "reported_val_accuracy": "validation, article (%)",
        "train_accuracy": "training, here (%)",
        "reported_train_accuracy": "training, article (%)",
    }
    return summary[list(columns)].rename(columns=columns)


def _parameters(summary: pd.DataFrame, study: Study) -> pd.DataFrame:
    reported = [study.reported.rows.get(name) for name in summary["experiment"]]
    columns = {
        "experiment": summary["experiment"],
        "trained parameters": summary["trainable"],
        "of all parameters": summary["total"],
        "share (%)": summary["trainable_share"],
        "trained, article": pd.array([row.trainable if row else None for row in reported], dtype="Int64"),
    }
    return pd.DataFrame(columns)


def _cost(study: Study, summary: pd.DataFrame) -> pd.DataFrame:
    """Time and memory with their intervals over seeds, and as ratios to those of training every layer."""
    runs: dict[str, dict[int, Record]] = {name: {} for name in summary["experiment"]}
    for record in study.completed:
        runs[record.name][record.seed] = record
    base = next((name for name in REFERENCE_ROWS if runs.get(name)), "")
    kinds = {row.experiment: str(row.memory_kind) for row in rows_of(summary)}
    rows = []
    for row in rows_of(summary):
        line: dict[str, Any] = {"experiment": row.experiment}
        for title, what, path, factor, unit, mean in COSTS:
            # The summary has no mean of runs that were computed in different ways, or of two kinds of memory.
            alike, ran = pd.notna(getattr(row, mean)), runs[row.experiment]
            line[title] = _over_seeds(ran, path, factor, unit) if alike else None
            if base:
                beside = alike and row.experiment != base and kinds[row.experiment] == kinds[base]
                line[f"of {base}'s {what}"] = _over(ran, runs[base], path) if beside else None
        rows.append(line | {"memory is": _of_processes(row.memory_kind, runs[row.experiment].values())})
    return pd.DataFrame(rows).astype("string")


def _of_processes(kind: Any, runs: Collection[Record]) -> Any:
    """What memory was measured; where processes share a run, the first alone records its peak."""
    settings = [run.config.get("train") or {} for run in runs]
    most = max(((found.get("devices") or 1) * (found.get("num_nodes") or 1) for found in settings), default=1)
    return kind if pd.isna(kind) or most == 1 else f"{kind}, of one of {most} processes"


def _over_seeds(runs: Mapping[int, Record], path: str, factor: float, unit: str) -> str | None:
    values = [factor * value for record in runs.values() if (value := measured(record, path)) is not None]
    if not values:
        return None
    ends = [max(0.0, end) for end in mean_t(values).interval()] if len(values) > 1 else ()
    between = " ({:,.1f} to {:,.1f})".format(*ends) if ends else ""
    return f"{math.fsum(values) / len(values):,.1f} {unit}{between}".replace(" ", "\u00a0")


def _over(runs: Mapping[int, Record], base: Mapping[int, Record], path: str) -> str | None:
    """Geometric mean of the ratios over the seeds in which both did the same work on one machine, with its interval."""
    both = [(runs[seed], base[seed]) for seed in runs.keys() & base.keys()]
    alike = [[measured(run, path) for run in pair] for pair in both if not different_cost(pair, path)]
    logs = [math.log(one / other) for one, other in alike if one and other]
    if not logs:
        return None
    ends = mean_t(logs).interval() if len(logs) > 1 else ()
    between = " ({:.2f} to {:.2f})".format(*(math.exp(min(end, 99)) for end in ends)) if ends else ""
    fewer = len(logs) < max(len(runs), len(base))  # then it is no ratio of the means beside it
    ratio = f"{math.exp(math.fsum(logs) / len(logs)):.2f}{between}".replace(" ", "\u00a0")
    return ratio + f", {count(len(logs), 'shared seed')}" * fewer


def _runs(study: Study) -> pd.DataFrame:
    rows = [
        {
            "experiment": record.name,
            "seed": record.seed,
            "status": record.status,
            **{f"{part} (%)": _scaled(record, f"metrics.{part}.accuracy", 100) for part in ("test", "val", "train")},
            "best epoch": measured(record, "metrics.best_epoch"),
            "training (s)": measured(record, "timing.train_seconds"),
            "all (s)": measured(record, "timing.total_seconds"),
            "peak memory (MiB)": _scaled(record, "memory.peak_bytes", 2**-20),
            "error": record.error,
            "record": f"{record.name}/seed-{record.seed}/record.json",
        }
        for name in study.curves
        for record in study.records
        if record.name == name
    ]
    numbers = ("test (%)", "val (%)", "train (%)", "training (s)", "all (s)", "peak memory (MiB)")
    return pd.DataFrame(rows).astype({"best epoch": "Int64"} | dict.fromkeys(numbers, "float64"))


def _scaled(record: Record, path: str, factor: float) -> float | None:
    value = measured(record, path)
    return None if value is None else factor * value


def _facts(study: Study, facts: Callable[[Record], Mapping[str, Any]]) -> pd.DataFrame:
    """A table of what ``facts`` says of each record, and for which experiments."""
    by_experiment: dict[str, list[dict[str, Any]]] = {name: [] for name in study.curves}
    for record in study.records:
        flat = flatten(facts(record))
        by_experiment[record.name] += [{"field": field, "value": value} for field, value in flat.items()]
    return facts_table(by_experiment)


def _data(record: Record) -> dict[str, Any]:
    # Older records also have near copies, which are no longer looked for.
    overlap = {key: value for key, value in (record.data.get("overlap") or {}).items() if key != "near"}
    return {**record.data, "overlap": overlap} if overlap else record.data


def _machine(record: Record) -> dict[str, Any]:
    keys = ("encoder", "hardware", "versions", "commit", "dirty")
    return {key: record.provenance[key] for key in keys if key in record.provenance}


def _links(paths: str) -> str:
    return ", ".join(f"[{escape(path)}]({quote(path)})" for path in paths.split(", "))
