"""search.py, adaptive.py, sweep.py, points.py and the page: which points are run, which is chosen, what is said."""

import json
import math
from pathlib import Path

import pandas as pd
import pytest
import yaml

from lora_study.cli import main
from lora_study.config import ConfigError
from lora_study.config_files import load_sweep
from lora_study.experiment import new_record
from lora_study.launchers.worker import work
from lora_study.points import chosen_point, importance, pareto_front, point_table
from lora_study.records import read_record, run_dir, write_record
from lora_study.report import write_report
from lora_study.report.sweep_report import write_sweep_report
from lora_study.search import listed_points, make_point, point_name
from lora_study.sweep import run_sweep

SWEEPS = sorted((Path(__file__).parent.parent / "configs" / "sweeps").glob("*.yaml"))
GRID = {"lora.r": [1, 2], "lora.alpha": [4, 16], "lora.targets": [["query", "value"], ["query", "value", "mlp"]]}


@pytest.fixture
def sweep(tmp_path):
    """Builds a sweep and its base from what differs from a grid of eight points; nothing of it is ever trained."""
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({"name": "base", "data": {"source": "embedded"}}))

    def build(**changes):
        content = {"name": "mini", "title": "A miniature", "experiment": "base.yaml", "parameters": GRID} | changes
        (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        return load_sweep(tmp_path / "sweep.yaml")

    return build


def accuracy_of(run) -> float:
    """A made-up validation accuracy: best at rank 2, alpha 4, no mlp; the seed adds a little."""
    return 0.9 - 0.1 * (run.lora.r - 2) ** 2 - 0.01 * run.lora.alpha - 0.02 * len(run.lora.targets) + 0.001 * run.seed


class MadeUp:
    """A launcher that makes records up, so that a sweep takes no time."""

    def __init__(self, accuracy=accuracy_of, fails=lambda run: False):
        self.accuracy, self.fails = accuracy, fails
        self.runs = []

    def run(self, runs, results_dir, command):
        for run in runs:
            self.runs.append(run)
            record = new_record(run, command)
            record.parameters = {"trainable": 1000 * run.lora.r * len(run.lora.targets), "total": 10**6}
            if self.fails(run):
                record.error = "loss is not finite"
            else:
                record.status = "completed"
                record.metrics = {
                    "val": {"accuracy": self.accuracy(run), "n": 100},
                    "test": {"accuracy": 0.5, "n": 200} if run.score_test else None,
                    "best_epoch": 1,
                }
                record.timing = {"train_seconds": 2.0, "total_seconds": 3.0}
                record.data = {"sizes": {"train": 300, "val": 100, "test": 200}}
            write_record(record, run_dir(results_dir, run.name, run.seed))
            yield run, record


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_shipped_sweep_resolves_to_different_points_that_leave_the_test_reviews_alone(path):
    sweep, base = load_sweep(path)
    assert sweep.name == path.stem
    assert not base.score_test
    if sweep.search.method == "adaptive":
        return
    points = [point.experiment for point in listed_points(sweep, base)]
    assert len({point.name for point in points}) == len(points) > 3
    assert len(set(points)) == len(points)
    assert not any(point.score_test for point in points)


def test_the_articles_grid_is_shipped():
    sweep, base = load_sweep(next(path for path in SWEEPS if path.stem == "article_grid"))
    points = [point.experiment for point in listed_points(sweep, base)]
    assert len(points) == 576
    optional = ("key", "projection", "mlp", "head")
    combinations = {(p.lora.r, p.lora.alpha, *(name in p.lora.targets for name in optional)) for p in points}
    assert len(combinations) == 6 * 6 * 2**4
    assert all({"query", "value"} <= set(p.lora.targets) and p.lora.scaling == "alpha" for p in points)
    assert {p.data.sizes.train for p in points} == {35_000}


def test_a_point_is_the_base_with_its_settings_and_a_name_that_says_them(sweep):
    config, base = sweep()
    point = listed_points(config, base)[1].experiment
    assert point.name == "r-1_alpha-4_targets-query-value-mlp"
    assert (point.lora.r, point.lora.alpha, point.lora.targets) == (1, 4.0, ("query", "value", "mlp"))
    assert point.data == base.data


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"data.source": "a/b"}, {"data.source": "ab"}),
        ({"lora.targets": ["*.lin1"]}, {"lora.targets": ["?.lin1"]}),
        ({"lora.targets": ["x" * 99, "y"]}, {"lora.targets": ["x" * 99, "z"]}),
    ],
)
def test_names_differ_where_settings_differ_even_if_characters_are_left_out(sweep, one, other):
    _, base = sweep()
    assert make_point(base, one).experiment.name != make_point(base, other).experiment.name  # names are valid, too


