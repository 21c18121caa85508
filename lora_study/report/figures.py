"""Which figures a study has: for each the drawing, and what it shows in words."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import pandas as pd

from lora_study.evidence.predictions import reliability
from lora_study.evidence.summary import encoder_label, rows_of
from lora_study.report import plots
from lora_study.report.benchmarks import ratio_text
from lora_study.report.inputs import Study

LINES = len(plots.COLOURS)  # learning curves in one figure: more would share colours


@dataclass(frozen=True)
class Picture:
    """A figure: its bytes by format ('png', 'svg'), and its content in words."""

    formats: Mapping[str, bytes]
    alt: str


def draw_figures(study: Study, summary: pd.DataFrame) -> dict[str, Picture]:
    """The figures for which there are data, by file name."""
    return {
        **_accuracies(study, summary),
        **_layerwise(study, summary),
        **_learning_curves(study),
        **_calibration(study),
        **_speeds(study),
    }


def _accuracies(study: Study, summary: pd.DataFrame) -> dict[str, Picture]:
    if summary["test_accuracy"].isna().all():
        return {}
    encoder = encoder_label(study.records)
    values = "; ".join(
        f"{row.experiment} {_percent(row.test_accuracy)}"
        + ("" if pd.isna(row.reported_test_accuracy) else f", reported {_percent(row.reported_test_accuracy)}")
        for row in rows_of(summary)
    )
    beside = partial(plots.ours_and_reported, summary, study.reported, encoder)
    against = partial(plots.accuracy_by_trainable, summary, study.reported, encoder)
    return {
        "ours_and_reported": Picture(
            plots.draw(beside, height=2.2 + 0.5 * len(summary)),
            f"Test accuracy of each experiment beside the reported one, {encoder}: {values}",
        ),
        "accuracy_by_trainable": Picture(
            plots.draw(against, height=4.4), f"Test accuracy against trainable parameters, {encoder}: {values}"
        ),
    }


def _layerwise(study: Study, summary: pd.DataFrame) -> dict[str, Picture]:
    rows = study.reported.layerwise
    found = summary[summary["experiment"].isin(list(rows)) & summary["test_accuracy"].notna()]
    if not (found["mode"] == "partial").any():
        return {}
    encoder = encoder_label(study.records)
    ours = dict(zip(found["experiment"], found["test_accuracy"], strict=True))
    values = "; ".join(
        f"{name} {_percent(ours[name]) if name in ours else 'not run'}, reported {_percent(row.test)}"
        for name, row in rows.items()
    )
    drawn = plots.draw(partial(plots.layerwise, summary, rows, encoder), height=4.4)
    return {"layerwise": Picture(drawn, f"Test accuracy as more layers are trained, {encoder}: {values}")}


def _learning_curves(study: Study) -> dict[str, Picture]:
    encoder = encoder_label(study.records)
    pictures = {}
    for file, column, what in (
        ("validation_accuracy", "val_accuracy", "Validation accuracy per epoch"),
        ("training_loss", "train_loss", "Training loss per epoch"),
    ):
        for start in range(0, len(study.curves), LINES):
            # An experiment without curves keeps its colour, so that the others have theirs in every figure.
            curves = dict(list(study.curves.items())[start : start + LINES])
            drawn = {name: rows for name, rows in curves.items() if not rows.empty and rows[column].notna().any()}
            if not drawn:
                continue
            plot = partial(plots.learning_curves, curves, column, encoder)
            ends = "; ".join(f"{name} from {_ends(rows, column)}" for name, rows in drawn.items())
            pictures[file if start == 0 else f"{file}_{start // LINES + 1}"] = Picture(
                plots.draw(plot, height=3.8 + 0.12 * len(curves)),
                f"{what}, mean and range over seeds, {encoder}: {ends}",
            )
    return pictures


def _calibration(study: Study) -> dict[str, Picture]:
    if not study.predictions:
        return {}
    encoder = encoder_label(study.records)
    found = {name: reliability(runs.values()) for name, runs in study.predictions.items()}
    values = "; ".join(f"{name} {100 * each.error:.1f} points" for name, each in found.items())
    drawn = plots.draw(partial(plots.calibration, found, encoder), height=4.4 + 0.12 * len(found))
    return {"calibration": Picture(drawn, f"Calibration on the test reviews, {encoder}; expected error: {values}")}


def _speeds(study: Study) -> dict[str, Picture]:
    pictures = {}
    for benchmark in study.benchmarks:
        title = f"{benchmark.title} beside others, with range"
        plot = partial(plots.ratios, benchmark.ratios, title, benchmark.encoder)
        values = "; ".join(
            f"{row.row}, {ratio_text(row.ratio, row.low, row.high)} times that of {row.over}"
            for row in rows_of(benchmark.ratios)
        )
        height = 1.7 + max(0.3 * len(benchmark.ratios), 0.42 * len(benchmark.table))
        pictures[benchmark.exhibit] = Picture(
            plots.draw(plot, height=height), f"{title}, {benchmark.encoder}: {values}"
        )
    return pictures


def _ends(rows: pd.DataFrame, column: str) -> str:
    """The first and last epoch's mean, as in the drawing."""
    means = rows.groupby("epoch")[column].mean().dropna() * (100 if column == "val_accuracy" else 1)
    unit = "%" if column == "val_accuracy" else ""
    return f"{means.iloc[0]:.2f}{unit} to {means.iloc[-1]:.2f}{unit}"


def _percent(value: float) -> str:
    return "missing" if pd.isna(value) else f"{value:.2f}%"
