"""The page of a sweep: sweep.md, sweep.json, sweep.csv and figures, from its records and sweep.yaml alone."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from pandas.api.types import is_numeric_dtype

from lora_study.config import ConfigError, SweepConfig
from lora_study.config_files import read_config
from lora_study.formats import csv_table, escape, markdown_table
from lora_study.points import BEST, SWEEP_FILE, chosen_point, point_table, trials_of
from lora_study.records import Record, atomic, read_records
from lora_study.report import plots, sweep_plots
from lora_study.report.figures import Picture
from lora_study.search import grid_size
from lora_study.small_files import user_path
from lora_study.tables import encoder_label, mean, measured

SHOWN = 20  # rows of the page's table; sweep.csv has all


def write_sweep_report(results_dir: str | Path) -> list[Path]:
    """Write the page of a sweep into its results folder; the same records give the same bytes.

    Returns:
        The files written.

    Raises:
        ConfigError: there is no record of a point, or the folder cannot be written.
    """
    results_dir = user_path(results_dir)
    sweep = read_config(results_dir / SWEEP_FILE, SweepConfig, "sweep")
    records, problems = read_records(results_dir)
    if not trials_of(records):
        raise ConfigError(f"{results_dir} holds no run of a point yet; start the sweep again to go on")
    contents = sweep_files(sweep, records, problems)
    try:
        for name, content in contents.items():
            with atomic(results_dir / name) as temporary:
                temporary.write_bytes(content)
    except OSError as error:
        raise ConfigError(f"the page cannot be written to {results_dir}: {error}; choose a folder you own") from error
    return [results_dir / name for name in contents]


def sweep_files(sweep: SweepConfig, records: list[Record], problems: list[str]) -> dict[str, bytes]:
    """Every file of a sweep's page: its content by its path below the results folder.

    Args:
        sweep: The sweep.
        records: All records of its folder.
        problems: One line per record that cannot be read.
    """
    trials = trials_of(records)
    table = point_table(trials, list(sweep.parameters))
    chosen = chosen_point(table, len(sweep.seeds))
    tested = [record for record in records if record.name == BEST and record.status == "completed"]
    pictures = _draw(table, list(sweep.parameters), chosen)
    texts = {
        "sweep.md": _page(sweep, trials, table, chosen, tested, pictures, problems),
        "sweep.json": json.dumps(_summary(sweep, trials, table, chosen, tested), indent=2, allow_nan=False) + "\n",
        "sweep.csv": csv_table(table),
    }
    contents = {name: text.encode() for name, text in texts.items()}
    return contents | {f"figures/{name}.png": picture.formats["png"] for name, picture in pictures.items()}


def _draw(table: pd.DataFrame, parameters: list[str], chosen: str | None) -> dict[str, Picture]:
    """The figures for which there are data, by file name."""
    known = table.dropna(subset=["val_accuracy"])
    if known.empty:
        return {}
    varied = [name for name in parameters if known[name].nunique() > 1]
    best = known.iloc[0]
    leader = f"best: {best['point']} with {best['val_accuracy']:.2f}%"
    pictures = {
        f"effect_{name}": Picture(
            plots.draw(partial(sweep_plots.effect, known, name), height=3.6 if is_numeric_dtype(known[name]) else 5.0),
            f"Validation accuracy of every point by {name}, and the mean at each value; {leader}",
        )
        for name in varied
    }
    if {"lora.alpha", "lora.r"} <= set(varied):
        pictures["alpha_by_rank"] = Picture(
            plots.draw(partial(sweep_plots.heat_map, known, "lora.alpha", "lora.r"), height=4.2),
            f"Mean validation accuracy by alpha and rank, from {known['val_accuracy'].min():.2f}% at worst; {leader}",
        )
    if len(varied) > 1:
        drawing = partial(sweep_plots.parallel, known, varied)
        pictures["parallel"] = Picture(
            plots.draw(drawing, width=max(6.2, 1.9 * (len(varied) + 1)), height=4.4),
            f"Parallel coordinates of {len(known)} points over {', '.join(varied)}; {leader}",
        )
    pictures["pareto"] = Picture(
        plots.draw(partial(sweep_plots.pareto, known, chosen)),
        f"Validation accuracy against trainable parameters of {len(known)} points; {leader}",
    )
    return pictures


def _summary(
    sweep: SweepConfig, trials: list[Record], table: pd.DataFrame, chosen: str | None, tested: list[Record]
) -> dict[str, Any]:
    """The sweep as one JSON object; accuracies in percent, null for what is not known."""
    rows = json.loads(table.to_json(orient="records", double_precision=10))
    return {
        "name": sweep.name,
        "title": sweep.title,
        "method": sweep.search.method,
        "parameters": sweep.parameters,
        "seeds": list(sweep.seeds),
        "trials": len(table),
        "grid": grid_size(sweep.parameters) if sweep.search.method == "grid" else None,
        "runs": len(trials),
        "failed_runs": int(table["failed"].sum()),
        "chosen": chosen,
        "best": {
            "seeds": len(tested),
            "val_accuracy": _percent(mean(tested, "metrics.val.accuracy")),
            "test_accuracy": _percent(mean(tested, "metrics.test.accuracy")),
            "test_reviews": measured(tested[0], "metrics.test.n"),
        }
        if tested
        else None,
        "points": rows,
    }


def _page(
    sweep: SweepConfig,
    trials: list[Record],
    table: pd.DataFrame,
    chosen: str | None,
    tested: list[Record],
    pictures: Mapping[str, Picture],
    problems: list[str],
) -> str:
    parts = [f"# {escape(sweep.title)}", _what(sweep, trials, table), "## The choice", _choice(table, chosen, tested)]
    if pictures:
        parts.append("## Figures")
        parts += [f"![{escape(picture.alt)}](figures/{name}.png)" for name, picture in pictures.items()]
    parts += ["## Points", _ranking(table, list(sweep.parameters), chosen)]
    if problems:
        parts += ["## Left out", "\n".join(f"- {escape(line)}" for line in problems)]
    return "\n\n".join(parts) + "\n"


def _what(sweep: SweepConfig, trials: list[Record], table: pd.DataFrame) -> str:
    """What was tried, on what, and what it cost."""
    search = sweep.search
    how = {
        "grid": f"{len(table)} of the {grid_size(sweep.parameters) if search.method == 'grid' else 0} points of a grid",
        "random": f"{len(table)} points drawn at random (seed {search.seed})",
        "adaptive": f"{len(table)} points proposed by Optuna (sampler {search.sampler}, seed {search.seed})",
    }[search.method]
    first = next((record for record in trials if record.status == "completed"), trials[0])
    sizes = first.data.get("sizes") or {}
    reviews = f"{sizes['train']:,} training and {sizes['val']:,} validation reviews" if sizes else "unknown reviews"
    return (
        f"{how} over {', '.join(sweep.parameters)}, with {_counted(len(sweep.seeds), 'seed')} each; "
        f"{encoder_label(trials)}; {reviews}. "
        f"{_counted(len(trials), 'run')}, {int(table['failed'].sum())} of them failed, "
        f"{table['total_seconds'].sum() / 3600:.2f} hours in all."
    )


def _choice(table: pd.DataFrame, chosen: str | None, tested: list[Record]) -> str:
    if chosen is None:
        return "No point has all its runs completed, so none is chosen."
    row = table[table["point"] == chosen].iloc[0]
    lines = (
        f"**{escape(chosen)}** has the best mean validation accuracy, {row['val_accuracy']:.2f}%, of {len(table)} "
        "points; of equals, the one that trains the fewest parameters is taken. No point's test reviews were scored "
        "for the choice. The best of many is flattered by chance, so its validation accuracy is no estimate."
    )
    accuracy, reviews = mean(tested, "metrics.test.accuracy"), measured(tested[0], "metrics.test.n") if tested else None
    if accuracy is None or reviews is None:
        return f"{lines} Its test has not been completed."
    return (
        f"{lines}\n\nTrained again and then tested once, it has a test accuracy of **{100 * accuracy:.2f}%** on "
        f"{reviews:,.0f} reviews ({_counted(len(tested), 'seed')}; experiment `{BEST}`), after {len(table)} trials."
    )


def _ranking(table: pd.DataFrame, parameters: list[str], chosen: str | None) -> str:
    shown = table.head(SHOWN).copy()
    shown["point"] = [f"{name} (chosen)" if name == chosen else name for name in shown["point"]]
    for name in parameters:  # two decimals would hide a learning rate
        shown[name] = [f"{value:g}" if isinstance(value, int | float) else value for value in shown[name]]
    rest = f"The best {SHOWN} of {len(table)}; all are in [sweep.csv](sweep.csv).\n\n" if len(table) > SHOWN else ""
    names = {
        "val_accuracy": "validation accuracy (%)",
        "val_spread": "spread over seeds",
        "failed": "failed runs",
        "trainable": "trainable parameters",
        "train_seconds": "training (s)",
        "total_seconds": "all runs (s)",
    }
    return rest + markdown_table(shown.rename(columns=names))


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
