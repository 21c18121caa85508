"""Drawings of a study. Every function takes data and an Axes, draws, and returns the Axes.

`draw` makes the figure around one of them and returns its bytes. It uses neither pyplot nor the user's
matplotlibrc, so there is nothing to close, nothing global changes, and the same data give the same bytes.
"""

import io
import math
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, NullFormatter
from matplotlib.transforms import Bbox

from lora_study.evidence.predictions import Reliability
from lora_study.evidence.reported import Reported, ReportedRow
from lora_study.evidence.statistics import wilson
from lora_study.evidence.summary import rows_of

# Okabe and Ito's colours (https://jfly.uni-koeln.de/color/), without yellow, which is too pale for lines on white.
INK, GREY, GRID, PAPER = "#262626", "#595959", "#e4e4e4", "#ffffff"  # the page gives these its own colours
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", INK)
MARKERS = ("o", "s", "^", "v", "P", "X", "*")
POINT: dict[str, Any] = {"capsize": 3, "markersize": 7}
# A legend under the label of the x axis, a fixed number of lines away from the axis.
BELOW: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.45, 0), "borderaxespad": 4.2}
STYLE = {
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "axes.titlepad": 10,
    "figure.constrained_layout.h_pad": 0.1,
    "figure.constrained_layout.w_pad": 0.1,
    "font.size": 9.5,
    "grid.color": GRID,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "svg.hashsalt": "lora-study",
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
}


def draw(plot: Callable[[Axes], object], width: float = 6.2, height: float = 4.2) -> dict[str, bytes]:
    """The figure that a plot draws.

    Args:
        plot: What to draw.
        width: In inches.
        height: In inches.

    Returns:
        {'png': bytes, 'svg': bytes}.
    """
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(width, height), layout="constrained")
        plot(figure.subplots())
        return {
            "png": _bytes(figure, "png", dpi=160, metadata={"Software": None}),
            "svg": _bytes(figure, "svg", metadata={"Date": None, "Creator": None}),
        }


def accuracy_by_trainable(summary: pd.DataFrame, reported: Reported, encoder: str, ax: Axes) -> Axes:
    """Test accuracy against trainable parameters: ours with 95% intervals, the reported points hollow.

    Args:
        summary: `tables.summary_table`.
        reported: The reported rows; those of the summary's experiments are drawn.
        encoder: Which encoder was run, for the title.
        ax: Where to draw; the x axis becomes logarithmic.
    """
    points = []
    for row, colour in _coloured(summary):
        theirs = reported.rows.get(row.experiment)
        if not pd.isna(row.test_accuracy) and not pd.isna(row.trainable):
            ax.errorbar(row.trainable, row.test_accuracy, _error(row), fmt="o", color=colour, **POINT)
            low, high = (row.test_low, row.test_high) if not pd.isna(row.test_low) else (row.test_accuracy,) * 2
            points.append((row.trainable, row.test_accuracy, low, high, row.experiment))
        if theirs is not None and theirs.trainable is not None:
            ax.plot(theirs.trainable, theirs.test, "D", color=colour, markerfacecolor=PAPER, markersize=7)
            points.append((theirs.trainable, theirs.test, theirs.test, theirs.test, row.experiment))
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.xaxis.set_minor_formatter(NullFormatter())
    if points:  # whole decades, so that at least two ticks have a label
        decades = [math.log10(x) for x, *_ in points]
        ax.set_xlim(10 ** math.floor(min(decades)), 10 ** (math.floor(max(decades)) + 1))
    ax.margins(y=0.12)
    ax.set(xlabel="trainable parameters", ylabel="test accuracy (%)")
    ax.set_title(_title("Test accuracy against trainable parameters", encoder))
    _legend(ax, reported, published=False)
    _label(ax, points)
    return ax


def ours_and_reported(summary: pd.DataFrame, reported: Reported, encoder: str, ax: Axes) -> Axes:
    """Test accuracy of each experiment: ours and reported with 95% intervals, and the published run's if there is one.

    The arguments are those of `accuracy_by_trainable`.
    """
    for y, row in enumerate(rows_of(summary)):
        theirs = reported.rows.get(row.experiment)
        if not pd.isna(row.test_accuracy):
            ax.errorbar(row.test_accuracy, y - 0.13, xerr=_error(row), fmt="o", color=COLOURS[0], **POINT)
        if not pd.isna(row.published_test_accuracy):
            ax.plot(row.published_test_accuracy, y, "s", color=GREY, markersize=5)
        if theirs is not None:
            low, high = wilson(round(theirs.test / 100 * reported.test_reviews), reported.test_reviews)
            error = [[theirs.test - 100 * low], [100 * high - theirs.test]]
            ax.errorbar(theirs.test, y + 0.13, xerr=error, fmt="D", color=COLOURS[1], mfc=PAPER, **POINT)
    ax.set_yticks(range(len(summary)), summary["experiment"])
    ax.set_ylim(len(summary) - 0.4, -0.6)  # the first experiment on top
    ax.grid(axis="y", visible=False)
    ax.set(xlabel="test accuracy (%), with 95% interval")
    ax.set_title(_title("Test accuracy beside the reported one", encoder))
    _legend(ax, reported, published=bool(summary["published_test_accuracy"].notna().any()), by_colour=True)
    return ax


