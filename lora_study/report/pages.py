"""The report's page as Markdown: what it says, in which order, and in which words."""

import math
import shlex
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import quote

from lora_study.base.text_tables import escape
from lora_study.config import flatten
from lora_study.evidence.claims.headline import age_of_rules, headline
from lora_study.evidence.summary import all_measured, encoder_label
from lora_study.records.record import Record
from lora_study.report.exhibits import Table, verdict_counts
from lora_study.report.figures import Picture
from lora_study.report.inputs import Study

REFERENCE_COMMAND = "make reproduce PROFILE=reference"
# What a record has to hold for others to repeat its run, and how to tell; a failed run measured nothing.
HELD: dict[str, Callable[[Record], object]] = {
    "the commit, with no change to it": lambda r: r.provenance.get("commit") and r.provenance.get("dirty") is False,
    "versions of the libraries": lambda r: r.provenance.get("versions"),
    "the encoder's revision or checksum": lambda r: (
        (encoder := r.provenance.get("encoder") or {}).get("revision") or encoder.get("sha256")
    ),
    "the resolved config": lambda r: r.config,
    "the command": lambda r: r.provenance.get("command"),
    "the seed of each random choice": lambda r: r.provenance.get("seeds"),
    "source and fingerprint of the data": lambda r: r.data.get("source") and r.data.get("fingerprint"),
    "how many reviews have a copy among the others": lambda r: r.data.get("overlap"),
    "the epoch that validation chose": lambda r: r.metrics.get("best_epoch"),
    "time and peak memory": lambda r: r.timing.get("total_seconds") and r.memory.get("peak_bytes"),
}


def report_page(study: Study, tables: Mapping[str, Table], pictures: Mapping[str, Picture]) -> str:
    """The report as Markdown.

    Args:
        study: The evidence.
        tables: `exhibits.draw_up`.
        pictures: `figures.draw_figures`.
    """

    def table(name: str, otherwise: str = "") -> Iterator[str]:
        if name in tables:
            shown = tables[name]
            latex = ", [LaTeX](tables/comparison.tex)" if name == "comparison" else ""
            yield f"**{escape(shown.title)}** ([CSV](tables/{name}.csv){latex})"
            yield shown.markdown()
        elif otherwise:
            yield otherwise

    def figures(*stems: str) -> Iterator[str]:
        for name, picture in pictures.items():
            if name.startswith(stems):
                yield f"![{escape(picture.alt)}](figures/{quote(name)}.png)"

    def speed() -> Iterator[str]:
        if study.benchmarks:
            yield "## Speed beside other tools"
        for benchmark in study.benchmarks:
            record = f"[the record](../benchmarks/{benchmark.name}.json)"
            yield f"**{escape(benchmark.title)}.** {escape(benchmark.about)}"
            yield f"{escape(benchmark.source)} All measurements are in {record}."
            yield from table(benchmark.exhibit)
            yield from figures(benchmark.exhibit)

    blocks = [
        f"# {escape(title_of(study))}",
        *_opening(study),
        "## Verdicts",
        *_verdicts(study),
        *table("verdict_counts"),
        *table("verdicts"),
        *_bullets("Warnings", study.warnings),
        "## Comparison with the article",
        *table("comparison"),
        *_comparison(study),
        *figures("ours_and_reported"),
        *table("parts"),
        "## Parameters",
        *table("parameters"),
        "lora, head and base count trainable parameters, the share is of the total; the article's count is of "
        f"{escape(study.reported.encoder)}.",
        *figures("accuracy_by_trainable", "layerwise"),
        "## Evidence for the claims",
        *_evidence(study),
        *table("claims", "No claim was checked."),
        "## Departures from the article",
        *table("deviations", "The settings are the article's."),
        *_variants(tables),
        *table("variants"),
        *_bullets("How the reported numbers were obtained", study.reported.findings),
        "## Learning curves",
        *(list(figures("validation_accuracy", "training_loss")) or ["No learning curve was recorded."]),
        "## Errors and calibration",
        *_errors(tables),
        *table("errors", "No predictions were kept."),
        *figures("calibration"),
        "## Contamination",
        *_contamination(tables),
        *table("contamination", "The records say nothing about copies."),
        "## Time, memory and compute spent",
        *table("cost"),
        "Training seconds are optimizer steps alone, fit seconds include validation.",
        _compute(study),
        *speed(),
        "## Data",
        *table("data", "The records say nothing about the data."),
        "## Hardware and versions",
        *table("machine", "The records say nothing about the machine."),
        "## Runs",
        *table("runs"),
        "## How to regenerate",
        *_commands(study),
        "## What the records hold",
        *_checklist(study),
    ]
    return "\n\n".join(blocks) + "\n"


