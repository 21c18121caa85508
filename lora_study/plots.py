"""Figures of a study. Every function takes data and an Axes, draws, and returns the Axes.

`draw` makes the figure around one of them and returns its bytes. It uses neither pyplot nor the user's
matplotlibrc, so there is nothing to close, nothing global changes, and the same data give the same bytes.
"""

import io
import math
from collections.abc import Callable, Mapping
from typing import Any

import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, NullFormatter
from matplotlib.transforms import Bbox

from lora_study.reported import Reported
from lora_study.tables import interval, rows_of

# Okabe and Ito's colours (https://jfly.uni-koeln.de/color/), without yellow, which is too pale for lines on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "v", "P", "X", "*")
GREY = "#595959"
INK = "#262626"
POINT: dict[str, Any] = {"capsize": 3, "markersize": 7}
# A legend under the label of the x axis, a fixed number of lines away from the axis.
BELOW: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.45, 0), "borderaxespad": 4.2}
STYLE = {
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
    "grid.color": "#e4e4e4",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "svg.hashsalt": "lora-study",
}


def draw(plot: Callable[[Axes], object], width: float = 6.2, height: float = 4.2) -> dict[str, bytes]:
    """The figure that ``plot`` draws on an Axes, as {'png': bytes, 'svg': bytes}; width and height in inches."""
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(width, height), layout="constrained")
        plot(figure.add_subplot())
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
            ax.plot(theirs.trainable, theirs.test, "D", color=colour, markerfacecolor="white", markersize=7)
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
            low, high = interval(theirs.test / 100, reported.test_reviews)
            error = [[theirs.test - 100 * (low or 0)], [100 * (high or 1) - theirs.test]]
            ax.errorbar(theirs.test, y + 0.13, xerr=error, fmt="D", color=COLOURS[1], mfc="white", **POINT)
    ax.set_yticks(range(len(summary)), summary["experiment"])
    ax.set_ylim(len(summary) - 0.4, -0.6)  # the first experiment on top
    ax.grid(axis="y", visible=False)
    ax.set(xlabel="test accuracy (%), with 95% interval")
    ax.set_title(_title("Test accuracy beside the reported one", encoder))
    _legend(ax, reported, published=bool(summary["published_test_accuracy"].notna().any()), by_colour=True)
    return ax


def learning_curves(curves: Mapping[str, pd.DataFrame], column: str, encoder: str, ax: Axes) -> Axes:
    """One line per experiment: a quantity per epoch, the mean over its rows of that epoch and over seeds.

    Args:
        curves: For each experiment the rows of its runs' ``curves.csv``; an empty frame only keeps a colour.
        column: 'train_loss', or 'val_accuracy' (a fraction there, in percent here).
        encoder: Which encoder was run, for the title.
        ax: Where to draw.
    """
    is_accuracy = column == "val_accuracy"
    for index, (name, rows) in enumerate(curves.items()):
        if rows.empty:
            continue
        values = rows.dropna(subset=[column]).groupby("epoch")[column].mean() * (100 if is_accuracy else 1)
        ax.plot(
            values.index,
            values.to_numpy(),
            color=COLOURS[index % len(COLOURS)],
            marker=MARKERS[index % len(MARKERS)],
            linestyle=("-", "--", ":")[index // len(COLOURS) % 3],
            label=name,
        )
    what, unit = ("Validation accuracy", " (%)") if is_accuracy else ("Training loss", "")
    ax.margins(x=0.1)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.set(xlabel="epoch", ylabel=what.lower() + unit)
    ax.set_title(_title(f"{what} per epoch", encoder))
    if ax.lines:
        ax.legend(**BELOW, ncols=2)
    return ax


def bars(summary: pd.DataFrame, column: str, label: str, title: str, encoder: str, ax: Axes) -> Axes:
    """One bar per experiment and its mode, with the value at its end, or 'not measured'.

    Args:
        summary: `tables.summary_table`.
        column: The column to show, such as 'train_seconds'.
        label: Label of the axis, with the unit.
        title: What is shown.
        encoder: Which encoder was run, for the title.
        ax: Where to draw.
    """
    for y, (row, colour) in enumerate(_coloured(summary)):
        value = getattr(row, column)
        missing = pd.isna(value)
        ax.barh(y, 0 if missing else value, color=colour, height=0.62)
        text = "not measured" if missing else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
        ax.annotate(text, (0 if missing else value, y), (5, 0), textcoords="offset points", va="center")
    ax.set_yticks(range(len(summary)), [f"{row.experiment}\n({row.mode})" for row in rows_of(summary)])
    ax.set_ylim(len(summary) - 0.4, -0.6)
    largest = summary[column].max()
    ax.set_xlim(0, 1 if pd.isna(largest) or largest <= 0 else 1.16 * largest)
    ax.xaxis.set_major_formatter("{x:,.6g}")
    ax.grid(axis="y", visible=False)
    ax.set(xlabel=label)
    ax.set_title(_title(title, encoder))
    return ax


def _coloured(summary: pd.DataFrame) -> list[tuple[Any, str]]:
    """The rows with a colour each, the same in every figure."""
    return [(row, COLOURS[index % len(COLOURS)]) for index, row in enumerate(rows_of(summary))]


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
    ax.plot([], [], "D", color=theirs, markerfacecolor="white", label=f"reported, {reported.encoder}")
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
