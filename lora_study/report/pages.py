"""The report's page as Markdown: what a reader in a hurry needs comes first; all else is folded."""

from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import quote

from lora_study.base.text_tables import escape
from lora_study.evidence.claims.headline import age_of_rules, headline
from lora_study.report import words
from lora_study.report.exhibits import KEPT, Table
from lora_study.report.figures import Picture
from lora_study.report.material import Study
from lora_study.report.repeating import checklist, commands


def report_page(study: Study, tables: Mapping[str, Table], pictures: Mapping[str, Picture]) -> str:
    """The report as Markdown, with its folds as HTML's <details>.

    Args:
        study: The evidence.
        tables: `exhibits.draw_up`.
        pictures: `figures.draw_figures`.
    """

    def table(name: str, title: str = "", otherwise: str = "") -> Iterator[str]:
        if name not in tables:
            yield from [otherwise] if otherwise else []
            return
        if title:
            yield f"**{title}**"
        yield tables[name].markdown()
        if name in KEPT:
            yield f"The same as [CSV](tables/{name}.csv)."

    def figure(name: str) -> Iterator[str]:
        if name in pictures:
            yield f"![{escape(pictures[name].alt)}](figures/{quote(name)}.png)"

    accuracies, orderings, arithmetic = headline(study.verdicts)
    blocks = [
        f"# {escape(title_of(study))}",
        f"{words.scope(study)} {words.encoder_in_words(study)}",
        f"**{accuracies} {orderings}**",
        *_warnings(study),
        *table("verdicts", otherwise="No sentence of the article can be checked against these runs."),
        *figure("seeds"),
        words.legend(study),
        f"{arithmetic} These are counts, ratios and the like; runs are only checked against them.",
        "## In plain words",
        *words.in_plain_words(study),
        *table("draws", "Which random draw the test accuracy depends on"),
        *_training(study, list(figure("loss"))),
        *_calibration(study, list(figure("calibration"))),
        "## All the rest",
        *_speed(study),
        *_fold("Accuracies beside the article's", _accuracies(study), table("accuracies"), table("parts")),
        *_fold("Evidence for each claim", _evidence(study), table("claims", otherwise="No claim was checked.")),
        *_fold(
            "Departures from the article's recipe",
            table("deviations", otherwise="The settings are the article's."),
            _variants(tables),
            table("variants", "What one setting changes"),
            _findings(study),
        ),
        *_fold("Parameters, time and memory", table("parameters"), _cost(study), table("cost")),
        *_fold("Data", [words.copies(study)], table("data", otherwise="The records say nothing about the data.")),
        *_fold("Machine and versions", table("machine", otherwise="The records say nothing about the machine.")),
        *_fold("Runs", [words.spent(study)], table("runs")),
        *_fold("How to repeat it, and what the records hold", commands(study), checklist(study)),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def title_of(study: Study) -> str:
    """Title of a study's report."""
    return study.words.get("title") or f"LoRA on IMDb: study {study.name}"


def _fold(title: str, *parts: Iterable[str]) -> Iterator[str]:
    """A part of the page that a reader opens."""
    yield f"<details>\n<summary>{title}</summary>"
    for part in parts:
        yield from part
    yield "</details>"


def _warnings(study: Study) -> Iterator[str]:
    if study.warnings:
        yield "> **Warnings**\n>\n" + "\n".join(f"> - {escape(line)}" for line in study.warnings)


def _training(study: Study, figures: list[str]) -> Iterator[str]:
    if figures:
        yield from ["## Training", words.starts(study.curves, study.guess), *figures]


def _calibration(study: Study, figures: list[str]) -> Iterator[str]:
    if study.predictions:
        yield from ["## How sure the models are", words.confidence(study), *figures]


def _speed(study: Study) -> Iterator[str]:
    if study.benchmarks:
        yield (
            "Speed beside other tools has a page of its own: [web page](../benchmarks/speed.html) or "
            "[Markdown](../benchmarks/speed.md)."
        )


def _accuracies(study: Study) -> Iterator[str]:
    yield (
        "Means over seeds. The interval covers the error of sampling test reviews (Wilson's) and, from two seeds on, "
        "that of sampling seeds. A gap is over the seeds that both rows have; its interval is paired over reviews and, "
        "from two seeds on, over seeds (with two it is often too narrow), and missing where the two were not tested on "
        "the same reviews. The article has one seed for each row."
    )
    if study.published:
        yield "Published is the mean over the published runs of the seeds here, or over all if none of them is here."
    done = {record.name for record in study.completed}
    if absent := [name for name in study.reported.rows if name not in done]:
        yield f"Rows of the article without a completed run here: {escape(', '.join(absent))}."


def _evidence(study: Study) -> Iterator[str]:
    if study.verdicts:
        yield (
            f"The rules are in lora_study/evidence/claims/rules.py. {age_of_rules(study.records)} "
            "An adjusted p is Holm's, over all claims that are tests."
        )
        if any(result.power for result in study.verdicts):
            yield (
                "Beside a claim that was judged with three seeds or more stands how often its rule would give each "
                "verdict if the article were exactly right, with the spread, seeds and reviews of this study."
            )


def _variants(tables: Mapping[str, Table]) -> Iterator[str]:
    if "variants" in tables:
        yield (
            "A variant differs from another experiment in one setting, or in very few. The effect is its test accuracy "
            "minus the other's over the seeds both have; the interval is paired over test reviews and, from two seeds "
            "on, over seeds (with two it is often too narrow), and missing where the two were not tested on the same "
            "reviews."
        )


def _findings(study: Study) -> Iterator[str]:
    if study.reported.findings:
        yield "**How the reported numbers were obtained**"
        yield "\n".join(f"- {escape(line)}" for line in study.reported.findings)


def _cost(study: Study) -> Iterator[str]:
    yield (
        f"The article's parameters are those of {escape(study.reported.encoder)}. Time is that of the optimizer steps "
        "and, where the frozen trunk is computed once, of its features, with whatever makes this package fast; the "
        "claims about time and memory are judged by runs with plain layers. A ratio is over the seeds in which both "
        "rows did the same work on one machine and, for time, had like shares of its processor. Intervals (95%) are "
        "over seeds, those of a ratio paired."
    )
