"""The report's page as Markdown: what it says, in which order, and in which words."""

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import pandas as pd

from lora_study.config import flatten
from lora_study.records import Record
from lora_study.reported import Reported
from lora_study.tables import encoder_label, escape, facts_table, markdown_table, measured, rows_of

REFERENCE_COMMAND = "make reproduce PROFILE=reference"


@dataclass(frozen=True)
class Study:
    """What a report is made from.

    Attributes:
        name: Name of the results folder.
        records: The runs that may stand together, failed ones included.
        published: Those of the published copy; empty without one.
        curves: For each experiment, in the tables' order, the rows of its runs' ``curves.csv``.
        warnings: One line per record or file that was left out.
        reported: What the article reported.
    """

    name: str
    records: list[Record]
    published: list[Record]
    curves: dict[str, pd.DataFrame]
    warnings: list[str]
    reported: Reported


@dataclass(frozen=True)
class Picture:
    """A figure: its bytes by format, and its content in words."""

    formats: Mapping[str, bytes]
    alt: str


def report_page(study: Study, summary: pd.DataFrame, parameters: pd.DataFrame, pictures: Mapping[str, Picture]) -> str:
    """The report as Markdown."""
    blocks = [
        f"# {escape(title_of(study))}",
        *_opening(study),
        *_bullets("Warnings", study.warnings),
        "## Comparison with the article",
        *_comparison(study, summary),
        "## Parameters",
        markdown_table(_parameters(parameters, summary)),
        f"lora, head and base count trainable parameters, the share is of the total; the article's count is of "
        f"{escape(study.reported.encoder)}.",
        "## Time and memory",
        markdown_table(_cost(summary)),
        "Means over seeds. Training seconds are optimizer steps alone, fit seconds include validation.",
        "## Figures",
        *([f"![{escape(p.alt)}](figures/{name}.png)" for name, p in pictures.items()] or ["No run was completed."]),
        "## Deviations from the article",
        *_facts(study, _deviations, "The settings are the article's."),
        *_bullets("How the reported numbers were obtained", study.reported.findings),
        "## Data",
        *_facts(study, lambda record: _fields(record.data), "The records say nothing about the data."),
        "## Hardware and versions",
        *_facts(study, _machine, "The records say nothing about the machine."),
        "## Runs",
        markdown_table(_runs(study), markdown="record"),
        "## How to regenerate",
        *_commands(study),
    ]
    return "\n\n".join(blocks) + "\n"


def title_of(study: Study) -> str:
    """Title of a study's report."""
    return f"LoRA on IMDb: study {study.name}"


def _opening(study: Study) -> Iterator[str]:
    completed = sum(record.status == "completed" for record in study.records)
    reported, encoder = study.reported, encoder_label(study.records)
    yield (
        f"{_count(completed, 'completed run')} of {_count(len(study.curves), 'experiment')} beside the numbers "
        f"reported in {escape(reported.article)}. Those were measured on {escape(reported.encoder)}. "
        f"Run here: **{escape(encoder)}**."
    )
    encoders = [record.provenance.get("encoder") or {} for record in study.records]
    if any(encoder.get("stand_in") for encoder in encoders):
        yield (
            f"> **{escape(reported.encoder)} itself was not run.** The stand-in encoder shows that the method and the "
            f"code work; its numbers are not those of {escape(reported.encoder)}, and a difference from the article "
            f"says nothing about the article. The reference study is run with `{REFERENCE_COMMAND}`."
        )
    if study.published and encoder_label(study.published) != encoder:
        yield f"> The published run used another encoder: {escape(encoder_label(study.published))}."


