"""search.py, sweep.py, trials.py and the page: which settings are tried, which are chosen, what is said."""

import dataclasses
import math
from pathlib import Path

import pandas as pd
import pytest
import yaml
from in_this_process import InThisProcess
from tiny_experiments import tiny_content

from lora_study.base.errors import ConfigError
from lora_study.cli import main
from lora_study.config_files import load_sweep
from lora_study.config_studies import StudyConfig
from lora_study.evidence.trials import chosen_trial, pareto_front, trials_table
from lora_study.records.record import read_record, run_dir, write_record
from lora_study.report import write_report
from lora_study.report.sweep_report import write_sweep_report
from lora_study.studies.search import Search, make_experiment, setting_name
from lora_study.studies.study import run_study
from lora_study.studies.sweep import run_sweep
from lora_study.training.recording import new_record

SWEEPS = sorted((Path(__file__).parents[2] / "configs" / "sweeps").glob("*.yaml"))
GRID = {"lora.r": [1, 2], "lora.alpha": [4, 16], "lora.targets": [["query", "value"], ["query", "value", "mlp"]]}


@pytest.fixture
def sweep(tmp_path):
    """Builds a sweep and its base from what differs from a grid of eight settings; nothing of it is ever trained."""
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({"name": "base", "data": {"source": "embedded"}}))

    def build(**changes):
        content = {"name": "mini", "title": "A miniature", "experiment": "base.yaml", "parameters": GRID} | changes
        (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        return load_sweep(tmp_path / "sweep.yaml")

    return build


def tried(search: Search) -> list:
    """The experiments that a grid or random draws come to."""
    return [trial.experiment for trial in search.ask()]


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
def test_every_shipped_sweep_resolves_to_different_settings_that_leave_the_test_reviews_alone(path):
    sweep, base = load_sweep(path)
    assert sweep.name == path.stem
    assert not base.score_test
    if sweep.search.method == "adaptive":
        return
    runs = tried(Search(sweep, base))
    assert len({run.name for run in runs}) == len(runs) > 3
    assert len(set(runs)) == len(runs)
    assert not any(run.score_test for run in runs)


def test_the_articles_grid_is_shipped():
    sweep, base = load_sweep(next(path for path in SWEEPS if path.stem == "article_grid"))
    runs = tried(Search(sweep, base))
    assert len(runs) == 576
    optional = ("key", "projection", "mlp", "head")
    combinations = {(p.lora.r, p.lora.alpha, *(name in p.lora.targets for name in optional)) for p in runs}
    assert len(combinations) == 6 * 6 * 2**4
    assert all({"query", "value"} <= set(p.lora.targets) and p.lora.scaling == "alpha" for p in runs)
    assert {p.data.sizes.train for p in runs} == {35_000}


def test_a_trial_is_the_base_with_its_settings_and_a_name_that_says_them(sweep):
    config, base = sweep()
    run = tried(Search(config, base))[1]
    assert run.name == "r-1_alpha-4_targets-query-value-mlp", "in the file's order, the last parameter varying fastest"
    assert (run.lora.r, run.lora.alpha, run.lora.targets) == (1, 4.0, ("query", "value", "mlp"))
    assert run.data == base.data


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
    assert make_experiment(base, one).name != make_experiment(base, other).name  # names are valid, too


def test_labels_that_two_parameters_share_are_written_in_full():
    assert setting_name({"lora.dropout": 0.1, "model.dropout": 0.2}) == "lora.dropout-0.1_model.dropout-0.2"


def test_random_draws_follow_their_distributions_and_seed(sweep):
    parameters = {
        "lora.r": {"loguniform": [1, 32]},
        "train.learning_rate": {"loguniform": [1.0e-5, 1.0e-3]},
        "model.dropout": {"uniform": [0.0, 0.5]},
        "lora.scaling": ["alpha", "alpha/r"],
    }
    search = {"method": "random", "trials": 150, "seed": 3}
    runs = tried(Search(*sweep(parameters=parameters, search=search)))
    assert len(runs) == 150
    table = pd.DataFrame(
        [
            {"r": run.lora.r, "rate": run.train.learning_rate, "dropout": run.model.dropout, "s": run.lora.scaling}
            for run in runs
        ]
    )
    assert set(table["r"]) <= set(range(1, 33))
    assert table["r"].between(1, 5).mean() == pytest.approx(math.log(11) / math.log(65), abs=0.12)
    assert table["rate"].between(1e-5, 1e-3).all()
    assert table["rate"].lt(1e-4).mean() == pytest.approx(0.5, abs=0.12)
    assert table["dropout"].mean() == pytest.approx(0.25, abs=0.05)
    assert table["s"].eq("alpha").mean() == pytest.approx(0.5, abs=0.12)
    assert tried(Search(*sweep(parameters=parameters, search=search | {"trials": 20}))) == runs[:20]
    assert tried(Search(*sweep(parameters=parameters, search=search | {"trials": 20, "seed": 4}))) != runs[:20]


def test_validation_accuracy_alone_chooses_and_only_the_chosen_settings_are_tested_once(sweep, tmp_path):
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


def test_settings_with_a_failed_run_are_not_chosen_and_run_again_next_time(sweep, tmp_path):
    config, base = sweep(seeds=[1, 2])
    first = MadeUp(fails=lambda run: run.lora.r == 2 and run.seed == 2)
    run_sweep(config, base, tmp_path / "out", first)
    assert {run.lora.r for run in first.runs if run.score_test} == {1}
    assert sum(run.seed == 2 and run.lora.r == 2 for run in first.runs) == 4
    # They are better once they have run, but the others' test has been seen.
    with pytest.raises(ConfigError, match=r"alpha-4_targets-query-value is chosen now, but other settings were tested"):
        run_sweep(config, base, tmp_path / "out", MadeUp())


def test_an_adaptive_search_goes_on_after_a_failure_and_runs_nothing_twice(sweep, tmp_path):
    search = {"method": "adaptive", "trials": 12, "batch": 2}
    launcher = MadeUp(accuracy=lambda run: 0.6 + 0.1 * run.seed, fails=lambda run: run.lora.r == 2)
    config, base = sweep(parameters={"lora.r": [1, 2, 4]}, search=search, seeds=[1, 2])
    records = run_sweep(config, base, tmp_path / "out", launcher)
    tried = sorted((run.lora.r, run.seed) for run in launcher.runs if not run.score_test)
    assert tried == [(1, 1), (1, 2), (2, 1), (2, 2), (4, 1), (4, 2)]
    assert len(records) == len(launcher.runs)
    table = trials_table(records, ["lora.r"]).set_index("lora.r")
    assert table.loc[1, "val_accuracy"] == pytest.approx(75), "the mean over its seeds"
    assert (table.loc[2, "seeds"], table.loc[2, "failed"]) == (0, 2)


def test_without_a_pruner_no_worker_waits_for_a_seed_of_other_settings(sweep, tmp_path):
    class Counting(MadeUp):
        def run(self, runs, results_dir, command):
            together.append(len(runs))
            return super().run(runs, results_dir, command)

    together: list[int] = []
    run_sweep(*sweep(seeds=[1, 2, 3]), tmp_path / "out", Counting())
    assert together == [24, 3]
    together.clear()
    adaptive = {"method": "adaptive", "trials": 4, "batch": 4, "pruner": "halving"}
    run_sweep(*sweep(name="pruned", seeds=[1, 2, 3], search=adaptive), tmp_path / "pruned", Counting())
    assert len(together) > 3 and max(together) <= 4


def test_of_equal_settings_the_smaller_are_chosen(sweep, tmp_path):
    config, base = sweep()
    launcher = MadeUp(accuracy=lambda run: 0.8)
    run_sweep(config, base, tmp_path / "out", launcher)
    assert [(run.lora.r, len(run.lora.targets)) for run in launcher.runs if run.score_test] == [(1, 2)]


def test_nothing_is_chosen_where_nothing_completed_and_the_page_says_so(sweep, tmp_path):
    launcher = MadeUp(fails=lambda run: True)
    run_sweep(*sweep(), tmp_path / "out", launcher)
    assert not any(run.score_test for run in launcher.runs)
    write_sweep_report(tmp_path / "out")
    assert "none are chosen" in (tmp_path / "out" / "sweep.md").read_text()


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
    config, base = sweep(**ADAPTIVE | {"search": ADAPTIVE["search"] | {"sampler": sampler}})
    whole, parts = MadeUp(), MadeUp()
    run_sweep(config, base, tmp_path / "whole", whole)
    run_sweep(config, base, tmp_path / "parts", parts, max_trials=8)
    stopped = [run for run in parts.runs if not run.score_test]
    assert len(stopped) == 8
    (tmp_path / "parts" / "best").rename(tmp_path / "seen")
    run_sweep(config, base, tmp_path / "parts", parts)
    assert [r for r in parts.runs if not r.score_test] == [r for r in whole.runs if not r.score_test]


def test_adaptive_search_learns_from_results(sweep, tmp_path):
    search = {"method": "adaptive", "trials": 30, "batch": 2, "sampler": "gp"}
    launcher = MadeUp(accuracy=lambda run: 0.9 - 0.05 * abs(run.lora.alpha - 6))
    run_sweep(*sweep(**ADAPTIVE | {"search": search}), tmp_path / "out", launcher)
    distances = [abs(run.lora.alpha - 6) for run in launcher.runs if not run.score_test]
    assert sum(distances[-10:]) < 0.5 * sum(distances[:10]), "the first ten are random"


def test_a_pruner_drops_poor_settings_after_a_seed_and_they_are_never_chosen(sweep, tmp_path):
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
        ({"parameters": {"lora": [{"r": 1}]}}, r"parameters: lora: .* name one of them"),
        ({"parameters": {"lora.r": [2, 8.5]}}, r"parameters: lora\.r: 8\.5 .* whole number"),
        ({"parameters": {"lora.r.x": [1]}}, r"lora\.r\.x: 'x' .* no field"),
        ({"parameters": {"data.labels.bad": [1]}}, r"data\.labels\.bad: 'bad' .* no field"),
        ({"parameters": {1: [2]}}, r"parameters: 1 .* name a field"),
        ({"parameters": {}}, r"parameters: .* at least one field"),
        ({"parameters": {"lora.r": []}}, r"parameters\.lora\.r: \[\] .* one value or more"),
        ({"parameters": {"seed": [1, 2]}}, r"'seed' .* the sweep sets it"),
        ({"parameters": {"lora.r": {"uniform": [1, 4]}}}, r"parameters\.lora\.r: .* a grid takes lists"),
        ({"parameters": {"lora.r": {"normal": [1, 4]}}}, r"parameters\.lora\.r: .*\{uniform: "),
        ({"parameters": {"lora.r": 8}}, r"parameters\.lora\.r: 8 .* a list of values"),
        ({"search": {"method": "random"}}, r"search\.trials: None .* 1 or more"),
        ({"search": {"trials": 3}}, r"search\.trials: 3 .* a grid's values decide how many"),
        ({"search": {"method": "bayes"}}, r"bayes"),
        ({"search": {"methods": "grid"}}, r"unknown field search\.methods; did you mean search\.method"),
        ({"search": {"method": "adaptive", "trials": 3, "pruner": "median"}}, r"search\.pruner: .* two seeds"),
        ({"search": {"pruner": "median"}, "seeds": [1, 2]}, r"search\.pruner: .* method adaptive"),
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
def test_equal_values_are_tried_once(sweep, tmp_path, search):
    parameters = {"lora.alpha": [8, 8.0, 8, 16.0], "lora.targets": [["query"], ["query"], ["query", "mlp"]]}
    config, base = sweep(parameters=parameters, search=search)
    assert config.parameters == {"lora.alpha": [8, 16.0], "lora.targets": [["query"], ["query", "mlp"]]}
    launcher = MadeUp()
    run_sweep(config, base, tmp_path / "out", launcher)
    pairs = [(run.lora.alpha, run.lora.targets) for run in launcher.runs if run.name != "best"]
    assert sorted(pairs) == [(a, t) for a in (8.0, 16.0) for t in (("query",), ("query", "mlp"))]


@pytest.mark.parametrize(
    "bound", [{"uniform": [4, 1]}, {"loguniform": [0, 1]}, {"uniform": ["low", 1]}, {"uniform": [1, 2**54]}]
)
def test_a_range_that_is_none_is_refused(sweep, bound):
    with pytest.raises(ConfigError, match=r"parameters\.lora\.alpha"):
        sweep(parameters={"lora.alpha": bound}, search={"method": "random", "trials": 3})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([1, 0], r"lora\.r: 0 .* 1 or more"),
        ([1, "many"], r"lora\.r.*many"),
        ({"uniform": [0, 4]}, r"lora\.r: 0 .* 1 or more"),
        ({"uniform": [1, 4.5]}, r"lora\.r: 4\.5 .* whole number"),
    ],
)
def test_a_value_that_its_field_cannot_have_is_found_before_anything_runs(sweep, tmp_path, values, words):
    adaptive = {"method": "adaptive", "trials": 9, "batch": 1}
    searches = ({}, adaptive) if isinstance(values, list) else (adaptive, adaptive | {"method": "random"})
    launcher = MadeUp()
    for search in searches:
        with pytest.raises(ConfigError, match=words):
            run_sweep(*sweep(parameters={"lora.r": values}, search=search), tmp_path / "out", launcher)
    assert launcher.runs == []
    assert not (tmp_path / "out").exists()


