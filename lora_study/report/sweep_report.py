"""The page of a sweep: sweep.md, sweep.csv and figures, from its records and sweep.yaml alone."""

import json
import math
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import pandas as pd

from lora_study.base.errors import ConfigError
from lora_study.base.files import user_path, write_files
from lora_study.base.text_tables import count, csv_table, escape, markdown_table
from lora_study.config_files import read_config
from lora_study.config_studies import SweepConfig
from lora_study.evidence.summary import all_measured, encoder_label, mean
from lora_study.evidence.trials import (
    BEST,
    SWEEP_FILE,
    chosen_trial,
    runs_of_best,
    trials_of,
    trials_table,
    with_all_seeds,
)
from lora_study.records.record import Record, read_records
from lora_study.report import plots, sweep_plots
from lora_study.report.figures import Picture

SHOWN = 20  # rows of the page's table; sweep.csv has all
HEADS = {
    "val_accuracy": "validation accuracy (%)",
    "val_spread": "spread over seeds",
    "failed": "failed runs",
    "trainable": "trainable parameters",
    "train_seconds": "training (s)",
    "total_seconds": "all runs (s)",
}


def write_sweep_report(results_dir: str | Path) -> list[Path]:
    """Write the page of a sweep into its results folder; the same records give the same bytes.

    Returns:
        The files written.

    Raises:
        ConfigError: there is no record of a trial, or the folder cannot be written.
    """
    results_dir = user_path(results_dir)
    sweep = read_config(results_dir / SWEEP_FILE, SweepConfig, "sweep")
    records, problems = read_records(results_dir)
    if not trials_of(records):
        raise ConfigError(f"{results_dir} holds no run of a trial yet; start the sweep again to go on")
    table = trials_table(records, list(sweep.parameters))
    chosen = chosen_trial(table, len(sweep.seeds))
    complete = with_all_seeds(table, len(sweep.seeds))
    table = pd.concat([complete, table.drop(complete.index)], ignore_index=True)  # a mean over fewer seeds has no rank
    pictures = _draw(complete, list(sweep.parameters), chosen)
    parts = [f"# {escape(sweep.title)}", *([escape(sweep.question)] if sweep.question else [])]
    parts += [_what(sweep, trials_of(records), table)]
    parts += ["## The choice", _choice(sweep, table, chosen, runs_of_best(records, chosen, list(sweep.parameters)))]
    parts += [f"**What it cannot say.** {escape(sweep.limits)}"] if sweep.limits else []
    if pictures:
        parts.append("## Figures")
        parts += [f"![{escape(picture.alt)}](figures/{name}.png)" for name, picture in pictures.items()]
    parts += ["## Settings tried", _ranking(table, list(sweep.parameters), chosen)]
    if problems:
        parts += ["## Left out", "\n".join(f"- {escape(line)}" for line in problems)]
    contents = {"sweep.md": ("\n\n".join(parts) + "\n").encode(), "sweep.csv": csv_table(table).encode()}
    contents |= {f"figures/{name}.png": picture.formats["png"] for name, picture in pictures.items()}
    try:
        return write_files(results_dir, contents)
    except OSError as error:
        raise ConfigError(f"the page cannot be written to {results_dir}: {error}; choose a folder you own") from error


def _draw(table: pd.DataFrame, parameters: list[str], chosen: str | None) -> dict[str, Picture]:
    """The figures for which there are data, by file name."""
    if table.empty:
        return {}
    best = f"best: {chosen} with {table['val_accuracy'].iloc[0]:.2f}%"
    pictures = {
        f"effect_{name}": Picture(
            plots.draw(partial(sweep_plots.effect, table, name), height=4.2),
            f"Validation accuracy of {len(table)} settings by {name}; {best}",
        )
        for name in parameters
        if table[name].nunique() > 1
    }
    if table["trainable"].nunique() > 1:
        pictures["pareto"] = Picture(
            plots.draw(partial(sweep_plots.pareto, table, chosen)),
            f"Validation accuracy against trainable parameters of {len(table)} settings; {best}",
        )
    return pictures


