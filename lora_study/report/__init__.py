"""The report of a study: reads its records, writes tables, figures and pages.

The same records give the same bytes: nothing here reads the clock, the machine or the repository.
"""

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

from lora_study.base.errors import ConfigError
from lora_study.base.files import user_path, write_files
from lora_study.base.text_tables import csv_table, escape, markdown_table
from lora_study.evidence.claims.headline import headline
from lora_study.evidence.summary import parameters_table, summary_table
from lora_study.report.exhibits import KEPT, accuracies, draw_up
from lora_study.report.figures import draw_figures
from lora_study.report.material import Study, read_study
from lora_study.report.pages import report_page, title_of
from lora_study.report.speed import write_speed
from lora_study.report.variants import find_variants
from lora_study.report.webpage import html_page
from lora_study.report.words import encoder_in_words, scope

logger = logging.getLogger(__name__)

# How a page links a figure or a table, and the endings of the files that this version or an earlier one made of it.
LINK = re.compile(r"\]\((figures|tables)/([^/()]+)\.(?:png|csv)\)")
ENDINGS = {"figures": ("png", "svg"), "tables": ("csv", "md", "tex")}


def write_report(
    results_dir: str | Path,
    published_dir: str | Path | None = None,
    address: str | None = None,
    benchmarks_dir: str | Path | None = None,
) -> list[Path]:
    """Write the report of a study into its results folder.

    The report is report.md and report.html, with their figures as PNG in figures/. summary.csv and parameters.csv have
    a row per experiment; tables/ has one file with a row per claim and one with a row per run. Figures and tables that
    an earlier report had and this one does not are removed. The page about speed goes into the folder of benchmarks,
    if there is one.

    Args:
        results_dir: Folder of the study, with ``EXPERIMENT/seed-N/record.json`` below it.
        published_dir: Folder of the published copy of the study; by default ``published/NAME`` beside the folder.
        address: Where the reader finds the folder, for the commands; by default ``results/NAME``, or
            ``results/published/NAME`` for a published copy.
        benchmarks_dir: Folder of benchmarks; by default ``benchmarks`` beside the study's folder.

    Returns:
        The files written.

    Raises:
        ConfigError: there is no record, or the folder cannot be written.
    """
    results_dir = user_path(results_dir)
    study = read_study(results_dir, published_dir, address, benchmarks_dir)
    for line in study.warnings:
        logger.warning(line)
    contents = report_files(study)
    try:
        leftovers = _named_by(results_dir / "report.md") - contents.keys()
        written = write_files(results_dir, contents)
        for name in leftovers:
            (results_dir / name).unlink(missing_ok=True)
        beside = user_path(benchmarks_dir or results_dir.resolve().parent / "benchmarks")
        return written + write_speed(study.benchmarks, beside)
    except OSError as error:
        raise ConfigError(f"the report cannot be written to {results_dir}: {error}; choose a folder you own") from error


def report_files(study: Study) -> dict[str, bytes]:
    """Every file of a study's report: its content by its path below the results folder."""
    summary = summary_table(study.records, study.reported.rows, study.published)
    bases = dict.fromkeys([*study.reported.rows, *study.reported.layerwise])  # what others can be variants of
    tables = draw_up(study, summary, find_variants(study.records, study.predictions, bases))
    pictures = draw_figures(study)
    page = report_page(study, tables, pictures)
    images = {f"figures/{name}.png": picture.formats["svg"] for name, picture in pictures.items()}
    texts = {
        "summary.csv": csv_table(summary),
        "parameters.csv": csv_table(parameters_table(study.records, study.reported.rows)),
        "report.md": page,
        "report.html": html_page(title_of(study), page, images),
    }
    texts |= {f"tables/{name}.csv": csv_table(tables[name].frame) for name in KEPT if name in tables}
    contents = {name: text.encode() for name, text in texts.items()}
    return contents | {f"figures/{name}.png": picture.formats["png"] for name, picture in pictures.items()}


def readme_results(results_dirs: Sequence[Path]) -> str:
    """The results of studies as Markdown for a README at the root of the repository: of each one table and one figure.

    Args:
        results_dirs: Folders of the studies, relative to the README; they hold the studies' reports.

    Raises:
        ConfigError: there is no record.
    """
    lines, said = [], ""
    for folder in results_dirs:
        study, place = read_study(folder), folder.as_posix()
        if (words := encoder_in_words(study)) != said:  # once for neighbours of which the same holds
            lines.append(said := words)
        lines += [
            f"**{escape(title_of(study))}**",
            scope(study),
            markdown_table(accuracies(study, summary_table(study.records, study.reported.rows))),
            f"![Test accuracy, a dot per seed, beside the article's]({place}/figures/seeds.png)",
            f"{' '.join(headline(study.verdicts))} The [report]({place}/report.md) has the evidence for each.",
        ]
    return "\n\n".join(lines)


def _named_by(page: Path) -> set[str]:
    """Paths, relative to a report's page, of the figures and tables it links; none if there is no page."""
    if not page.exists():
        return set()
    found = LINK.findall(page.read_text(encoding="utf-8", errors="replace"))
    return {f"{folder}/{Path(unquote(stem)).name}.{end}" for folder, stem in found for end in ENDINGS[folder]}