def title_of(study: Study) -> str:
    """Title of a study's report."""
    return f"LoRA on IMDb: study {study.name}"


def verdicts_in_words(study: Study) -> str:
    """What was found of the claims, in three sentences."""
    return " ".join(headline(study.verdicts)) if study.verdicts else "No claim was checked."


def budget(study: Study) -> str:
    """What each run learned from and was tested on, as a sentence and a space; empty where the runs differ."""
    budgets = set()
    for record in study.records:
        if record.status == "completed":
            sizes, settings = record.data.get("sizes") or {}, flatten(record.config)
            learned = sizes.get("train"), settings.get("data.max_length"), settings.get("train.epochs")
            budgets.add((*learned, sizes.get("test")))
    for reviews, tokens, epochs, tested in budgets if len(budgets) == 1 else ():
        if reviews and tokens and epochs and tested:
            return (
                f"Each run trains on {reviews:,} reviews of at most {tokens} tokens for {_count(epochs, 'epoch')} and "
                f"is tested on {tested:,}. "
            )
    return ""


def _opening(study: Study) -> Iterator[str]:
    completed = sum(record.status == "completed" for record in study.records)
    reported, encoder = study.reported, encoder_label(study.records)
    yield (
        f"{_count(completed, 'completed run')} of {_count(len(study.curves), 'experiment')} beside the numbers "
        f"reported in {escape(reported.article)}. Those were measured on {escape(reported.encoder)}. "
        f"Run here: **{escape(encoder)}**. {budget(study)}".strip()
    )
    if is_stand_in(study):
        yield (
            f"> **{escape(reported.encoder)} itself was not run.** The stand-in encoder shows that the method and the "
            f"code work; its numbers are not those of {escape(reported.encoder)}, and a difference from the article "
            f"says nothing about the article. The reference study is run with `{REFERENCE_COMMAND}`."
        )
    if study.published and encoder_label(study.published) != encoder:
        yield f"> The published run used another encoder: {escape(encoder_label(study.published))}."


def is_stand_in(study: Study) -> bool:
    """Whether any run used another encoder in place of the article's."""
    encoders = [record.provenance.get("encoder") or {} for record in study.records]
    return any(encoder.get("stand_in") for encoder in encoders)


def _verdicts(study: Study) -> Iterator[str]:
    counts = verdict_counts(study)
    words = ""
    if counts:
        words = "[Each with its evidence](#evidence-for-the-claims). "
    if "inconclusive" in counts:
        words += "Inconclusive means that the data cannot tell. "
    if "no verdict" in counts:
        words += "Without a verdict are numbers of one or two seeds, or that only the article's encoder could judge. "
    if counts and is_stand_in(study):
        words += (
            "On the stand-in encoder a claim about accuracy, time or memory is neither reproduced nor refuted: the "
            "verdict only says whether this study points in the same direction. "
        )
    yield f"**{verdicts_in_words(study)}** {words}".strip()


def _comparison(study: Study) -> Iterator[str]:
    yield (
        "This run is the mean over seeds; the spread is their sample standard deviation. The interval holds the error "
        "of sampling test reviews (Wilson's) and, from two seeds on, that of sampling seeds; with one seed it says "
        "nothing about another seed. The difference is this run minus the article."
    )
    done = {record.name for record in study.records if record.status == "completed"}
    absent = [name for name in study.reported.rows if name not in done]
    if absent:
        yield f"Rows of the article without a completed run here: {escape(', '.join(absent))}."


