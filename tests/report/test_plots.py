"""Figures: they show the numbers they are given, name the encoder, and are the same every time."""

import io
from functools import partial
from itertools import combinations

import matplotlib
import numpy as np
import pandas as pd
import pytest
from fabricate import curves, failed, record
from matplotlib.figure import Figure

from lora_study.evidence.predictions import Reliability
from lora_study.evidence.reported import load_reported
from lora_study.evidence.summary import summary_table
from lora_study.report import plots

REPORTED = load_reported()
ENCODER = "stand-in encoder: all-MiniLM-L6-v2"
RATIOS = pd.DataFrame(
    [("LoRA", "PEFT", 2.0, 1.5, 2.25), ("LoRA", "script", 1.75, 1.75, 1.75), ("full, $x_{$", "PEFT", 0.5, 0.25, 1.0)],
    columns=["row", "over", "ratio", "low", "high"],
)
NAMES = ("last_two_layers", "lora_default", "lora_best", "full")


@pytest.fixture(scope="module")
def summary():
    accuracies = (0.69, 0.78, 0.802, 0.808)
    return summary_table([record(name, 1, test) for name, test in zip(NAMES, accuracies, strict=True)], REPORTED.rows)


@pytest.fixture
def ax():
    return Figure(figsize=(6.2, 4.4), layout="constrained").add_subplot()


@pytest.fixture(scope="module")
def histories():
    return {name: history(0.02 * i) for i, name in enumerate(NAMES)}


def history(shift, seed=1):
    return pd.read_csv(io.StringIO(curves(shift))).assign(seed=seed)


def drawn_points(ax):
    return {(float(x), float(y)) for line in ax.lines for x, y in zip(*line.get_data(), strict=True)}


def all_plots(summary, histories):
    return {
        "trainable": partial(plots.accuracy_by_trainable, summary, REPORTED, ENCODER),
        "reported": partial(plots.ours_and_reported, summary, REPORTED, ENCODER),
        "loss": partial(plots.learning_curves, histories, "train_loss", ENCODER),
        "val": partial(plots.learning_curves, histories, "val_accuracy", ENCODER),
        "layers": partial(plots.layerwise, summary, REPORTED.layerwise, ENCODER),
        "calibration": partial(plots.calibration, {}, ENCODER),
        "ratios": partial(plots.ratios, RATIOS, "Speed", ENCODER),
    }


def test_every_plot_returns_its_axes_and_names_the_encoder(summary, histories):
    for plot in all_plots(summary, histories).values():
        ax = Figure().add_subplot()
        assert plot(ax) is ax
        assert ENCODER in ax.get_title(loc="left") + ax.get_title()
        assert ax.get_xlabel()


def test_the_same_data_give_the_same_bytes_and_leave_matplotlib_alone(summary, histories):
    before = dict(matplotlib.rcParams)
    for plot in all_plots(summary, histories).values():
        first = plots.draw(plot)
        with matplotlib.rc_context({"font.size": 30, "lines.linewidth": 9}):  # a user's own settings
            assert plots.draw(plot) == first
        assert first["png"].startswith(b"\x89PNG") and b"Matplotlib" not in first["png"]
        assert b"<svg" in first["svg"] and b"<dc:date>" not in first["svg"]
    assert dict(matplotlib.rcParams) == before


def test_accuracy_by_trainable_shows_ours_and_reported(summary, ax):
    plots.accuracy_by_trainable(summary, REPORTED, ENCODER, ax)
    points = drawn_points(ax)
    assert ax.get_xscale() == "log"
    assert {(row.trainable, row.test_accuracy) for row in summary.itertuples()} <= points
    assert {(row.trainable, row.test) for row in REPORTED.rows.values()} <= points
    assert "reported, distilbert-base-uncased" in [text.get_text() for text in ax.get_legend().get_texts()]


def test_names_of_points_do_not_overlap(summary, ax):
    plots.accuracy_by_trainable(summary, REPORTED, ENCODER, ax)
    ax.figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in ax.texts]
    assert sorted(text.get_text() for text in ax.texts) == sorted(2 * NAMES)
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    frame = ax.get_window_extent()
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes)