def test_labels_that_two_parameters_share_are_written_in_full():
    assert point_name({"lora.dropout": 0.1, "model.dropout": 0.2}) == "lora.dropout-0.1_model.dropout-0.2"


def test_random_draws_follow_their_distributions_and_seed(sweep):
    parameters = {
        "lora.r": {"loguniform": [1, 32]},
        "train.learning_rate": {"loguniform": [1.0e-5, 1.0e-3]},
        "model.dropout": {"uniform": [0.0, 0.5]},
        "lora.scaling": ["alpha", "alpha/r"],
    }
    search = {"method": "random", "trials": 150, "seed": 3}
    points = [point.settings for point in listed_points(*sweep(parameters=parameters, search=search))]
    assert len(points) == 150
    table = pd.DataFrame(points)
    assert set(table["lora.r"]) <= set(range(1, 33))
    assert table["lora.r"].between(1, 5).mean() == pytest.approx(math.log(11) / math.log(65), abs=0.12)
    assert table["train.learning_rate"].between(1e-5, 1e-3).all()
    assert table["train.learning_rate"].lt(1e-4).mean() == pytest.approx(0.5, abs=0.12)
    assert table["model.dropout"].mean() == pytest.approx(0.25, abs=0.05)
    assert table["lora.scaling"].eq("alpha").mean() == pytest.approx(0.5, abs=0.12)
    fewer = listed_points(*sweep(parameters=parameters, search=search | {"trials": 20}))
    assert [point.settings for point in fewer] == points[:20]
    others = listed_points(*sweep(parameters=parameters, search=search | {"trials": 20, "seed": 4}))
    assert [point.settings for point in others] != points[:20]


def test_validation_accuracy_alone_chooses_and_only_the_chosen_point_is_tested_once(sweep, tmp_path):
    config, base = sweep(seeds=[1, 2])
    launcher, results = MadeUp(), tmp_path / "out"
    records = run_sweep(config, base, results, launcher)
    tested = [run for run in launcher.runs if run.score_test]
    assert [(run.name, run.seed) for run in tested] == [("best", 1), ("best", 2)]
    assert (tested[0].lora.r, tested[0].lora.alpha, tested[0].lora.targets) == (2, 4.0, ("query", "value"))
    assert len(records) == 8 * 2 + 2

    again = MadeUp()
    assert run_sweep(config, base, results, again) == records
    assert again.runs == [], "what is done is not run again"


def test_a_point_with_a_failed_run_is_not_chosen_and_runs_again_next_time(sweep, tmp_path):
    config, base = sweep(seeds=[1, 2])
    first = MadeUp(fails=lambda run: run.lora.r == 2 and run.seed == 2)
    run_sweep(config, base, tmp_path / "out", first)
    assert {run.lora.r for run in first.runs if run.score_test} == {1}
    assert sum(run.seed == 2 and run.lora.r == 2 for run in first.runs) == 4
    # It is better once it has run, but the other point's test has been seen.
    with pytest.raises(ConfigError, match=r"alpha-4_targets-query-value is chosen now, but another point was tested"):
        run_sweep(config, base, tmp_path / "out", MadeUp())


def test_of_equal_points_the_smaller_is_chosen(sweep, tmp_path):
    config, base = sweep()
    launcher = MadeUp(accuracy=lambda run: 0.8)
    run_sweep(config, base, tmp_path / "out", launcher)
    assert [(run.lora.r, len(run.lora.targets)) for run in launcher.runs if run.score_test] == [(1, 2)]


def test_nothing_is_chosen_where_nothing_completed_and_the_page_says_so(sweep, tmp_path):
    launcher = MadeUp(fails=lambda run: True)
    run_sweep(*sweep(), tmp_path / "out", launcher)
    assert not any(run.score_test for run in launcher.runs)
    write_sweep_report(tmp_path / "out")
    assert "none is chosen" in (tmp_path / "out" / "sweep.md").read_text()
    assert json.loads((tmp_path / "out" / "sweep.json").read_text())["chosen"] is None


def test_the_most_trials_bound_a_sweep_which_goes_on_without_the_bound(sweep, tmp_path):
    config, base = sweep()
    launcher = MadeUp(accuracy=lambda run: 0.9 - 0.01 * run.lora.r)
    run_sweep(config, base, tmp_path / "out", launcher, max_trials=3)
    assert len(launcher.runs) == 3 + 1
    run_sweep(config, base, tmp_path / "out", launcher)
    assert len(launcher.runs) == 8 + 1