def learning_curves(curves: Mapping[str, pd.DataFrame], column: str, encoder: str, ax: Axes) -> Axes:
    """One line per experiment: a quantity per epoch, the mean over seeds, with a band from the lowest to the highest.

    Args:
        curves: For each experiment the rows of its runs' ``curves.csv`` and their seed; an empty frame only keeps a
            colour.
        column: 'train_loss', or 'val_accuracy' (a fraction there, in percent here).
        encoder: Which encoder was run, for the title.
        ax: Where to draw.
    """
    is_accuracy = column == "val_accuracy"
    banded = False
    for index, (name, rows) in enumerate(curves.items()):
        if rows.empty or rows[column].isna().all():
            continue
        runs = rows.dropna(subset=[column]).groupby(["epoch", "seed"])[column].mean() * (100 if is_accuracy else 1)
        values = runs.groupby("epoch").agg(["mean", "min", "max"])
        style = _line_style(index)
        ax.plot(values.index, values["mean"], label=name, **style)
        if rows["seed"].nunique() > 1:
            band = {"color": style["color"], "alpha": 0.18, "linewidth": 0}
            ax.fill_between(values.index, values["min"], values["max"], **band)
            banded = True
    what, unit = ("Validation accuracy", " (%)") if is_accuracy else ("Training loss", "")
    ax.margins(x=0.1)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.set(xlabel="epoch", ylabel=what.lower() + unit)
    ax.set_title(_title(f"{what} per epoch{', mean and range over seeds' if banded else ''}", encoder))
    if ax.lines:
        ax.legend(**BELOW, ncols=2)
    return ax


def layerwise(summary: pd.DataFrame, reported: Mapping[str, ReportedRow], encoder: str, ax: Axes) -> Axes:
    """Test accuracy as ever more layers are trained, from the head alone to all: ours with intervals, and reported.

    Args:
        summary: `tables.summary_table`.
        reported: The rows of the layerwise experiment, from the fewest trained layers to all.
        encoder: Which encoder was run, for the title.
        ax: Where to draw.
    """
    ours = [row for name in reported for row in rows_of(summary[summary.experiment == name])]
    ours = [row for row in ours if not pd.isna(row.test_accuracy)]
    places = {name: place for place, name in enumerate(reported)}
    ax.plot(range(len(reported)), [row.test for row in reported.values()], "D--", color=COLOURS[1], mfc=PAPER)
    ax.errorbar(
        [places[row.experiment] for row in ours],
        [row.test_accuracy for row in ours],
        np.hstack([_error(row) for row in ours]) if ours else None,
        fmt="o-",
        color=COLOURS[0],
        **POINT,
    )
    ax.set_xticks(range(len(reported)), list(reported), rotation=30, ha="right", rotation_mode="anchor")
    ax.set(xlabel="trained, from the head alone to every layer", ylabel="test accuracy (%)")
    ax.set_title(_title("Test accuracy as more layers are trained (dashed, hollow: reported)", encoder))
    return ax


def calibration(found: Mapping[str, Reliability], encoder: str, ax: Axes) -> Axes:
    """How often what was called likely came true: a line per experiment, the diagonal is perfect.

    Args:
        found: `predictions.reliability` of each experiment.
        encoder: Which encoder was run, for the title.
        ax: Where to draw.
    """
    ax.plot([0, 1], [0, 1], color=GREY, linewidth=1)
    for index, (name, each) in enumerate(found.items()):
        label = f"{name}, error {100 * each.error:.1f} points"
        ax.plot(each.predicted, each.observed, label=label, **_line_style(index))
    ax.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xlabel="predicted probability of positive")
    ax.set(ylabel="share of positive")
    ax.set_title(_title("Calibration on the test reviews", encoder))
    if found:
        ax.legend(**BELOW, ncols=2)
    return ax


