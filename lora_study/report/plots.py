"""Drawings of a study. Every function takes data and Axes, draws, and returns the Axes.

`draw` makes the figure around one of them and returns its bytes. It uses neither pyplot nor the user's
matplotlibrc, so there is nothing to close, nothing global changes, and the same data give the same bytes.
"""

import io
import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import matplotlib.style
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lora_study.evidence.predictions import Reliability
from lora_study.evidence.reported import Reported
from lora_study.evidence.summary import rows_of

# Okabe and Ito's colours (https://jfly.uni-koeln.de/color/), without yellow, which is too pale for lines on white.
INK, GREY, GRID, PAPER = "#262626", "#595959", "#e4e4e4", "#ffffff"  # the page gives these its own colours
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", INK)
DASHES = ("-", "--", ":")  # for lines that share a colour
MARKERS = ("o", "s", "^", "v", "P", "X", "*")
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
WIDTH = 5.2  # inches; on a phone the words of a wider figure are too small
SMOOTH = 5  # logged losses in a running mean


def draw(
    plot: Callable[..., object], width: float = WIDTH, height: float = 4.2, panels: int = 0, sharex: bool = True
) -> dict[str, bytes]:
    """The figure that a plot draws.

    Args:
        plot: What to draw; takes an Axes, or with panels a list of them.
        width: In inches.
        height: In inches.
        panels: Number of panels, two side by side, on one scale; 0 for a single Axes.
        sharex: Whether the panels' scale from left to right is one, too.

    Returns:
        {'png': bytes, 'svg': bytes}.
    """
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(width, height), layout="constrained")
        if panels:
            rows, columns = math.ceil(panels / 2), min(panels, 2)
            axes = figure.subplots(rows, columns, sharex=sharex, sharey=True, squeeze=False).flatten()
            for unused in axes[panels:]:
                unused.set_axis_off()
            plot(list(axes[:panels]))
        else:
            plot(figure.subplots())
        return {
            "png": _bytes(figure, "png", dpi=160, metadata={"Software": None}),
            "svg": _bytes(figure, "svg", metadata={"Date": None, "Creator": None}),
        }


def seeds(
    ours: Mapping[str, Sequence[float]],
    published: Mapping[str, Sequence[float]],
    reported: Reported,
    encoder: str,
    ax: Axes,
) -> Axes:
    """Test accuracy of every run: a dot per seed, beside the reported number and the published runs.

    Args:
        ours: Test accuracies (percent) by experiment, from top to bottom.
        published: Those of the published copy of the study.
        reported: The reported rows.
        encoder: Which encoder was run, for the legend.
        ax: Where to draw.
    """
    for y, name in enumerate(ours):
        ax.plot(ours[name], [y - 0.14] * len(ours[name]), "o", color=COLOURS[0], alpha=0.8, markersize=7)
        others = published.get(name, [])
        ax.plot(others, [y] * len(others), "s", color=GREY, mfc=PAPER, markersize=5)
        if name in reported.rows:
            ax.plot(reported.rows[name].test, y + 0.14, "D", color=COLOURS[1], mfc=PAPER, markersize=7)
    ax.plot([], [], "o", color=COLOURS[0], label=textwrap.fill(f"here, a dot per seed; {encoder}", 60))
    if published:
        ax.plot([], [], "s", color=GREY, mfc=PAPER, markersize=5, label="published runs of this study")
    if any(name in reported.rows for name in ours):
        ax.plot([], [], "D", color=COLOURS[1], mfc=PAPER, label=f"the article, one seed; {reported.encoder}")
    ax.set_yticks(range(len(ours)), list(ours))
    ax.set_ylim(len(ours) - 0.4, -0.6)  # the first experiment on top
    ax.grid(axis="y", visible=False)
    ax.margins(x=0.08)
    ax.set(xlabel="test accuracy (%)")
    ax.legend(**BELOW, ncols=1)
    return ax