def _what(sweep: SweepConfig, trials: list[Record], table: pd.DataFrame) -> str:
    """What was tried, on what, and what it cost."""
    search, tried = sweep.search, f"{len(table)} settings"
    if search.method == "grid":
        values = [{json.dumps(value) for value in values} for values in sweep.parameters.values()]
        how = f"{len(table)} of the {math.prod(map(len, values))} settings of a grid"
    elif search.method == "random":
        how = f"{tried} drawn at random (seed {search.seed})"
    else:
        how = f"{tried} proposed by Optuna (sampler {search.sampler}, seed {search.seed})"
    sizes = [record.data["sizes"] for record in trials if record.status == "completed" and record.data.get("sizes")]
    train, val = (_each(size[part] for size in sizes) for part in ("train", "val"))
    each = f"{'up to ' * bool((table['seeds'] < len(sweep.seeds)).any())}{count(len(sweep.seeds), 'seed')} each"
    return (
        f"{how} over {', '.join(sweep.parameters)}, with {each}; "
        f"{encoder_label(trials)}; {train} training and {val} validation reviews. "
        f"{count(len(trials), 'run')}, {int(table['failed'].sum())} of them failed, "
        f"{table['total_seconds'].sum() / 3600:.2f} hours when added up."
    )


def _choice(sweep: SweepConfig, table: pd.DataFrame, chosen: str | None, tested: list[Record]) -> str:
    if chosen is None:
        return "No settings completed all their runs, so none are chosen."
    row = table[table["trial"] == chosen].iloc[0]
    complete = len(with_all_seeds(table, len(sweep.seeds)))
    of = f"{complete} settings tried"
    if complete < len(table):
        of = f"the {count(complete, 'setting')} that completed all seeds ({len(table)} tried)"
    lines = (
        f"**{escape(chosen)}** has the best mean validation accuracy, {row['val_accuracy']:.2f}%, of {of}; "
        "of equals, those that train the fewest parameters are taken. No trial's test reviews were "
        "scored for the choice. The best of many is flattered by chance, so its validation accuracy is no estimate."
    )
    for name, values in sweep.parameters.items():
        numbers = (
            isinstance(values, list) and len(values) > 2 and all(isinstance(value, int | float) for value in values)
        )
        if numbers and row[name] in (min(values), max(values)):
            lines += f" Its {name} is at an end of the values tried; better ones may lie beyond."
    accuracies = all_measured(tested, "metrics.test.accuracy")
    if len(accuracies) < len(sweep.seeds):
        done = f"; {len(accuracies)} of {len(sweep.seeds)} seeds are done" if accuracies else ""
        return f"{lines} Its test has not been completed{done}."
    return (
        f"{lines}\n\nTrained again and then tested once, it has a test accuracy of "
        f"**{100 * (mean(tested, 'metrics.test.accuracy') or 0):.2f}%** on "
        f"{_each(all_measured(tested, 'metrics.test.n'))} reviews "
        f"({count(len(tested), 'seed')}; experiment `{BEST}`), after {len(table)} trials."
    )


def _ranking(table: pd.DataFrame, parameters: list[str], chosen: str | None) -> str:
    shown = table.head(SHOWN).copy()
    shown["trial"] = [f"{name} (chosen)" if name == chosen else name for name in shown["trial"]]
    for name in parameters:  # two decimals would hide a learning rate
        shown[name] = [f"{value:g}" if isinstance(value, int | float) else value for value in shown[name]]
    rest = f"The best {SHOWN} of {len(table)}; all are in [sweep.csv](sweep.csv).\n\n" if len(table) > SHOWN else ""
    return rest + markdown_table(shown.rename(columns=HEADS))


def _each(numbers: Iterable[float]) -> str:
    """The number that all share, or each of several: '800', or '400 or 800' where a sweep varies it."""
    return " or ".join(f"{number:,.0f}" for number in sorted(set(numbers))) or "an unknown number of"
