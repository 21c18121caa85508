"""Figures: they show the numbers they are given, name the encoder, and are the same every time."""

import io
from functools import partial

import matplotlib
import numpy as np
import pandas as pd
import pytest
from fabricate import curves
from matplotlib.figure import Figure
from matplotlib.text import Text

from lora_study.evidence.predictions import Reliability
from lora_study.evidence.reported import load_reported
from lora_study.report import plots

REPORTED = load_reported()
ENCODER = "stand-in encoder: all-MiniLM-L6-v2"
RATIOS = pd.DataFrame(
    [("LoRA", "PEFT", 2.0, 1.5, 2.25), ("LoRA", "script", 1.75, 1.75, 1.75), ("full, $x_{$", "PEFT", 0.5, 0.25, 1.0)],
    columns=["row", "over", "ratio", "low", "high"],
)
ACCURACIES = {"lora_default": [77.0, 79.5], "full": [80.8], "mine": []}
NAMES = ("last_two_layers", "lora_default", "lora_best", "full")


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


def all_plots(histories):
    return {
        "seeds": (partial(plots.seeds, ACCURACIES, {"full": [80.0]}, REPORTED, ENCODER), 0),
        "losses": (partial(plots.losses, histories, 0.69, ENCODER), len(histories)),
        "calibration": (partial(plots.calibration, {}, ENCODER), 0),
        "ratios": (partial(plots.ratios, RATIOS, "Speed", ENCODER), 0),
    }


def test_every_plot_returns_its_axes_and_names_the_encoder_once(histories):
    for plot, panels in all_plots(histories).values():
        figure = Figure(figsize=(6, 4))
        ax = list(figure.subplots(1, panels)) if panels else figure.add_subplot()
        assert plot(ax) is ax
        words = [text.get_text().replace("\n", " ") for text in figure.findobj(Text)]
        assert sum(ENCODER in text for text in words) == 1


def test_the_same_data_give_the_same_bytes_and_leave_matplotlib_alone(histories):
    before = dict(matplotlib.rcParams)
    for plot, panels in all_plots(histories).values():
        first = plots.draw(plot, panels=panels)
        with matplotlib.rc_context({"font.size": 30, "lines.linewidth": 9}):  # a user's own settings
            assert plots.draw(plot, panels=panels) == first
        assert first["png"].startswith(b"\x89PNG") and b"Matplotlib" not in first["png"]
        assert b"<svg" in first["svg"] and b"<dc:date>" not in first["svg"]
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(("sharex", "ends"), [(True, (2000, 2000)), (False, (2000, 300))])
def test_panels_share_the_scale_from_left_to_right_where_that_is_asked_for(sharex, ends):
    found = []

    def two(axes):
        for ax, last in zip(axes, (2000, 300), strict=True):
            ax.plot([0, last], [0.7, 0.3])
        found.extend(ax.get_xlim()[1] for ax in axes)

    plots.draw(two, panels=2, sharex=sharex)
    assert found == pytest.approx(ends, rel=0.1)


def test_every_seed_has_a_dot_beside_the_article_s_number(ax):
    plots.seeds(ACCURACIES, {}, REPORTED, ENCODER, ax)
    assert [label.get_text() for label in ax.get_yticklabels()] == list(ACCURACIES)
    dots = {(x, round(y)) for x, y in drawn_points(ax)}
    assert dots == {(77.0, 0), (79.5, 0), (89.44, 0), (80.8, 1), (92.31, 1)}
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == [f"here, a dot per seed; {ENCODER}", "the article, one seed; distilbert-base-uncased"]


def test_the_legend_names_the_article_only_where_a_row_of_its_is_drawn(ax):
    plots.seeds({"mine": [77.0]}, {}, REPORTED, ENCODER, ax)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [f"here, a dot per seed; {ENCODER}"]


def test_published_runs_are_drawn_where_there_are_some(ax):
    plots.seeds(ACCURACIES, {"full": [75.0]}, REPORTED, ENCODER, ax)
    assert (75.0, 1.0) in drawn_points(ax)
    assert "published runs of this study" in [text.get_text() for text in ax.get_legend().get_texts()]


def test_losses_are_a_line_per_seed_and_their_running_mean():
    both = pd.concat([history(0.02, seed=1), history(0.06, seed=2)])
    axes = list(Figure().subplots(1, 2))
    plots.losses({"both": both, "one": history(0.0, seed=2)}, 0.5, ENCODER, axes)
    assert [list(ax.lines[-1].get_ydata()) for ax in axes] == [[0.5, 0.5]] * 2
    assert [ax.get_title(loc="center") + ax.get_title(loc="left") for ax in axes] == ["both", "one"]
    lines = [[line for line in ax.lines if len(line.get_xdata()) > 2] for ax in axes]
    assert [len(found) for found in lines] == [4, 2]
    first = both[both["seed"] == 1].dropna(subset=["train_loss"])
    np.testing.assert_allclose(lines[0][0].get_data(), [first["step"], first["train_loss"]])
    smooth = [first["train_loss"].iloc[max(0, i - 4) : i + 1].mean() for i in range(len(first))]
    np.testing.assert_allclose(lines[0][1].get_ydata(), smooth)
    assert lines[1][0].get_color() == lines[0][2].get_color() != lines[0][0].get_color()  # seed 2 in both


def test_calibration_draws_each_bin_and_the_error_of_each_experiment(ax):
    found = Reliability(np.array([0.2, 0.9]), np.array([0.1, 0.7]), np.array([3, 1]), 0.125)
    other = Reliability(np.array([0.4]), np.array([0.6]), np.array([4]), 0.2)
    plots.calibration({"full": found, "lora_best": other}, ENCODER, ax)
    lines = {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in ax.lines[1:]}
    assert lines == {"full, error 12.5 points": [(0.2, 0.1), (0.9, 0.7)], "lora_best, error 20.0 points": [(0.4, 0.6)]}


@pytest.mark.parametrize("name", ["full", "layerwise_classifier", "lora_default_head_trained"])
def test_the_words_of_calibration_stay_within_the_figure(name):
    found = Reliability(np.array([0.2, 0.9]), np.array([0.1, 0.7]), np.array([3, 1]), 0.125)
    figures = []

    def drawn(ax):
        figures.append(ax.figure)
        plots.calibration({f"{name}{end}": found for end in ("", "_", "__")}, ENCODER, ax)

    plots.draw(drawn, height=6)
    (figure,) = figures
    (ax,) = figure.axes
    for words in (ax.get_legend(), ax.xaxis.label, ax.yaxis.label):
        box = words.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0


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