def losses(curves: Mapping[str, pd.DataFrame], guess: float, encoder: str, axes: Sequence[Axes]) -> Sequence[Axes]:
    """Training loss by step: a panel per experiment, with a thin line per seed as logged and its running mean thick.

    Args:
        curves: For each experiment the rows of its runs' ``curves.csv`` and their seed.
        guess: The loss of a run that guesses.
        encoder: Which encoder was run, for the title.
        axes: Where to draw, one for each experiment.
    """
    seeds_run = sorted({int(seed) for rows in curves.values() for seed in rows["seed"].unique()})
    styles = {seed: (COLOURS[i % len(COLOURS)], DASHES[i // len(COLOURS) % 3]) for i, seed in enumerate(seeds_run)}
    for ax, (name, rows) in zip(axes, curves.items(), strict=True):
        for seed in sorted(rows["seed"].unique()):
            run = rows[(rows["seed"] == seed) & rows["train_loss"].notna()]
            colour, dashes = styles[seed]
            ax.plot(run["step"], run["train_loss"], color=colour, linewidth=0.7, alpha=0.4)
            ax.plot(run["step"], running_mean(run), dashes, color=colour, linewidth=1.6, label=f"seed {seed:g}")
        ax.axhline(guess, color=GREY, linestyle="--", linewidth=1, label=f"guessing ({guess:.2f})")
        ax.set_title(name, fontsize=9.5, pad=5)
    for ax in axes[-2:]:
        ax.tick_params(labelbottom=True)
        ax.set_xlabel("optimizer step")
    for ax in axes[::2]:
        ax.set_ylabel("training loss")
    axes[0].set_ylim(bottom=0)
    found: dict[Any, Any] = {}
    for ax in axes:
        found |= {label: handle for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure = axes[0].get_figure(root=True)
    assert figure is not None, "the Axes was removed from its figure"
    figure.legend(
        found.values(), found.keys(), loc="outside lower center", ncols=4, handlelength=1.5, columnspacing=1.2
    )
    figure.suptitle(_title("Training loss by step", encoder), x=0.02, ha="left", fontsize=10.5)
    return axes


def running_mean(run: pd.DataFrame) -> pd.Series:
    """The running mean of one run's logged training losses."""
    return run["train_loss"].rolling(SMOOTH, min_periods=1).mean()


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
        dashes, place = DASHES[index // len(COLOURS) % 3], index % len(COLOURS)
        ax.plot(each.predicted, each.observed, dashes, color=COLOURS[place], marker=MARKERS[place], label=label)
    ax.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xlabel="predicted probability of positive")
    ax.xaxis.set_major_locator(MaxNLocator(6))
    ax.set(ylabel="share of positive")
    ax.set_title(_title("Calibration on the test reviews", encoder))
    if found:
        ax.legend(**BELOW, ncols=calibration_columns(found))
    return ax


def calibration_columns(names: Iterable[str]) -> int:
    """Columns of the legend of `calibration`: long names side by side would push the drawing out of the figure."""
    return 1 if max(map(len, names)) > 18 else 2


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
        note.set_bbox({"facecolor": PAPER, "linewidth": 0, "pad": 1.0})  # so that the line at 1 crosses no number
    ax.axvline(1, color=GREY, linestyle="--", linewidth=1)
    ax.set_yticks(range(len(names)), [textwrap.fill(name, 22) for name in names])
    ax.set_ylim(len(names) - 0.4, -0.6)  # the first row on top
    ax.set_xlim(0, 1.12 * max(1, found["high"].max()))
    ax.grid(axis="y", visible=False)
    ax.set(xlabel="times as many reviews per second (dashed: as many)")
    ax.set_title(_title(textwrap.fill(title, 54), encoder))  # a machine's name may be long
    ax.legend(**BELOW, ncols=2)
    return ax


def _title(what: str, encoder: str) -> str:
    return f"{what}\n{encoder}"


def _bytes(figure: Figure, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=format, **options)
    return buffer.getvalue()