def test_two_sweeps_do_not_share_a_folder(sweep, tmp_path):
    run_sweep(*sweep(), tmp_path / "out", MadeUp())
    with pytest.raises(ConfigError, match=r"holds another sweep \(other parameters\)"):
        run_sweep(*sweep(parameters={"lora.r": [1, 2, 4]}), tmp_path / "out", MadeUp())
    with pytest.raises(ConfigError, match=r"holds another sweep \(other parameters\)"):  # its folders have other names
        run_sweep(*sweep(parameters=dict(reversed(GRID.items()))), tmp_path / "out", MadeUp())


def test_a_study_and_a_sweep_do_not_share_a_folder(sweep, tmp_path):
    run_sweep(*sweep(), tmp_path / "sweep", MadeUp())
    study, base = StudyConfig(name="s", title="t", experiments=("not read",)), sweep()[1]
    with pytest.raises(ConfigError, match=r"sweep holds a sweep; choose another --results-dir"):
        run_study(study, [base], tmp_path / "sweep", MadeUp())
    run_study(study, [base], tmp_path / "study", MadeUp())
    with pytest.raises(ConfigError, match=r"study holds a study; choose another --results-dir"):
        run_sweep(*sweep(), tmp_path / "study", MadeUp())


def test_a_folder_whose_sweep_file_lacks_newer_settings_is_gone_on_with(sweep, tmp_path):
    config, base = sweep()
    run_sweep(config, base, tmp_path / "out", MadeUp())
    content = yaml.safe_load((tmp_path / "out" / "sweep.yaml").read_text())
    for name in ("search", "seeds", "overrides"):
        del content[name]
    (tmp_path / "out" / "sweep.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    launcher = MadeUp()
    run_sweep(config, base, tmp_path / "out", launcher)
    assert launcher.runs == []


def test_the_page_says_how_many_were_tried_and_sets_the_choice_apart(sweep, tmp_path):
    results = tmp_path / "out"
    run_sweep(
        *sweep(seeds=[1, 2]), results, MadeUp(fails=lambda run: run.name.startswith("r-1_alpha-4") and run.seed == 2)
    )
    files = write_sweep_report(results)
    page = (results / "sweep.md").read_text()
    assert "8 of the 8 settings of a grid" in page
    assert "18 runs" not in page and "16 runs, 2 of them failed" in page
    assert "**r-2\\_alpha-4\\_targets-query-value**" in page or "**r-2_alpha-4_targets-query-value**" in page
    assert "test accuracy of **50.00%** on 200 reviews" in page
    assert "after 8 trials" in page
    for name in ("effect_lora.r", "effect_lora.alpha", "effect_lora.targets", "pareto"):
        assert f"](figures/{name}.png)" in page
        assert results / "figures" / f"{name}.png" in files

    table = pd.read_csv(results / "sweep.csv")
    assert len(table) == 8
    assert table["failed"].tolist() == [0] * 6 + [1] * 2
    assert table["val_accuracy"][:6].is_monotonic_decreasing and table["val_accuracy"][6:].is_monotonic_decreasing
    assert {"trial", "lora.r", "lora.alpha", "lora.targets", "trainable", "train_seconds"} <= set(table.columns)

    before = {path: path.read_bytes() for path in files}
    assert main(["report", "--results-dir", str(results)]) == 0
    assert {path: path.read_bytes() for path in files} == before, "the same records give the same bytes"


@pytest.mark.parametrize(("best", "at_an_end"), [(1, True), (4, True), (2, False)])
def test_the_page_says_what_was_asked_and_whether_the_choice_is_at_an_end(sweep, tmp_path, best, at_an_end):
    config, base = sweep(parameters={"lora.r": [4, 1, 2]}, question="Which rank?", limits="No other encoder's.")
    run_sweep(config, base, tmp_path, MadeUp(accuracy=lambda run: 0.9 if run.lora.r == best else 0.6))
    write_sweep_report(tmp_path)
    page = (tmp_path / "sweep.md").read_text()
    assert page.startswith("# A miniature\n\nWhich rank?\n\n") and "cannot say.** No other encoder's." in page
    assert ("Its lora.r is at an end of the values tried" in page) == at_an_end
    run_sweep(dataclasses.replace(config, question="", limits=""), base, tmp_path, MadeUp())  # words may change


def test_the_page_tells_a_lucky_seed_and_an_earlier_choice_from_the_choice(sweep, tmp_path):
    config, base = sweep(parameters={"lora.r": [1, 2, 4]}, seeds=[1, 2], overrides={"model": {"dropout": 0.0}})
    lucky = MadeUp(accuracy=lambda run: 0.95 if run.lora.r == 4 else 0.8, fails=lambda r: (r.lora.r, r.seed) == (4, 2))
    run_sweep(config, base, tmp_path, lucky)
    write_sweep_report(tmp_path)
    page = (tmp_path / "sweep.md").read_text()
    assert page.count("best: r-1 with 80.00%") == 2, "not r-4, which has 95.00% with one of two seeds"
    assert "test accuracy of **50.00%** on 200 reviews (2 seeds; experiment `best`)" in page
    for seed in (1, 2):
        record = read_record(run_dir(tmp_path, "r-4", seed) / "record.json")
        record.status, record.error, record.metrics = "completed", None, {"val": {"accuracy": 0.9, "n": 100}}
        write_record(record, run_dir(tmp_path, "r-4", seed))
    write_sweep_report(tmp_path)
    page = (tmp_path / "sweep.md").read_text()
    assert "**r-4** has the best mean validation accuracy, 90.00%" in page
    assert "Its test has not been completed." in page, "the tested settings were r-1's"


def test_settings_that_lack_a_seed_are_ranked_last_and_not_counted(sweep, tmp_path):
    config, base = sweep(parameters={"lora.r": [4, 2, 1]}, seeds=[1, 2])
    launcher = MadeUp(lambda run: 0.95 if run.lora.r == 4 else 0.8, fails=lambda run: (run.lora.r, run.seed) == (4, 2))
    run_sweep(config, base, tmp_path, launcher)
    write_sweep_report(tmp_path)
    page = (tmp_path / "sweep.md").read_text()
    assert "of the 2 settings that completed all seeds (3 tried)" in page and "with up to 2 seeds each" in page
    trials = [line.split(" | ")[0].strip("| ") for line in page.splitlines() if line.startswith("| r-")]
    assert trials == ["r-1 (chosen)", "r-2", "r-4"]


def test_null_is_a_value_like_others(sweep, tmp_path):
    run_sweep(*sweep(parameters={"data.sizes.train": [None, 500]}), tmp_path / "out", MadeUp(lambda run: 0.8))
    write_sweep_report(tmp_path / "out")
    page = (tmp_path / "out" / "sweep.md").read_text()
    assert "| null |" in page and "nan" not in page and (tmp_path / "out/figures/effect_data.sizes.train.png").exists()


def test_the_choice_is_tested_on_what_is_named_now(sweep, tmp_path):
    config, base = sweep(parameters={"lora.r": [4, 2]})
    moved = dataclasses.replace(base, data=dataclasses.replace(base.data, cache_dir="/elsewhere"))
    run_sweep(config, base, tmp_path / "out", MadeUp())
    for path in (tmp_path / "out" / "best").rglob("record.json"):
        path.unlink()
    launcher = MadeUp()
    run_sweep(config, moved, tmp_path / "out", launcher)
    (tested,) = [run for run in launcher.runs if run.name == "best"]
    assert (tested.data.cache_dir, tested.lora.r, tested.score_test) == ("/elsewhere", 2, True)


def test_a_sweep_of_which_nothing_was_run_gives_way_to_another(sweep, tmp_path):
    class Refuses(MadeUp):
        def run(self, runs, results_dir, command):
            raise ConfigError("data.sizes: too many")
            yield

    config, base = sweep(parameters={"lora.r": [4, 2]})
    with pytest.raises(ConfigError, match="too many"):
        run_sweep(config, base, tmp_path / "out", Refuses())
    assert not (tmp_path / "out" / "sweep.yaml").exists()
    run_sweep(*sweep(parameters={"lora.r": [8, 2]}), tmp_path / "out", MadeUp())


def test_sizes_that_a_sweep_varies_are_all_named(sweep, tmp_path):
    class Sized(MadeUp):
        def run(self, runs, results_dir, command):
            for run, record in super().run(runs, results_dir, command):
                record.data["sizes"]["train"] = run.data.sizes.train
                write_record(record, run_dir(results_dir, run.name, run.seed))
                yield run, record

    run_sweep(*sweep(parameters={"data.sizes.train": [400, 1200]}), tmp_path / "out", Sized())
    write_sweep_report(tmp_path / "out")
    assert "400 or 1,200 training and 100 validation reviews" in (tmp_path / "out" / "sweep.md").read_text()


def test_a_page_without_a_run_is_refused(tmp_path, capsys):
    (tmp_path / "sweep.yaml").write_text(
        yaml.safe_dump({"name": "m", "title": "M", "experiment": "e", "parameters": {"lora.r": [1]}})
    )
    assert main(["report", "--results-dir", str(tmp_path)]) == 2
    assert "no run of a trial" in capsys.readouterr().err


def test_an_ordinary_report_copes_with_runs_that_were_not_tested(sweep, tmp_path):
    run_sweep(*sweep(parameters={"lora.r": [1, 2]}), tmp_path / "out", MadeUp())
    write_report(tmp_path / "out")
    summary = pd.read_csv(tmp_path / "out" / "summary.csv").set_index("experiment")
    assert summary.loc["r-1", "test_accuracy"] != summary.loc["r-1", "test_accuracy"], "null"
    assert summary.loc["best", "test_accuracy"] == 50


def trials(*rows) -> pd.DataFrame:
    columns = ["trial", "val_accuracy", "trainable", "seeds"]
    return pd.DataFrame([dict(zip(columns, row, strict=True)) for row in rows])


def test_the_front_has_all_settings_that_no_smaller_ones_equal():
    table = trials(("a", 80.0, 10, 1), ("b", 79.0, 20, 1), ("c", 85.0, 20, 1), ("d", 85.0, 30, 1))
    assert list(pareto_front(table)["trial"]) == ["a", "c"]


def test_settings_with_fewer_seeds_are_not_chosen():
    table = trials(("lucky", 90.0, 1, 1), ("solid", 85.0, 1, 2))
    assert chosen_trial(table, 2) == "solid"
    assert chosen_trial(table, 3) is None


def test_means_over_the_same_accuracies_in_another_order_are_equal(sweep, tmp_path):
    shares = (0.1, 0.2, 0.3)  # added from the left and from the right, they differ in the last bit
    config, base = sweep(parameters={"lora.r": [2, 1]}, seeds=[1, 2, 3])
    launcher = MadeUp(accuracy=lambda run: shares[::-1][run.seed - 1] if run.lora.r == 2 else shares[run.seed - 1])
    run_sweep(config, base, tmp_path / "out", launcher)
    assert {run.lora.r for run in launcher.runs if run.score_test} == {1}, "the smaller of equals"


def test_a_table_without_records_is_empty():
    assert trials_table([], ["lora.r"]).empty


def test_a_trained_sweep_from_the_command_line_never_scores_the_test_reviews_of_a_trial(
    tiny_backbone, reviews_csv, tmp_path, capsys, monkeypatch
):
    """Really trained, in this process; the chosen settings' training is repeated to the last digit."""
    monkeypatch.setattr("lora_study.studies.launchers.make_launcher", lambda name, workers: InThisProcess())
    base = tiny_content(tiny_backbone, reviews_csv, tmp_path / "cache", (96, 40, 30), learning_rate=0.01)
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({"name": "tiny", **base}))
    content = {"name": "mini", "title": "Mini", "experiment": "base.yaml", "parameters": {"lora.r": [1, 4]}}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(content))
    results = tmp_path / "out"
    assert main(["sweep", "--config", str(tmp_path / "sweep.yaml"), "--results-dir", str(results)]) == 0
    printed = capsys.readouterr()
    assert f"3 of 3 runs completed; report: {results / 'sweep.md'}" in printed.out
    assert "validation accuracy" in printed.err
    chosen = pd.read_csv(results / "sweep.csv")["trial"][0]
    assert f"**{chosen}** has the best mean validation accuracy" in (results / "sweep.md").read_text()
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