def _comparison(study: Study, summary: pd.DataFrame) -> Iterator[str]:
    yield "Test accuracy (%):"
    columns = {
        "experiment": summary.experiment,
        "this run": summary.test_accuracy,
        "published run": summary.published_test_accuracy,
        "article": summary.reported_test_accuracy,
        "difference (points)": summary.difference,
        "95% interval": [
            # no-break spaces: the interval stays on one line in a narrow column
            None if pd.isna(row.test_low) else f"{row.test_low:.2f}\u00a0to\u00a0{row.test_high:.2f}"
            for row in rows_of(summary)
        ],
        "spread over seeds": summary.test_spread,
        "seeds": summary.seeds,
        "failed runs": summary.failed,
    }
    if not study.published:
        del columns["published run"]
    yield markdown_table(pd.DataFrame(columns))
    yield (
        "This run is the mean over seeds; the spread is their sample standard deviation. The interval is Wilson's, "
        "for that accuracy on the test reviews of one run. The difference is this run minus the article."
    )
    done = set(summary.experiment[summary.seeds > 0])
    absent = [name for name in study.reported.rows if name not in done]
    if absent:
        yield f"Rows of the article without a completed run here: {escape(', '.join(absent))}."
    yield "Accuracy on the other parts (%):"
    parts = ("experiment", "val_accuracy", "reported_val_accuracy", "train_accuracy", "reported_train_accuracy")
    names = ("experiment", "this run, val", "article, val", "this run, train", "article, train")
    yield markdown_table(summary[list(parts)].set_axis(list(names), axis="columns"))


def _parameters(parameters: pd.DataFrame, summary: pd.DataFrame) -> pd.DataFrame:
    frame = parameters.rename(columns={"trainable_share": "share (%)", "reported_trainable": "article, trainable"})
    frame["ratio to lora_default"] = summary.trainable_ratio
    return frame


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


def _runs(study: Study) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "experiment": record.name,
                "seed": record.seed,
                "status": record.status,
                "test (%)": None if (test := measured(record, "metrics.test.accuracy")) is None else 100 * test,
                "best epoch": measured(record, "metrics.best_epoch"),
                "fit seconds": measured(record, "timing.fit_seconds"),
                "total seconds": measured(record, "timing.total_seconds"),
                "error": record.error,
                "record": f"[record.json]({quote(record.name, safe='')}/seed-{record.seed}/record.json)",
            }
            for name in study.curves
            for record in study.records
            if record.name == name
        ]
    ).astype({"best epoch": "Int64", "test (%)": "float64", "fit seconds": "float64", "total seconds": "float64"})


def _commands(study: Study) -> Iterator[str]:
    yield "Tables, figures and pages again, from the records alone:"
    yield _code(f"lora-study report --results-dir results/{study.name}")
    commands = [record.provenance.get("command") for record in study.records]
    lines = dict.fromkeys(shlex.join(command) if isinstance(command, list) else command for command in commands)
    yield "The runs again, with the commands in their records (a study skips runs that are done):"
    yield _code("\n".join(str(line) for line in lines if line) or "make reproduce")


def _code(text: str) -> str:
    """An indented code block: no text can end it early, as a fence inside it could."""
    return "\n".join(f"    {line}" for line in text.splitlines())


def _bullets(title: str, lines: Any) -> Iterator[str]:
    if lines:
        yield f"## {title}"
        yield "\n".join(f"- {escape(line)}" for line in lines)


def _facts(study: Study, facts: Any, otherwise: str) -> Iterator[str]:
    """A table of what ``facts`` (record -> rows) says, and for which experiments; or a sentence if it says nothing."""
    by_experiment: dict[str, list[dict[str, Any]]] = {name: [] for name in study.curves}
    for record in study.records:
        by_experiment[record.name] += facts(record)
    table = facts_table(by_experiment)
    yield otherwise if table.empty else markdown_table(table)


def _deviations(record: Record) -> list[dict[str, Any]]:
    return [{key: row.get(key) for key in ("field", "article", "here")} for row in record.deviations]


def _machine(record: Record) -> list[dict[str, Any]]:
    keys = ("encoder", "hardware", "versions", "commit", "dirty")
    return _fields({key: record.provenance[key] for key in keys if key in record.provenance})


def _fields(nested: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"field": field, "value": value} for field, value in flatten(nested).items()]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