def _evidence(study: Study) -> Iterator[str]:
    if study.verdicts:
        yield (
            f"The rules are in lora_study/evidence/claims/rules.py. {age_of_rules(study.records)} "
            "It is said beside each how often a rule would give which "
            "verdict if the article were exactly right, with the spread, seeds and reviews of this study. An adjusted "
            "p is Holm's, over all claims that are tests; the runs are those the verdict rests on."
        )


def _variants(tables: Mapping[str, Table]) -> Iterator[str]:
    if "variants" in tables:
        yield (
            "A variant is an experiment of this study that differs from another in one setting, or in very few. The "
            "effect is its test accuracy minus the other's, over the seeds both have. The interval is paired over "
            "test reviews and seeds, and missing where the two were not tested on the same reviews."
        )


def _errors(tables: Mapping[str, Table]) -> Iterator[str]:
    if "errors" in tables:
        yield (
            "A review is called positive above a probability of one half. The calibration error is the expected one, "
            "over ten bins of equal width: how far stated probability and frequency are apart, on average."
        )


def _contamination(tables: Mapping[str, Table]) -> Iterator[str]:
    if "contamination" in tables:
        yield "A review that also stands in the training part is no test. Copies agree up to white space."


def _compute(study: Study) -> str:
    failed = [record for record in study.records if record.status != "completed"]
    timed = all_measured(study.records, "timing.total_seconds")
    if not timed:
        return "No run has recorded its time."
    words = f"All {_count(len(study.records), 'run')} together took {math.fsum(timed) / 3600:,.2f} hours of wall time"
    if failed:
        lost = math.fsum(all_measured(failed, "timing.total_seconds")) / 3600
        words += f", {lost:,.2f} of them in {_count(len(failed), 'failed run')}"
    if untimed := len(study.records) - len(timed):
        words += f"; {untimed} of them ended without recording a time and count as none"
    return words + ". Runs that were repeated, and runs for choosing settings, are not in these records."


def _commands(study: Study) -> Iterator[str]:
    yield "Tables, figures and pages again, from the records alone:"
    yield _code(f"lora-study report --results-dir {shlex.quote(study.address)}")
    commands = [record.provenance.get("command") for record in study.records]
    lines = dict.fromkeys(shlex.join(command) if isinstance(command, list) else command for command in commands)
    yield "The runs again, with the commands in their records (a study skips runs that are done):"
    yield _code("\n".join(str(line) for line in lines if line) or "make reproduce")
    yield "One run alone, from its config as the report writes it out of the record; its results go to results/single:"
    yield _code(f"lora-study run --config {shlex.quote(study.address)}/EXPERIMENT/seed-N/config.yaml")


def _checklist(study: Study) -> Iterator[str]:
    """What checklists of reproducibility ask for (Pineau et al., JMLR 22, 2021), counted over the records."""
    records = study.records
    kept = sum(len(runs) for runs in study.predictions.values())
    seeds = [sum(r.name == name and r.status == "completed" for r in records) for name in study.curves]
    held = {what: sum(map(bool, map(holds, records))) for what, holds in HELD.items()}
    held["predictions that can be read and agree with it"] = kept
    yield f"Completed seeds per experiment: {min(seeds)} to {max(seeds)}. Of {_count(len(records), 'record')} hold"
    yield "\n".join(f"- {count}: {what}" for what, count in held.items())
    yield (
        "No record can tell how settings were chosen and how many were tried (the comments of the configs do), whether "
        "the data and weights may be shared (the README names licences), what harm the work could do, and whether "
        "others get the same."
    )


def _code(text: str) -> str:
    """An indented code block: no text can end it early, as a fence inside it could."""
    return "\n".join(f"    {line}" for line in text.splitlines())


def _bullets(title: str, lines: Any) -> Iterator[str]:
    if lines:
        yield f"## {title}"
        yield "\n".join(f"- {escape(line)}" for line in lines)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
