"""Drawings of a sweep: validation accuracy by parameter, and against size.

They are our own: in `optuna.visualization.matplotlib` the names of layers overlap each other and the colour bar, and
its functions need pyplot and warn at every call that they are experimental. What else it draws, such as parallel
coordinates, can be drawn from sweep.csv.

Every function takes a table of trials (`lora_study.evidence.trials`) and an Axes, draws, and returns the Axes.
"""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, NullFormatter

from lora_study.evidence.trials import pareto_front
from lora_study.report.plots import BELOW, COLOURS, GREY, PAPER

ACCURACY = "validation accuracy (%)"
FEW = 8  # values that are spaced evenly, in their order; more numbers are placed by value


def effect(table: pd.DataFrame, parameter: str, ax: Axes) -> Axes:
    """Validation accuracy of all settings by their value of a parameter, and the mean at each of few values."""
    values = table[parameter]
    distinct = sorted(values.unique())
    if pd.api.types.is_numeric_dtype(values) and len(distinct) > FEW:
        places = values
        if distinct[0] > 0 and distinct[-1] / distinct[0] > 20:
            ax.set_xscale("log")
            ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    else:
        places = values.map({value: place for place, value in enumerate(distinct)})
        means = table["val_accuracy"].groupby(places).mean()
        ax.plot(means.index, means, "-", color=COLOURS[1])
        labels = [value if isinstance(value, str) else f"{value:g}" for value in distinct]
        slanted: dict[str, Any] = {"rotation": 40, "ha": "right", "rotation_mode": "anchor", "fontsize": 8}
        ax.set_xticks(range(len(distinct)), labels, **(slanted if max(map(len, labels)) > 8 else {}))
    ax.scatter(places, table["val_accuracy"], color=COLOURS[0], s=18, alpha=0.6, linewidth=0)
    ax.set(xlabel=parameter, ylabel=ACCURACY)
    ax.set_title(f"Validation accuracy by {parameter}")
    return ax


def pareto(table: pd.DataFrame, chosen: str | None, ax: Axes) -> Axes:
    """Validation accuracy against trainable parameters: all settings, and those that no setting as small beats."""
    known = table.dropna(subset=["trainable"])
    front = pareto_front(known)
    ax.plot(known["trainable"], known["val_accuracy"], "o", color=GREY, markersize=4, alpha=0.5, label="tried")
    ax.plot(front["trainable"], front["val_accuracy"], "o-", color=COLOURS[0], label="best with as few parameters")
    best = known[known["trial"] == chosen]
    ax.plot(best["trainable"], best["val_accuracy"], "D", color=COLOURS[1], mfc=PAPER, markersize=10, label="chosen")
    if known["trainable"].max() >= 10 * known["trainable"].min():
        ax.set_xscale("log")
        ax.xaxis.set_minor_formatter(NullFormatter())
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.set(xlabel="trainable parameters", ylabel=ACCURACY)
    ax.set_title("Validation accuracy against trainable parameters")
    ax.legend(**BELOW, ncols=3)
    return ax
