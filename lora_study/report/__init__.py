"""The report of a study: reads its records, writes tables, figures and pages.

The same records give the same bytes: nothing here reads the clock, the machine or the repository.
"""

import logging
import re
from pathlib import Path
from urllib.parse import unquote

from lora_study.base.errors import ConfigError
from lora_study.base.files import atomic, user_path
from lora_study.base.plain_yaml import dump_yaml
from lora_study.base.text_tables import csv_table, escape, latex_table
from lora_study.evidence.summary import parameters_table, summary_table
from lora_study.report.exhibits import config_path, draw_up
from lora_study.report.figures import draw_figures
from lora_study.report.inputs import Study, read_study
from lora_study.report.pages import budget, report_page, title_of, verdicts_in_words
from lora_study.report.variants import find_variants
from lora_study.report.webpage import html_page

logger = logging.getLogger(__name__)

# A figure or a table as a page links it, and the files that this report or one of an earlier version made of each.
LINK = re.compile(r"\]\((figures|tables)/([^/()]+)\.(?:png|csv)\)")
ENDINGS = {"figures": ("png", "svg"), "tables": ("csv", "md", "tex")}


def write_report(
    results_dir: str | Path,
    published_dir: str | Path | None = None,
    address: str | None = None,
    benchmarks_dir: str | Path | None = None,
) -> list[Path]:
    """Write the report of a study into its results folder.

    summary.csv, parameters.csv, report.md, report.html; every figure as PNG in figures/; every table as
    CSV in tables/, and the comparison as LaTeX too; the config of each run beside its record. Figures and tables of an
    earlier report that this one does not have are removed.

    Args:
        results_dir: Folder of the study, with ``EXPERIMENT/seed-N/record.json`` below it.
        published_dir: Folder of the published copy of the study; by default ``published/NAME`` beside the folder.
        address: Where the reader finds the folder, for the commands; by default ``results/NAME``.
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
        for name, content in contents.items():
            with atomic(results_dir / name) as temporary:
                temporary.write_bytes(content)
        for name in leftovers:
            (results_dir / name).unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"the report cannot be written to {results_dir}: {error}; choose a folder you own") from error
    return [results_dir / name for name in contents]


def report_files(study: Study) -> dict[str, bytes]:
    """Every file of a study's report: its content by its path below the results folder."""
    summary = summary_table(study.records, study.reported.rows, study.published)
    tables = draw_up(study, summary, find_variants(study.records, study.predictions, _bases(study)))
    pictures = draw_figures(study, summary)
    page = report_page(study, tables, pictures)
    images = {f"figures/{name}.png": picture.formats["svg"] for name, picture in pictures.items()}
    texts = {
        "summary.csv": csv_table(summary),
        "parameters.csv": csv_table(parameters_table(study.records, study.reported.rows)),
        "report.md": page,
        "report.html": html_page(title_of(study), page, images),
    }
    texts |= {f"tables/{name}.csv": csv_table(table.frame) for name, table in tables.items()}
    if comparison := tables.get("comparison"):
        texts["tables/comparison.tex"] = latex_table(comparison.frame, comparison.title)
    for record in study.records:
        if record.config:
            texts[config_path(record)] = dump_yaml(record.config)
    contents = {name: text.encode() for name, text in texts.items()}
    return contents | {f"figures/{name}.png": picture.formats["png"] for name, picture in pictures.items()}


def readme_results(results_dir: Path) -> str:
    """The results of a study as Markdown for a README at the root of the repository.

    The comparison beside the article, what runs learned from, how many claims got which verdict, and a link.

    Args:
        results_dir: Folder of the study, relative to the README.

    Raises:
        ConfigError: there is no record.
    """
    study = read_study(results_dir)
    summary = summary_table(study.records, study.reported.rows)
    comparison = draw_up(study, summary, [])["comparison"]
    folder = results_dir.as_posix()
    return "\n\n".join(
        [
            f"**{escape(comparison.title)}**",
            comparison.markdown(),
            f"{budget(study)}{verdicts_in_words(study)} The [report]({folder}/report.md) has the evidence for each, "
            "all that was run and what is needed to repeat it.",
        ]
    )


def _bases(study: Study) -> list[str]:
    """Experiments that variants may vary: those the article or its companion script reported."""
    return [*study.reported.rows, *(name for name in study.reported.layerwise if name not in study.reported.rows)]


def _named_by(page: Path) -> set[str]:
    """The files of figures and tables that a report's page links, as paths beside it; none if there is no page."""
    if not page.exists():
        return set()
    found = LINK.findall(page.read_text(encoding="utf-8", errors="replace"))
    return {f"{folder}/{Path(unquote(stem)).name}.{end}" for folder, stem in found for end in ENDINGS[folder]}
