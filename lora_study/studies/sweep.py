"""A sweep: one experiment with many settings; the best by validation accuracy is then tested, once.

Trials are ordinary runs in the results folder, so a sweep that is started again goes on where it stopped, and all
settings ever tried there count.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from lora_study.base.errors import ConfigError, check
from lora_study.base.files import user_path, write_text
from lora_study.base.plain_yaml import dump_yaml
from lora_study.config import ExperimentConfig, flatten, to_dict
from lora_study.config_files import read_config
from lora_study.config_studies import STUDY_FILE, WORDS, SweepConfig
from lora_study.evidence.summary import measured
from lora_study.evidence.trials import BEST, SWEEP_FILE, chosen_trial, runs_of_best, trials_table
from lora_study.records.record import Record, read_records
from lora_study.records.run_folder import put_back_if_refused, writing_to
from lora_study.studies.launchers import Launcher
from lora_study.studies.search import Search, Trial, make_experiment
from lora_study.studies.study import run_all


def run_sweep(
    sweep: SweepConfig,
    base: ExperimentConfig,
    results_dir: str | Path,
    launcher: Launcher,
    *,
    max_trials: int | None = None,
    command: str = "",
) -> list[Record]:
    """Run the trials of a sweep, then the chosen settings as the experiment 'best', scored on the test reviews.

    Args:
        sweep: The sweep.
        base: The experiment that it varies; see `lora_study.config_files.load_sweep`.
        results_dir: Folder for the results.
        launcher: Where the runs are run.
        max_trials: Try at most this many settings.
        command: What the user typed, for the records.

    Returns:
        One record per run, those of 'best' last; none of 'best' if no settings completed all their runs.

    Raises:
        ConfigError: the folder cannot be written, or holds a study or another sweep; settings make no valid experiment;
            or the chosen settings are not those that were tested here before. Trials run until then are kept.
    """
    results_dir = user_path(results_dir)
    check(max_trials is None or max_trials >= 1, "--max-trials", max_trials, "use 1 or more")
    search = Search(sweep, base, max_trials)
    trials = search.ask()  # finds a mistake in a grid or in random draws before anything is written
    records: list[Record] = []
    with put_back_if_refused(results_dir / SWEEP_FILE):
        _claim(results_dir, sweep)
        while trials:
            records += _run_trials(trials, search, sweep, results_dir, launcher, command)
            trials = search.ask()
    tried, _ = read_records(results_dir)
    parameters = list(sweep.parameters)
    chosen = chosen_trial(trials_table(tried, parameters), len(sweep.seeds))
    if chosen is None:
        return records
    tested = [record for record in tried if record.name == BEST and record.status == "completed"]
    if len(runs_of_best(tried, chosen, parameters)) < len(tested):
        raise ConfigError(
            f"{chosen} is chosen now, but other settings were tested here before; "
            "keep that choice, or search again in another --results-dir"
        )
    settings = flatten(next(record.config for record in tried if record.name == chosen))
    # The reviews and the encoder are where they are said to be now, which need not be where the trials found them.
    chosen_experiment = make_experiment(base, {parameter: settings[parameter] for parameter in parameters})
    best = dataclasses.replace(chosen_experiment, name=BEST, score_test=True)
    runs = [dataclasses.replace(best, seed=seed) for seed in sweep.seeds]
    return records + run_all(runs, results_dir, launcher, command)


def _claim(results_dir: Path, sweep: SweepConfig) -> None:
    """Write down which sweep the folder belongs to, so that its report can be made from the folder alone."""
    path, content = results_dir / SWEEP_FILE, to_dict(sweep)
    if (results_dir / STUDY_FILE).exists():
        raise ConfigError(f"{results_dir} holds a study; choose another --results-dir")
    if path.exists():
        then, now = _identity(to_dict(read_config(path, SweepConfig, "sweep"))), _identity(content)
        if changed := [key for key in now if then[key] != now[key]]:
            raise ConfigError(
                f"{results_dir} holds another sweep (other {', '.join(changed)}); choose another --results-dir"
            )
    with writing_to(results_dir):
        write_text(path, dump_yaml(content))


def _identity(settings: dict[str, Any]) -> dict[str, str]:
    """The settings of a sweep that must not change; more trials may be added.

    Neither may the order of the parameters or how their values are written: they name the runs' folders.
    """
    search = {key: value for key, value in settings["search"].items() if key != "trials"}
    same = {key: value for key, value in settings.items() if key not in WORDS} | {"search": search}
    return {key: json.dumps(value, sort_keys=key != "parameters") for key, value in same.items()}


def _run_trials(
    trials: list[Trial], search: Search, sweep: SweepConfig, results_dir: Path, launcher: Launcher, command: str
) -> list[Record]:
    """Run each trial with all seeds, or seed after seed while the search finds it worth another; tell it how each did.

    Without a pruner nothing depends on the seeds before, and runs of all seeds keep all workers busy.
    """
    records: list[Record] = []
    going = trials
    for seeds in [sweep.seeds] if sweep.search.pruner == "none" else [(seed,) for seed in sweep.seeds]:
        runs = [dataclasses.replace(trial.experiment, seed=seed) for seed in seeds for trial in going]
        ended = run_all(runs, results_dir, launcher, command)
        records += ended
        for number, trial in enumerate(going):
            found = [_accuracy(record) for record in ended[number :: len(going)]]
            trial.failed = None in found  # a mean over fewer seeds would not be comparable
            trial.accuracies += [accuracy for accuracy in found if accuracy is not None]
        going = [trial for trial in going if not trial.failed and search.goes_on(trial)]
    for trial in trials:  # in the order of the proposals, no matter which ended first
        search.tell(trial)
    return records


def _accuracy(record: Record) -> float | None:
    """A completed run's validation accuracy."""
    return measured(record, "metrics.val.accuracy") if record.status == "completed" else None
