"""A sweep: one experiment at many points; validation accuracy chooses the one whose test reviews are scored, once.

Points are ordinary runs below the results folder, so a sweep that is started again goes on where it stopped, and every
point that was ever tried there counts as a trial.
"""

import dataclasses
from pathlib import Path
from typing import Any

from lora_study.config import ConfigError, ExperimentConfig, SweepConfig, check, to_dict
from lora_study.config_files import experiment_from, read_yaml
from lora_study.launchers import Launcher
from lora_study.plain_yaml import dump_yaml
from lora_study.points import BEST, SWEEP_FILE, chosen_point, point_table, trials_of
from lora_study.records import Record, read_records, write_text
from lora_study.run_folder import writing_to
from lora_study.search import ListedSearch, Point, Search, listed_points
from lora_study.small_files import user_path
from lora_study.study import run_all


def run_sweep(
    sweep: SweepConfig,
    base: ExperimentConfig,
    results_dir: str | Path,
    launcher: Launcher,
    *,
    max_trials: int | None = None,
    command: str = "",
) -> list[Record]:
    """Run the points of a sweep, then the chosen one as the experiment 'best', which scores the test reviews.

    Args:
        sweep: The sweep.
        base: The experiment that it varies; see `lora_study.config_files.load_sweep`.
        results_dir: Folder for the results.
        launcher: Where the runs are run.
        max_trials: Try at most this many points.
        command: What the user typed, for the records.

    Returns:
        One record per run, those of the chosen point's test last; without them if no point has all its runs.

    Raises:
        ConfigError: the folder cannot be written, or holds another sweep; a point is not a valid experiment; Optuna is
            missing; or the chosen point is not the one that was tested here before. Points run until then are kept.
    """
    results_dir = user_path(results_dir)
    check(max_trials is None or max_trials >= 1, "--max-trials", max_trials, "use 1 or more")
    search = _search(sweep, base, results_dir, max_trials)
    _claim(results_dir, sweep)
    records = _run_points(search, sweep, results_dir, launcher, command)
    tried, _ = read_records(results_dir)
    chosen = chosen_point(point_table(trials_of(tried), list(sweep.parameters)), len(sweep.seeds))
    if chosen is None:
        return records
    config = next(record.config for record in tried if record.name == chosen)
    best = dataclasses.replace(experiment_from(config), name=BEST, score_test=True)
    try:
        runs = [dataclasses.replace(best, seed=seed) for seed in sweep.seeds]
        return [*records, *run_all(runs, results_dir, launcher, command)]
    except ConfigError as error:
        raise ConfigError(f"{chosen} is chosen now, but another point was tested here before: {error}") from error


def _search(sweep: SweepConfig, base: ExperimentConfig, results_dir: Path, limit: int | None) -> Search:
    if sweep.search.method != "adaptive":
        return ListedSearch(listed_points(sweep, base, limit))
    try:
        from lora_study.adaptive import AdaptiveSearch
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"search.method: 'adaptive' needs {error.name}; pip install 'lora-study[optuna]', or use random"
        ) from error
    return AdaptiveSearch(sweep, base, results_dir, limit)


def _claim(results_dir: Path, sweep: SweepConfig) -> None:
    """Write down which sweep the folder is for, so that its report can be made from the folder alone."""
    path, content = results_dir / SWEEP_FILE, to_dict(sweep)
    if path.exists():
        then, now = (_identity(settings) for settings in (read_yaml(path), content))
        if changed := [key for key in now if then.get(key) != now[key]]:
            raise ConfigError(
                f"{results_dir} holds another sweep (other {', '.join(changed)}); choose another --results-dir"
            )
    with writing_to(results_dir):
        write_text(path, dump_yaml(content))


def _identity(settings: dict[str, Any]) -> dict[str, Any]:
    """What of a sweep's settings must stay the same; more trials may be added."""
    search = {key: value for key, value in settings.get("search", {}).items() if key != "trials"}
    return {key: value for key, value in settings.items() if key != "title"} | {"search": search}


def _run_points(
    search: Search, sweep: SweepConfig, results_dir: Path, launcher: Launcher, command: str
) -> list[Record]:
    """Run every point that the search asks for, with each seed while the search finds it worth another."""
    records = []
    while points := search.ask():
        found: dict[str, list[float]] = {point.experiment.name: [] for point in points}
        going: list[Point] = points
        for seed in sweep.seeds:
            runs = [dataclasses.replace(point.experiment, seed=seed) for point in going]
            going_on = []
            for point, record in zip(going, run_all(runs, results_dir, launcher, command), strict=True):
                records.append(record)
                accuracies = found[point.experiment.name]
                if record.status != "completed":
                    accuracies.clear()  # a mean over fewer seeds would not be comparable
                    continue
                accuracies.append(record.metrics["val"]["accuracy"])
                if search.goes_on(point, accuracies):
                    going_on.append(point)
            going = going_on
        for point in points:
            search.tell(point, found[point.experiment.name])
    return records