ADAPTIVE = {
    "parameters": {
        "lora.r": {"loguniform": [1, 16]},
        "lora.alpha": {"uniform": [0.5, 8.0]},
        "lora.targets": [["query", "value"], ["query", "value", "mlp"]],
    },
    "search": {"method": "adaptive", "trials": 12, "batch": 4},
}


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_adaptive_search_proposes_the_same_again_and_so_goes_on_where_it_stopped(sweep, tmp_path, sampler):
    pytest.importorskip("optuna")
    config, base = sweep(**ADAPTIVE | {"search": ADAPTIVE["search"] | {"sampler": sampler}})
    whole, parts = MadeUp(), MadeUp()
    run_sweep(config, base, tmp_path / "whole", whole)
    run_sweep(config, base, tmp_path / "parts", parts, max_trials=8)
    stopped = [run for run in parts.runs if not run.score_test]
    assert len(stopped) == 8
    (tmp_path / "parts" / "best").rename(tmp_path / "seen")
    run_sweep(config, base, tmp_path / "parts", parts)
    assert [r for r in parts.runs if not r.score_test] == [r for r in whole.runs if not r.score_test]
    assert (tmp_path / "whole" / "optuna.journal").stat().st_size > 0


def test_adaptive_search_learns_from_results(sweep, tmp_path):
    pytest.importorskip("optuna")
    search = {"method": "adaptive", "trials": 30, "batch": 2, "sampler": "gp"}
    launcher = MadeUp(accuracy=lambda run: 0.9 - 0.05 * abs(run.lora.alpha - 6))
    run_sweep(*sweep(**ADAPTIVE | {"search": search}), tmp_path / "out", launcher)
    distances = [abs(run.lora.alpha - 6) for run in launcher.runs if not run.score_test]
    assert sum(distances[-10:]) < 0.5 * sum(distances[:10]), "the first ten are random"


def test_a_pruner_drops_poor_points_after_a_seed_and_they_are_never_chosen(sweep, tmp_path):
    pytest.importorskip("optuna")
    search = {"method": "adaptive", "trials": 24, "batch": 4, "pruner": "median"}
    config, base = sweep(**ADAPTIVE | {"search": search, "seeds": [1, 2, 3]})
    launcher = MadeUp()
    run_sweep(config, base, tmp_path / "out", launcher)
    trials = [run for run in launcher.runs if not run.score_test]
    seeds = {name: [run.seed for run in trials if run.name == name] for name in {run.name for run in trials}}
    dropped = {name for name, used in seeds.items() if used == [1]}
    assert dropped
    assert all(used in ([1], [1, 2], [1, 2, 3]) for used in seeds.values())
    best = next(run for run in launcher.runs if run.score_test)
    means = {run.name: accuracy_of(run) for run in trials}
    assert accuracy_of(best) == pytest.approx(max(means[name] for name in seeds if len(seeds[name]) == 3), abs=0.01)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"parameters": {"lora.rank": [1]}}, r"unknown field lora\.rank"),
        ({"parameters": {"lora": [1]}}, r"lora: .* fields of its own"),
        ({"parameters": {}}, r"parameters: .* at least one field"),
        ({"parameters": {"lora.r": []}}, r"parameters\.lora\.r: \[\] .* one value or more"),
        ({"parameters": {"seed": [1, 2]}}, r"'seed' .* the sweep sets it"),
        ({"parameters": {"lora.r": {"uniform": [1, 4]}}}, r"parameters\.lora\.r: .* a grid takes lists"),
        ({"parameters": {"lora.r": {"normal": [1, 4]}}}, r"parameters\.lora\.r: .*\{uniform: "),
        ({"parameters": {"lora.r": 8}}, r"parameters\.lora\.r: 8 .* a list of values"),
        ({"search": {"method": "random"}}, r"search\.trials: None .* 1 or more"),
        ({"search": {"trials": 3}}, r"search\.trials: 3 .* a grid has a number of its own"),
        ({"search": {"method": "bayes"}}, r"bayes"),
        ({"search": {"methods": "grid"}}, r"unknown field search\.methods; did you mean search\.method"),
        ({"search": {"method": "adaptive", "trials": 3, "pruner": "median"}}, r"search\.pruner: .* two seeds"),
        ({"seeds": []}, r"seeds: .* at least one seed"),
        ({"experiment": "nowhere.yaml"}, r"nowhere\.yaml does not exist"),
        ({"overrides": {"lora": {"rank": 3}}}, r"unknown field lora\.rank"),
        ({"trials": 3}, r"unknown field trials"),
    ],
)
def test_a_mistake_in_a_sweep_file_is_one_line_that_names_it(sweep, changes, words):
    with pytest.raises(ConfigError, match=words) as error:
        sweep(**changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "search", [{}, {"method": "random", "trials": 40}, {"method": "adaptive", "trials": 40, "batch": 40}]
)
def test_equal_values_are_one_point(sweep, tmp_path, search):
    parameters = {"lora.alpha": [8, 8.0, 8, 16.0], "lora.targets": [["query"], ["query"], ["query", "mlp"]]}
    config, base = sweep(parameters=parameters, search=search)
    assert config.parameters == {"lora.alpha": [8, 16.0], "lora.targets": [["query"], ["query", "mlp"]]}
    launcher = MadeUp()
    run_sweep(config, base, tmp_path / "out", launcher)
    tried = [(run.lora.alpha, run.lora.targets) for run in launcher.runs if run.name != "best"]
    assert sorted(tried) == [(a, t) for a in (8.0, 16.0) for t in (("query",), ("query", "mlp"))]


