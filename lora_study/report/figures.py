"""Which figures a study has: how each is drawn, and what it shows in words."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from lora_study.evidence.predictions import reliability
from lora_study.evidence.summary import all_measured, encoder_label, rows_of
from lora_study.records.record import Record
from lora_study.report import plots
from lora_study.report.benchmarks import Benchmark, ratio_text
from lora_study.report.material import Study

MOST_PANELS = 16  # loss curves of more experiments are in their curves.csv
LAST = 20  # logged losses of which the median is said to be where a run ends: one alone may be of a single batch
MOST_LINES = 10  # which can be told apart in one panel


@dataclass(frozen=True)
class Picture:
    """A figure: its bytes by format ('png', 'svg'), and its content in words."""

    formats: Mapping[str, bytes]
    alt: str


def draw_figures(study: Study) -> dict[str, Picture]:
    """The figures for which there are data, by file name."""
    return {**_seeds(study), **_losses(study), **_calibration(study)}


def draw_speed(benchmark: Benchmark) -> Picture:
    """The figure of one benchmark."""
    title = f"{benchmark.title} beside others, with range"
    plot = partial(plots.ratios, benchmark.ratios, title, benchmark.encoder)
    values = "; ".join(
        f"{row.row}, {ratio_text(row.ratio, row.low, row.high)} times that of {row.over}"
        for row in rows_of(benchmark.ratios)
    )
    height = 1.9 + max(0.3 * len(benchmark.ratios), 0.42 * len(benchmark.table))
    return Picture(plots.draw(plot, 6.2, height), f"{title}, {benchmark.encoder}: {values}")


def _seeds(study: Study) -> dict[str, Picture]:
    ours, published = _accuracies(study, study.records), _accuracies(study, study.published)
    if not any(ours.values()):
        return {}
    encoder = encoder_label(study.records)
    values = "; ".join(
        f"{name} {', '.join(f'{value:.2f}%' for value in found) or 'not measured'}"
        + (f", article {study.reported.rows[name].test:.2f}%" if name in study.reported.rows else "")
        for name, found in ours.items()
    )
    shown = {name: found for name, found in published.items() if found}
    plot = partial(plots.seeds, ours, shown, study.reported, encoder)
    height = 1.7 + 0.36 * len(ours) + 0.15 * bool(shown)
    return {"seeds": Picture(plots.draw(plot, height=height), f"Test accuracy of every seed, {encoder}: {values}")}


def _accuracies(study: Study, records: list[Record]) -> dict[str, list[float]]:
    """Test accuracies of the completed runs, in percent, by experiment."""
    done = [record for record in records if record.status == "completed"]
    return {
        name: [100 * value for value in all_measured((r for r in done if r.name == name), "metrics.test.accuracy")]
        for name in study.curves
    }


def _losses(study: Study) -> dict[str, Picture]:
    drawn = {n: rows for n, rows in study.curves.items() if not rows.empty and rows["train_loss"].notna().any()}
    if not 0 < len(drawn) <= MOST_PANELS:
        return {}
    encoder = encoder_label(study.records)
    ends = "; ".join(
        f"{name} seed {seed:g} from {run.iloc[0]:.2f} to {run.tail(LAST).median():.2f}"
        for name, rows in drawn.items()
        for seed, run in rows.dropna(subset=["train_loss"]).groupby("seed")["train_loss"]
    )
    height = 1.3 + 1.75 * ((len(drawn) + 1) // 2)
    steps = [rows["step"].max() for rows in drawn.values()]
    alike = max(steps) < 3 * min(steps)  # else the short ones would be drawn in a corner
    formats = plots.draw(
        partial(plots.losses, drawn, study.guess, encoder), height=height, panels=len(drawn), sharex=alike
    )
    return {"loss": Picture(formats, f"Training loss by step, {encoder}: {ends}")}


def _calibration(study: Study) -> dict[str, Picture]:
    if not 0 < len(study.predictions) <= MOST_LINES:
        return {}
    encoder = encoder_label(study.records)
    found = {name: reliability(runs.values()) for name, runs in study.predictions.items()}
    values = "; ".join(f"{name} {100 * each.error:.1f} points" for name, each in found.items())
    height = 4.4 + 0.24 * len(found) / plots.calibration_columns(found)
    drawn = plots.draw(partial(plots.calibration, found, encoder), height=height)
    return {"calibration": Picture(drawn, f"Calibration on the test reviews, {encoder}; expected error: {values}")}
