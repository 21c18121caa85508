"""A reproducibility checklist of a study, answered from its records wherever they can tell.

The questions follow the themes of the machine learning reproducibility checklist (Pineau et al., JMLR 22, 2021) and
of conference checklists after it, in our own words. What no record can know is left to people and says so.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd

from lora_study.config import flatten
from lora_study.formats import escape
from lora_study.records import Record
from lora_study.report.accounts import compute_table, contamination_table
from lora_study.report.inputs import Study
from lora_study.tables import encoder_label, in_order

YES, PARTLY, NO, PEOPLE = "yes", "partly", "no", "not in the records"


@dataclass(frozen=True)
class Answer:
    """One line of the checklist.

    Attributes:
        question: What is asked.
        answer: `YES`, `PARTLY`, `NO` or `PEOPLE` (a person has to say).
        evidence: What the answer rests on, as Markdown.
    """

    question: str
    answer: str
    evidence: str


def checklist_page(study: Study) -> str:
    """The checklist of a study as Markdown."""
    parts: dict[str, Callable[[Study], Iterator[Answer]]] = {
        "Claims": _claims,
        "Data": _data,
        "Models and code": _code,
        "Experiments": _experiments,
        "Statistics": _statistics,
        "Compute": _compute,
        "For people to answer": _people,
    }
    blocks = [
        f"# Reproducibility checklist: study {escape(study.name)}",
        f"Filled in from the records of [the report](report.md), {escape(encoder_label(study.records))}. "
        f"“{PEOPLE}” means that no record can tell and a person has to.",
    ]
    for title, answers in parts.items():
        lines = [f"- **{a.answer}**: {a.question}  \n  {a.evidence}" for a in answers(study)]
        blocks += [f"## {title}", "\n".join(lines)]
    return "\n\n".join(blocks) + "\n"


def _claims(study: Study) -> Iterator[Answer]:
    judged = [result for result in study.verdicts if result.verdict != "not run"]
    yield Answer(
        "Is every claim stated with the evidence for it and its limits?",
        _all(judged, study.verdicts),
        f"{len(judged)} of {len(study.verdicts)} claims have a verdict from these runs, each with a rule fixed before "
        "them ([verdicts](report.md#verdicts), [evidence](report.md#evidence-for-the-claims)).",
    )
    departures = {departure.get("field") for record in study.records for departure in record.deviations}
    yield Answer(
        "Are departures from the reproduced work listed?",
        YES,
        f"{len(departures)} settings differ from the article's; each is a row with its measured effect or “not "
        "measured” ([departures](report.md#departures-from-the-article)).",
    )


def _data(study: Study) -> Iterator[Answer]:
    done = _completed(study)
    identified = [record for record in done if record.data.get("source") and record.data.get("fingerprint")]
    yield Answer(
        "Is the data identified, so that others can tell they have the same?",
        _all(identified, done),
        f"Source and fingerprints of every part are in {len(identified)} of {len(done)} records; sources: "
        f"{_values(done, lambda record: record.data.get('source'))}.",
    )
    sized = [record for record in done if record.data.get("sizes")]
    yield Answer(
        "Are the splits and the preprocessing described?",
        _all(sized, done),
        "Sizes are under [data](report.md#data); the rest is in each record's config: split "
        f"{_settings(done, 'data.split')}, split seed {_settings(done, 'data.split_seed')}, tokens per review "
        f"{_settings(done, 'data.max_length')}.",
    )
    copies = contamination_table(done)
    leaked = copies.loc[copies["reviews"] == "test reviews with a copy in train", "copies"].max()
    yield Answer(
        "Was the test data checked for overlap with the training data?",
        _all([record for record in done if record.data.get("overlap")], done),
        f"Test reviews with a copy in train, at most: {_number(leaked)} ([contamination](report.md#contamination)).",
    )


def _code(study: Study) -> Iterator[Answer]:
    records = study.records
    committed = [record for record in records if record.provenance.get("commit")]
    clean = [record for record in committed if record.provenance.get("dirty") is False]
    yield Answer(
        "Is the code that ran identified?",
        _all(clean, records),
        f"{len(committed)} of {len(records)} records name the commit, {len(clean)} of them with no uncommitted change.",
    )
    versions = [record for record in records if record.provenance.get("versions")]
    yield Answer(
        "Are the versions of the libraries recorded?",
        _all(versions, records),
        f"In {len(versions)} of {len(records)} records; `constraints.txt` pins them.",
    )
    encoders = [record.provenance.get("encoder") or {} for record in records]
    pinned = [encoder for encoder in encoders if encoder.get("revision") or encoder.get("sha256")]
    yield Answer(
        "Is the pretrained model identified?",
        _all(pinned, records),
        f"{escape(encoder_label(records))}; {len(pinned)} of {len(records)} records name its revision or checksum.",
    )
    commands = [record for record in records if record.provenance.get("command")]
    yield Answer(
        "Is there a command for every result?",
        _all(commands, records),
        "For each run, and one for the whole report ([how to regenerate](report.md#how-to-regenerate)).",
    )
    done = _completed(study)
    kept = sum(len(runs) for runs in study.predictions.values())
    yield Answer(
        "Are the predictions behind the scores kept?",
        YES if kept == len(done) > 0 else PARTLY if kept else NO,
        f"`predictions.parquet` of {kept} of {len(done)} completed runs can be read and agrees with its record.",
    )


def _experiments(study: Study) -> Iterator[Answer]:
    records = study.records
    configured = [record for record in records if record.config]
    yield Answer(
        "Are all hyperparameters reported?",
        _all(configured, records),
        f"{len(configured)} of {len(records)} records hold the resolved config, which the report writes out beside it.",
    )
    yield Answer(
        "Is it said how hyperparameters were chosen, and how many were tried?",
        PEOPLE,
        "The records hold the chosen values; the README and the comments of the configs say where they come from.",
    )
    done = _completed(study)
    validated = [record for record in done if record.metrics.get("best_epoch")]
    yield Answer(
        "Was the model to be tested chosen without the test data?",
        _all(validated, done),
        f"{len(validated)} of {len(done)} completed runs record the epoch they chose by validation accuracy.",
    )
    failed = len(records) - len(done)
    yield Answer(
        "Are failed runs reported too?",
        YES,
        f"{failed} of {len(records)} runs failed ([runs](report.md#runs)).",
    )


def _statistics(study: Study) -> Iterator[Answer]:
    seeds = dict.fromkeys(study.curves, 0)
    for record in _completed(study):
        seeds[record.name] += 1
    fewest, most = min(seeds.values()), max(seeds.values())
    yield Answer(
        "Was every experiment run with several seeds?",
        YES if fewest > 1 else PARTLY if most > 1 else NO,
        f"{fewest} to {most} completed seeds per experiment. With one seed an interval says nothing about another.",
    )
    separate = [record for record in study.records if record.provenance.get("seeds")]
    yield Answer(
        "Are the seeds recorded?",
        _all(separate, study.records),
        f"{len(separate)} of {len(study.records)} records name the seed of each random choice apart.",
    )
    measured = [record for record in _completed(study) if (record.metrics.get("test") or {}).get("n")]
    yield Answer(
        "Do results come with error bars, and is it said what they are?",
        _all(measured, _completed(study)),
        "95% intervals; test-sampling error and variance over seeds are kept apart "
        "([comparison](report.md#comparison-with-the-article)).",
    )
    tested = [result for result in study.verdicts if result.p_value is not None]
    yield Answer(
        "Are tests named, paired where they can be, and corrected for their number?",
        _all([result for result in tested if result.adjusted_p is not None], tested) if tested else NO,
        f"{len(tested)} claims were tested, with Holm's correction over them; the test is named beside each."
        if tested
        else "No claim could be tested on these runs.",
    )


def _compute(study: Study) -> Iterator[Answer]:
    total = compute_table(study.records, in_order(study.curves, study.reported.rows)).iloc[-1]
    timed = int(total["runs"] - total["untimed"])
    yield Answer(
        "Is the compute spent reported, with the hardware?",
        YES if not total["untimed"] else PARTLY if timed else NO,
        f"{_number(total['hours'])} hours over {timed} timed of {total['runs']} runs, failed ones included, on "
        f"{escape(str(total['hardware'])) if isinstance(total['hardware'], str) else 'unknown hardware'}.",
    )
    done = _completed(study)
    measured = [record for record in done if record.memory.get("peak_bytes")]
    yield Answer(
        "Is the memory needed reported?",
        _all(measured, done),
        f"{len(measured)} of {len(done)} completed runs measured their peak.",
    )


def _people(study: Study) -> Iterator[Answer]:
    for question, hint in (
        ("May the data and the weights be used and shared this way?", "The README names their licences and sources."),
        ("Were the writers of the reviews asked, and can they be identified?", "See the data set's own publication."),
        ("Could the work do harm, and to whom?", "Sentiment classifiers inherit the biases of reviews and encoder."),
        ("Did someone else run the command and get these results?", "Compare their report with this one."),
    ):
        yield Answer(question, PEOPLE, hint)


def _completed(study: Study) -> list[Record]:
    return [record for record in study.records if record.status == "completed"]


def _all(some: Iterable[object], everything: Iterable[object]) -> str:
    """The answer where something holds for some of everything."""
    holds, count = len(list(some)), len(list(everything))
    return YES if holds == count > 0 else PARTLY if holds else NO


def _settings(records: Iterable[Record], field: str) -> str:
    return _values(records, lambda record: flatten(record.config).get(field))


def _values(records: Iterable[Record], value: Callable[[Record], Any]) -> str:
    """The distinct values among records."""
    return ", ".join(dict.fromkeys(escape(str(value(record))) for record in records)) or "none"


def _number(value: Any) -> str:
    return "unknown" if pd.isna(value) else f"{value:,.4g}"