def ratios(found: pd.DataFrame, title: str, encoder: str, ax: Axes) -> Axes:
    """How many times as fast as others: a bar per comparison, whiskers from the lowest to the highest, a line at 1.

    Args:
        found: Columns row (what was done), over (the other one), ratio, low, high; those of a row stand together.
        title: What is shown.
        encoder: Which encoder was run, for the title.
        ax: Where to draw.
    """
    names, others = list(dict.fromkeys(found["row"])), list(dict.fromkeys(found["over"]))
    bars = found.groupby("row")["ratio"]
    thickness = 0.8 / bars.size().max()
    middle = found["row"].map({name: y for y, name in enumerate(names)})
    places = middle + thickness * (bars.cumcount() - (bars.transform("size") - 1) / 2)
    for other, colour in zip(others, COLOURS, strict=False):
        rows = found[found["over"] == other]
        y, ends = places[rows.index], [rows["ratio"] - rows["low"], rows["high"] - rows["ratio"]]
        ax.barh(y, rows["ratio"], 0.9 * thickness, color=colour, label=f"over {other}")
        ax.errorbar(rows["ratio"], y, xerr=ends, fmt="none", ecolor=INK, elinewidth=1, capsize=2.5)
    for row, y in zip(rows_of(found), places, strict=True):
        note = ax.annotate(f"{row.ratio:.2f}", (row.high, y), (5, 0), textcoords="offset points", va="center")
        note.set_bbox({"facecolor": PAPER, "linewidth": 0, "pad": 1.0})  # the line does not cross a number
    ax.axvline(1, color=GREY, linestyle="--", linewidth=1)
    ax.set_yticks(range(len(names)), [textwrap.fill(name, 22) for name in names])
    ax.set_ylim(len(names) - 0.4, -0.6)  # the first row on top
    ax.set_xlim(0, 1.12 * max(1, found["high"].max()))
    ax.grid(axis="y", visible=False)
    ax.set(xlabel="times as many reviews per second (dashed: as many)")
    ax.set_title(_title(title, encoder))
    ax.legend(**BELOW, ncols=2)
    return ax


def _coloured(summary: pd.DataFrame) -> list[tuple[Any, str]]:
    """The rows with a colour each, the same in every figure."""
    return [(row, COLOURS[index % len(COLOURS)]) for index, row in enumerate(rows_of(summary))]


def _line_style(index: int) -> dict[str, Any]:
    """Colour, marker and dashes of the line of an experiment."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": ("-", "--", ":")[index // len(COLOURS) % 3],
    }


def _title(what: str, encoder: str) -> str:
    return f"{what}\n{encoder}"


def _error(row: Any) -> np.ndarray:
    """Distances from the accuracy down and up to the ends of its interval, of shape (2, 1)."""
    return np.array([[row.test_accuracy - row.test_low], [row.test_high - row.test_accuracy]])


def _legend(ax: Axes, reported: Reported, published: bool, by_colour: bool = False) -> None:
    """What the marker shapes mean, below the axis where no point can be."""
    ours, theirs = (COLOURS[0], COLOURS[1]) if by_colour else (GREY, GREY)
    ax.plot([], [], "o", color=ours, label="this run, 95% interval")
    if published:
        ax.plot([], [], "s", color=GREY, markersize=5, label="published run")
    ax.plot([], [], "D", color=theirs, markerfacecolor=PAPER, label=f"reported, {reported.encoder}")
    ax.legend(**BELOW, ncols=3, handletextpad=0.3, columnspacing=1.5)


def _label(ax: Axes, points: list[tuple[float, float, float, float, str]]) -> None:
    """Name each point (x, y, low, high, name) at the first place beside it where the name covers nothing else.

    A point without such a place stays unnamed: among very many points, names on top of each other help nobody.
    """
    figure = ax.get_figure(root=True)
    assert figure is not None, "the Axes was removed from its figure"
    figure.draw_without_rendering()  # settles the layout: positions in pixels are now final
    taken = []
    for x, _, low, high, _ in points:
        (left, bottom), (_, top) = ax.transData.transform([(x, low), (x, high)])
        taken.append(Bbox.from_extents(left - 7, bottom - 7, left + 7, top + 7))
    frame = ax.get_window_extent()
    for x, y, low, high, name in points:
        for anchor, dx, dy in [(y, 9, 0), (y, -9, 0), (high, 0, 13), (low, 0, -13), (high, 9, 5), (low, 9, -5)]:
            side = "left" if dx > 0 else "right" if dx < 0 else "center"
            note = ax.annotate(name, (x, anchor), (dx, dy), textcoords="offset points", color=INK, ha=side, va="center")
            box = note.get_window_extent()
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            if inside and not box.count_overlaps(taken):
                taken.append(box)
                break
            note.remove()


def _bytes(figure: Figure, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=format, **options)
    return buffer.getvalue()
