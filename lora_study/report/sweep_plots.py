"""Drawings of a sweep: validation accuracy by parameter, as a heat map, against size, and as parallel coordinates.

Every function takes a table of points (`lora_study.points`) and an Axes, draws, and returns the Axes.
"""

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Rectangle
from matplotlib.ticker import EngFormatter, NullFormatter

from lora_study.points import importance, pareto_front
from lora_study.report.plots import BELOW, COLOURS, GREY, PAPER

ACCURACY = "validation accuracy (%)"
# From the worst point to the best; the ends differ in lightness too, for those who see colours differently.
SCALE = LinearSegmentedColormap.from_list("accuracy", ["#cfd8dc", COLOURS[4], COLOURS[0], "#00233a"])


def effect(table: pd.DataFrame, parameter: str, ax: Axes) -> Axes:
    """Every point's validation accuracy by its value of a parameter, and the mean at each of few values."""
    known = table.dropna(subset=["val_accuracy"])
    places, ticks = _places(known[parameter])
    ax.scatter(places, known["val_accuracy"], color=COLOURS[0], s=18, alpha=0.6, linewidth=0)
    means = known["val_accuracy"].groupby(places.to_numpy()).mean()
    if len(means) == len(ticks):
        ax.plot(means.index, means, "-", color=COLOURS[1])
    _label_ticks(ax, ticks)
    share = importance(table, parameter)
    ax.set(xlabel=parameter, ylabel=ACCURACY)
    beside = "" if share is None else f"\n{100 * share:.0f}% of the variance lies between its values"
    ax.set_title(f"Validation accuracy by {parameter}{beside}")
    return ax


def heat_map(table: pd.DataFrame, rows: str, columns: str, ax: Axes) -> Axes:
    """Mean validation accuracy over the points with each pair of two parameters' values."""
    cells = table.pivot_table("val_accuracy", rows, columns, aggfunc="mean")
    low, high = _range(table)
    for (y, x), value in np.ndenumerate(cells.to_numpy()):
        if np.isnan(value):
            continue
        shade = (value - low) / (high - low)
        ax.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, color=SCALE(shade), linewidth=0))
        # The words in a colour that is readable on the patch, on a light page and on a dark one.
        ax.text(x, y, f"{value:.1f}", ha="center", va="center", color="white" if shade > 0.5 else "black", fontsize=8.5)
    ax.set(xlim=(-0.5, cells.shape[1] - 0.5), ylim=(-0.5, cells.shape[0] - 0.5), xlabel=columns, ylabel=rows)
    ax.set_xticks(range(cells.shape[1]), [_text(value) for value in cells.columns])
    ax.set_yticks(range(cells.shape[0]), [_text(value) for value in cells.index])
    ax.tick_params(length=0)
    ax.grid(visible=False)
    ax.set_title(f"Mean {ACCURACY} of the points at each {columns} and {rows}")
    return ax


def pareto(table: pd.DataFrame, chosen: str | None, ax: Axes) -> Axes:
    """Validation accuracy against trainable parameters: all points, and those that none beats with as few."""
    known = table.dropna(subset=["val_accuracy", "trainable"])
    front = pareto_front(known)
    ax.plot(known["trainable"], known["val_accuracy"], "o", color=GREY, markersize=4, alpha=0.5, label="point")
    ax.plot(front["trainable"], front["val_accuracy"], "o-", color=COLOURS[0], label="best with as few parameters")
    best = known[known["point"] == chosen]
    ax.plot(best["trainable"], best["val_accuracy"], "D", color=COLOURS[1], mfc=PAPER, markersize=10, label="chosen")
    if known["trainable"].max() >= 10 * known["trainable"].min():
        ax.set_xscale("log")
        ax.xaxis.set_minor_formatter(NullFormatter())
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.set(xlabel="trainable parameters", ylabel=ACCURACY)
    ax.set_title("Validation accuracy against trainable parameters")
    ax.legend(**BELOW, ncols=3)
    return ax


def parallel(table: pd.DataFrame, parameters: list[str], ax: Axes) -> Axes:
    """One line per point through its value of each parameter, to its validation accuracy; the better, the darker."""
    known = table.dropna(subset=["val_accuracy"]).sort_values("val_accuracy")
    low, high = _range(known)
    words = [name for name in parameters if not pd.api.types.is_numeric_dtype(known[name])]
    parameters = words + [name for name in parameters if name not in words]  # long labels have room on the left
    heights = []
    for axis, parameter in enumerate(parameters):
        places, ticks = _places(known[parameter])
        bottom, size = places.min(), max(places.max() - places.min(), 1e-12)
        heights.append((places - bottom) / size)
        for place, text in ticks.items():
            label = ax.text(axis - 0.03, (place - bottom) / size, text, ha="right", va="center", fontsize=8, zorder=3)
            if axis > 0:
                label.set_bbox({"facecolor": PAPER, "alpha": 0.8, "linewidth": 0, "pad": 1.0})
    shades = (known["val_accuracy"] - low) / (high - low)
    for line, shade in zip(np.column_stack([*heights, shades]), shades, strict=True):
        ax.plot(range(len(line)), line, color=SCALE(shade), linewidth=0.8 + 1.2 * shade, alpha=0.75)
    for share in (0.0, 0.5, 1.0):
        ax.text(len(parameters) + 0.02, share, f"{low + share * (high - low):.1f}", ha="left", va="center", fontsize=8)
    ax.set_xticks(range(len(parameters) + 1), [*parameters, "validation\naccuracy (%)"])
    ax.set(xlim=(-1.4 if words else -0.4, len(parameters) + 0.3), ylim=(-0.04, 1.04), yticks=[])
    ax.spines["left"].set_visible(False)
    ax.set_title("Every point, from its settings to its validation accuracy (the darker, the better)")
    return ax


def _places(values: pd.Series) -> tuple[pd.Series, dict[float, str]]:
    """Where values stand on an axis, and its ticks.

    Few values stand at equal distances in their order; many numbers at their logarithm if they are of several orders
    of magnitude, or as they are.
    """
    distinct = sorted(values.dropna().unique())
    if len(distinct) <= 8 or not pd.api.types.is_numeric_dtype(values):
        order = {value: float(index) for index, value in enumerate(distinct)}
        return values.map(order).astype("float64"), {place: _text(value) for value, place in order.items()}
    numbers = values.astype("float64")
    logarithmic = numbers.min() > 0 and numbers.max() / numbers.min() > 20
    places: pd.Series = numbers.map(math.log10) if logarithmic else numbers
    ends = np.linspace(places.min(), places.max(), 4)
    return places, {float(end): f"{10**end if logarithmic else end:.2g}" for end in ends}


def _label_ticks(ax: Axes, ticks: dict[float, str]) -> None:
    longest = max((len(text) for text in ticks.values()), default=0)
    if longest > 8:
        ax.set_xticks(list(ticks), list(ticks.values()), rotation=40, ha="right", rotation_mode="anchor", fontsize=8)
    else:
        ax.set_xticks(list(ticks), list(ticks.values()))


def _range(table: pd.DataFrame) -> tuple[float, float]:
    """The lowest and highest validation accuracy, never the same."""
    low, high = float(table["val_accuracy"].min()), float(table["val_accuracy"].max())
    return low, high if high > low else low + 1.0


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, int | float | np.number) else str(value)