@pytest.mark.parametrize("bound", [{"uniform": [4, 1]}, {"loguniform": [0, 1]}, {"uniform": ["low", 1]}])
def test_a_range_that_is_none_is_refused(sweep, bound):
    with pytest.raises(ConfigError, match=r"parameters\.lora\.alpha"):
        sweep(parameters={"lora.alpha": bound}, search={"method": "random", "trials": 3})


def test_a_value_that_its_field_cannot_have_is_found_before_anything_runs(sweep, tmp_path):
    launcher = MadeUp()
    for values, words in (([1, 0], r"lora\.r: 0 .* 1 or more"), ([1, "many"], r"lora\.r.*many")):
        with pytest.raises(ConfigError, match=words):
            run_sweep(*sweep(parameters={"lora.r": values}), tmp_path / "out", launcher)
    assert launcher.runs == []
    assert not (tmp_path / "out").exists()


def test_two_sweeps_do_not_share_a_folder(sweep, tmp_path):
    run_sweep(*sweep(), tmp_path / "out", MadeUp())
    with pytest.raises(ConfigError, match=r"holds another sweep \(other parameters\)"):
        run_sweep(*sweep(parameters={"lora.r": [1, 2, 4]}), tmp_path / "out", MadeUp())


def test_optuna_missing_says_what_to_install(sweep, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.delitem(sys.modules, "lora_study.adaptive", raising=False)
    with pytest.raises(ConfigError, match=r"pip install 'lora-study\[optuna\]'"):
        run_sweep(*sweep(**ADAPTIVE), tmp_path / "out", MadeUp())


def test_the_page_says_how_many_were_tried_and_sets_the_choice_apart(sweep, tmp_path):
    results = tmp_path / "out"
    run_sweep(
        *sweep(seeds=[1, 2]), results, MadeUp(fails=lambda run: run.name.startswith("r-1_alpha-4") and run.seed == 2)
    )
    files = write_sweep_report(results)
    page = (results / "sweep.md").read_text()
    assert "8 of the 8 points of a grid" in page
    assert "18 runs" not in page and "16 runs, 2 of them failed" in page
    assert "**r-2\\_alpha-4\\_targets-query-value**" in page or "**r-2_alpha-4_targets-query-value**" in page
    assert "test accuracy of **50.00%** on 200 reviews" in page
    assert "after 8 trials" in page
    for name in ("effect_lora.r", "alpha_by_rank", "parallel", "pareto"):
        assert f"](figures/{name}.png)" in page
        assert results / "figures" / f"{name}.png" in files

    content = json.loads((results / "sweep.json").read_text())
    assert (content["trials"], content["grid"], content["runs"], content["failed_runs"]) == (8, 8, 16, 2)
    assert content["chosen"] == "r-2_alpha-4_targets-query-value"
    assert content["best"]["test_accuracy"] == pytest.approx(50.0)
    table = pd.read_csv(results / "sweep.csv")
    assert len(table) == len(content["points"]) == 8
    assert table["val_accuracy"].is_monotonic_decreasing
    assert {"point", "lora.r", "lora.alpha", "lora.targets", "trainable", "train_seconds"} <= set(table.columns)

    before = {path: path.read_bytes() for path in files}
    assert main(["report", "--results-dir", str(results)]) == 0
    assert {path: path.read_bytes() for path in files} == before, "the same records give the same bytes"


def test_a_page_without_a_run_is_refused(tmp_path, capsys):
    (tmp_path / "sweep.yaml").write_text(
        yaml.safe_dump({"name": "m", "title": "M", "experiment": "e", "parameters": {"lora.r": [1]}})
    )
    assert main(["report", "--results-dir", str(tmp_path)]) == 2
    assert "no run of a point" in capsys.readouterr().err


def test_an_ordinary_report_copes_with_runs_that_were_not_tested(sweep, tmp_path):
    run_sweep(*sweep(parameters={"lora.r": [1, 2]}), tmp_path / "out", MadeUp())
    write_report(tmp_path / "out")
    summary = pd.read_csv(tmp_path / "out" / "summary.csv").set_index("experiment")
    assert summary.loc["r-1", "test_accuracy"] != summary.loc["r-1", "test_accuracy"], "null"
    assert summary.loc["best", "test_accuracy"] == 50


def points(*rows) -> pd.DataFrame:
    columns = ["point", "x", "val_accuracy", "trainable", "seeds"]
    return pd.DataFrame([dict(zip(columns, row, strict=True)) for row in rows])


def test_the_front_has_each_point_that_no_smaller_one_equals():
    table = points(("a", 1, 80.0, 10, 1), ("b", 2, 79.0, 20, 1), ("c", 3, 85.0, 20, 1), ("d", 4, 85.0, 30, 1))
    assert list(pareto_front(table)["point"]) == ["a", "c"]


def test_importance_is_the_share_of_the_variance_between_values():
    table = points(("a", 1, 70.0, 1, 1), ("b", 1, 72.0, 1, 1), ("c", 2, 80.0, 1, 1), ("d", 2, 82.0, 1, 1))
    assert importance(table, "x") == pytest.approx(100 / 104)
    assert importance(table, "point") is None, "each value once: it explains everything, which says nothing"


def test_a_point_with_fewer_seeds_is_not_chosen():
    table = points(("lucky", 1, 90.0, 1, 1), ("solid", 2, 85.0, 1, 2))
    assert chosen_point(table, 2) == "solid"
    assert chosen_point(table, 3) is None


def test_a_table_without_records_is_empty():
    assert point_table([], ["lora.r"]).empty


def test_a_trained_sweep_from_the_command_line_never_scores_the_test_reviews_of_a_point(
    tiny_backbone, reviews_csv, tmp_path, capsys, monkeypatch
):
    """Really trained, in this process; the chosen point's training is repeated to the last digit."""

    class InThisProcess:
        def run(self, runs, results_dir, command):
            for run in runs:
                yield run, work(run, results_dir, command)

    monkeypatch.setattr("lora_study.launchers.make_launcher", lambda name, workers: InThisProcess())
    base = {
        "name": "tiny",
        "model": {"backbone": str(tiny_backbone)},
        "data": {
            "source": str(reviews_csv),
            "sizes": {"train": 96, "val": 40, "test": 30},
            "max_length": 16,
            "cache_dir": str(tmp_path / "cache"),
        },
        "train": {"epochs": 1, "precision": "32-true", "accelerator": "cpu", "threads": 1, "learning_rate": 0.01},
    }
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    content = {"name": "mini", "title": "Mini", "experiment": "base.yaml", "parameters": {"lora.r": [1, 4]}}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(content))
    results = tmp_path / "out"
    assert main(["sweep", "--config", str(tmp_path / "sweep.yaml"), "--results-dir", str(results)]) == 0
    printed = capsys.readouterr()
    assert f"3 of 3 runs completed; report: {results / 'sweep.md'}" in printed.out
    assert "validation accuracy" in printed.err
    chosen = json.loads((results / "sweep.json").read_text())["chosen"]
    for name in ("r-1", "r-4"):
        folder = run_dir(results, name, 1)
        record = read_record(folder / "record.json")
        assert record.metrics["test"] is None
        assert record.timing["test_seconds"] is None
        assert not (folder / "predictions.parquet").exists()
    best, trial = (read_record(run_dir(results, name, 1) / "record.json") for name in ("best", chosen))
    assert best.metrics["val"] == trial.metrics["val"]
    assert best.metrics["test"]["n"] == 30
    assert (run_dir(results, "best", 1) / "predictions.parquet").exists()
