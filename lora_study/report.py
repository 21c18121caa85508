"""The report of a study: reads its records, writes tables, figures and pages.

The same records give the same bytes: nothing here reads the clock, the machine or the repository.
"""

import base64
import html
import logging
import os
from collections.abc import Mapping
from functools import partial
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import pandas as pd
from markdown_it import MarkdownIt

from lora_study import plots
from lora_study.config import ConfigError
from lora_study.pages import Picture, Study, report_page, title_of
from lora_study.records import Record, atomic, read_records, run_dir
from lora_study.reported import load_reported
from lora_study.tables import comparable, encoder_label, in_order, parameters_table, rows_of, summary_table

logger = logging.getLogger(__name__)


def write_report(results_dir: Path, published_dir: Path | None = None) -> list[Path]:
    """Write summary.csv, parameters.csv, report.md, report.html and figures/ into a study's results folder.

    Args:
        results_dir: Folder of the study, with ``EXPERIMENT/seed-N/record.json`` below it.
        published_dir: Folder of the published copy of the study; by default ``published/NAME`` beside the folder.

    Returns:
        The files written.

    Raises:
        ConfigError: there is no record, or the folder cannot be written.
    """
    study = read_study(results_dir, published_dir)
    for line in study.warnings:
        logger.warning(line)
    summary = summary_table(study.records, study.reported.rows, study.published)
    parameters = parameters_table(study.records, study.reported.rows)
    pictures = draw_figures(study, summary)
    page = report_page(study, summary, parameters, pictures)
    images = {f"figures/{name}.png": picture.formats["svg"] for name, picture in pictures.items()}
    contents: dict[str, bytes] = {
        "summary.csv": _csv(summary),
        "parameters.csv": _csv(parameters),
        "report.md": page.encode(),
        "report.html": html_page(title_of(study), page, images).encode(),
    }
    for name, picture in pictures.items():
        contents |= {f"figures/{name}.{end}": data for end, data in picture.formats.items()}
    try:
        for name, content in contents.items():
            with atomic(results_dir / name) as temporary:
                temporary.write_bytes(content)
    except OSError as error:
        raise ConfigError(f"the report cannot be written to {results_dir}: {error}; choose a folder you own") from error
    return [results_dir / name for name in contents]


def read_study(results_dir: Path, published_dir: Path | None = None) -> Study:
    """Read what a report is made from; the arguments and errors are those of `write_report`."""
    root = results_dir.resolve()
    records, problems = read_records(root)
    if not records:
        unreadable = f" that can be read ({problems[0]})" if problems else ""
        raise ConfigError(f"{results_dir} holds no record{unreadable}; run `make reproduce` or `lora-study run` first")
    published: list[Record] = []
    copy = (published_dir or root.parent / "published" / root.name).resolve()
    if copy != root and (published_dir or copy.is_dir()):
        published, unreadable_copies = read_records(copy)
        published, left_out = comparable(published)
        absent = [] if published else [f"{copy.name} holds no record"]
        problems += [f"published run: {line}" for line in unreadable_copies + left_out + absent]
    records, left_out = comparable(records)
    problems += left_out
    reported = load_reported()
    curves = {}
    for name in in_order((record.name for record in records), reported.rows):
        frames = [pd.DataFrame()]
        for record in records:
            path = run_dir(root, record.name, record.seed) / "curves.csv"
            if record.name == name and record.status == "completed":
                try:
                    frames.append(_read_curves(path))
                except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
                    problems.append(f"{path} is left out of the learning curves: {error}")
        curves[name] = pd.concat(frames)
    if len({str(_fingerprint(record)) for record in records if record.status == "completed"}) > 1:
        problems.append("the experiments were not all tested on the same reviews; see the fingerprints under Data")
    # Paths within the study, so that the report does not depend on where the folders are.
    problems = [line.replace(f"{root}{os.sep}", "").replace(f"{copy}{os.sep}", "") for line in problems]
    return Study(root.name, records, published, curves, problems, reported)