def test_ours_and_reported_has_a_row_per_experiment(summary, ax):
    plots.ours_and_reported(summary, REPORTED, ENCODER, ax)
    assert [label.get_text() for label in ax.get_yticklabels()] == list(NAMES)
    accuracies = {round(x, 2) for x, _ in drawn_points(ax)}
    assert {69.0, 78.0, 80.2, 80.8, 86.22, 89.44, 92.39, 92.31} <= accuracies
    assert "published run" not in [text.get_text() for text in ax.get_legend().get_texts()]


def test_published_run_is_drawn_where_there_is_one(ax):
    summary = summary_table([record()], REPORTED.rows, published=[record(test=0.75)])
    plots.ours_and_reported(summary, REPORTED, ENCODER, ax)
    assert 75.0 in {round(x, 2) for x, _ in drawn_points(ax)}
    assert "published run" in [text.get_text() for text in ax.get_legend().get_texts()]


def test_learning_curves_are_means_over_seeds_in_a_band_of_their_range(ax):
    both = pd.concat([history(0.02, seed=1), history(0.06, seed=2)])
    one = history(0.0)
    plots.learning_curves({"both": both, "one": one, "nothing": pd.DataFrame()}, "val_accuracy", ENCODER, ax)
    assert [line.get_label() for line in ax.lines] == ["both", "one"]
    expected = [100 * (0.6 + 0.06 * epoch - 0.04) for epoch in (1, 2, 3)]
    np.testing.assert_allclose(ax.lines[0].get_data(), [[1, 2, 3], expected])
    (band,) = ax.collections
    heights = band.get_paths()[0].vertices[:, 1]
    np.testing.assert_allclose([heights.min(), heights.max()], [expected[0] - 2, expected[2] + 2])
    assert "range over seeds" in ax.get_title(loc="left") + ax.get_title()


def test_layerwise_puts_ours_over_the_reported_row(ax):
    rows = {name: REPORTED.rows[name] for name in NAMES}
    summary = summary_table([record("full", test=0.8), record("lora_best", test=0.7)], rows)
    plots.layerwise(summary, rows, ENCODER, ax)
    assert {(2.0, 70.0), (3.0, 80.0), (0.0, 86.22), (3.0, 92.31)} <= drawn_points(ax)
    assert [label.get_text() for label in ax.get_xticklabels()] == list(NAMES)


def test_calibration_draws_each_bin_and_the_error_of_each_experiment(ax):
    found = Reliability(np.array([0.2, 0.9]), np.array([0.1, 0.7]), np.array([3, 1]), 0.125)
    other = Reliability(np.array([0.4]), np.array([0.6]), np.array([4]), 0.2)
    plots.calibration({"full": found, "lora_best": other}, ENCODER, ax)
    lines = {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in ax.lines[1:]}
    assert lines == {"full, error 12.5 points": [(0.2, 0.1), (0.9, 0.7)], "lora_best, error 20.0 points": [(0.4, 0.6)]}


def test_ratios_are_bars_with_their_range_and_a_line_at_one(ax):
    plots.ratios(RATIOS, "Speed", ENCODER, ax)
    bars = {(bar.get_width(), round(bar.get_y() + bar.get_height() / 2, 2)) for bar in ax.patches}
    assert bars == {(2.0, -0.2), (1.75, 0.2), (0.5, 1.0)}  # those of a row stand together around its name
    whiskers = {tuple(path.vertices[:, 0]) for lines in ax.collections for path in lines.get_paths()}
    assert whiskers == {(1.5, 2.25), (1.75, 1.75), (0.25, 1.0)}
    assert [
        list(line.get_xdata()) for line in ax.lines if len(line.get_xdata()) == 2 and line.get_linestyle() == "--"
    ] == [[1, 1]]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["LoRA", "full, $x_{$"]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["over PEFT", "over script"]


@pytest.mark.parametrize("runs", [[], [failed("full")]])
def test_plots_without_results_are_empty_but_drawn(runs):
    summary = summary_table(runs, REPORTED.rows)
    for plot in all_plots(summary, {"full": pd.DataFrame()}).values():
        assert plots.draw(plot)["png"]