def draw_figures(study: Study, summary: pd.DataFrame) -> dict[str, Picture]:
    """The figures for which there are data, by file name."""
    encoder = encoder_label(study.records)
    accuracies = "; ".join(
        f"{row.experiment} {_percent(row.test_accuracy)}, reported {_percent(row.reported_test_accuracy)}"
        for row in rows_of(summary)
    )
    pictures = {}
    if summary["test_accuracy"].notna().any():
        for name, plot, what in (
            ("ours_and_reported", plots.ours_and_reported, "Test accuracy of each experiment beside the reported one"),
            ("accuracy_by_trainable", plots.accuracy_by_trainable, "Test accuracy against trainable parameters"),
        ):
            height = 2.2 + 0.5 * len(summary) if name == "ours_and_reported" else 4.4
            drawn = plots.draw(partial(plot, summary, study.reported, encoder), height=height)
            pictures[name] = Picture(drawn, f"{what}, {encoder}: {accuracies}")
    for name, column, what in (
        ("validation_accuracy", "val_accuracy", "Validation accuracy per epoch"),
        ("training_loss", "train_loss", "Training loss per epoch"),
    ):
        if any(not rows.empty and rows[column].notna().any() for rows in study.curves.values()):
            plot = partial(plots.learning_curves, study.curves, column, encoder)
            drawn = plots.draw(plot, height=3.8 + 0.12 * len(study.curves))
            pictures[name] = Picture(drawn, f"{what}, {encoder}, one line per experiment")
    for name, column, label, what in (
        ("training_time", "train_seconds", "seconds of training steps, mean over seeds", "Training time"),
        ("peak_memory", "peak_memory_mib", _memory_label(summary), "Peak memory"),
    ):
        if summary[column].notna().any():
            plot = partial(plots.bars, summary, column, label, what, encoder)
            values = "; ".join(f"{row.experiment} {_number(getattr(row, column))}" for row in rows_of(summary))
            pictures[name] = Picture(plots.draw(plot, height=1.5 + 0.55 * len(summary)), f"{what}, {label}: {values}")
    return pictures


def html_page(title: str, markdown: str, svg_images: Mapping[str, bytes]) -> str:
    """Render Markdown as one self-contained HTML page: style and images inside, nothing loaded, no script.

    Raw HTML in the Markdown is shown as text. Every table gets a container that scrolls sideways, so that a wide one
    does not widen the page on a phone.

    Args:
        title: Title of the page, plain text.
        markdown: CommonMark with tables.
        svg_images: For each image address in the Markdown, the SVG to embed in its place.
    """
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")

    def image(self: Any, tokens: Any, index: int, options: Any, env: Any) -> str:
        token = tokens[index]
        svg = svg_images[str(token.attrs["src"])]
        token.attrSet("src", "data:image/svg+xml;base64," + base64.b64encode(svg).decode("ascii"))
        return str(self.image(tokens, index, options, env))

    def table_open(self: Any, tokens: Any, index: int, options: Any, env: Any) -> str:
        return '<div class="table" role="region" aria-label="table" tabindex="0"><table>\n'

    def table_close(self: Any, tokens: Any, index: int, options: Any, env: Any) -> str:
        return "</table></div>\n"

    for rule in (image, table_open, table_close):
        parser.add_render_rule(rule.__name__, rule)
    template = Template(files("lora_study").joinpath("page.html").read_text(encoding="utf-8"))
    return template.substitute(title=html.escape(title), body=parser.render(markdown))


def _fingerprint(record: Record) -> Any:
    fingerprint = record.data.get("fingerprint")
    return fingerprint.get("test") if isinstance(fingerprint, Mapping) else fingerprint


def _read_curves(path: Path) -> pd.DataFrame:
    columns = ["epoch", "train_loss", "val_accuracy"]
    rows = pd.read_csv(path)
    missing = [column for column in columns if column not in rows]
    if missing:
        raise ValueError(f"column {', '.join(missing)} is missing")
    return rows[columns].astype("float64")


def _memory_label(summary: pd.DataFrame) -> str:
    kinds = sorted(set(summary.memory_kind.dropna()))
    return f"peak memory (MiB), {' / '.join(kinds)}" if kinds else "peak memory (MiB)"


def _percent(value: float) -> str:
    return "missing" if pd.isna(value) else f"{value:.2f}%"


def _number(value: float) -> str:
    return "not measured" if pd.isna(value) else f"{value:,.1f}"


def _csv(frame: pd.DataFrame) -> bytes:
    # Ten digits hide the last bits of a mean, which differ between machines.
    return bytes(frame.to_csv(index=False, float_format="%.10g", lineterminator="\n").encode())
