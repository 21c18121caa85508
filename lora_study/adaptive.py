"""Adaptive search: Optuna proposes a sweep's points from the results so far.

Its samplers and pruners are used as they are. Points are proposed a batch at a time and results told in the order of
the proposals, so the same seed and results give the same points however many workers run them; a sweep that was
interrupted proposes the same points again and finds them done.
"""

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.storages.journal import JournalFileBackend

from lora_study.config import ExperimentConfig, SweepConfig
from lora_study.records import atomic
from lora_study.search import Point, make_point, rounded

SAMPLERS: dict[str, Callable[..., optuna.samplers.BaseSampler]] = {
    "tpe": optuna.samplers.TPESampler,
    "gp": optuna.samplers.GPSampler,
}
PRUNERS: dict[str, Callable[[], optuna.pruners.BasePruner]] = {
    "none": optuna.pruners.NopPruner,
    "median": optuna.pruners.MedianPruner,
    "halving": optuna.pruners.SuccessiveHalvingPruner,
}
JOURNAL = "optuna.journal"


class AdaptiveSearch:
    """An Optuna study, asked and told.

    Args:
        sweep: The sweep; search.method is 'adaptive'.
        base: The experiment that is varied.
        results_dir: Folder for Optuna's journal file, which its own tools read (optuna-dashboard, for one).
        limit: Propose at most this many points.
    """

    def __init__(self, sweep: SweepConfig, base: ExperimentConfig, results_dir: Path, limit: int | None = None) -> None:
        search = sweep.search
        assert search.trials is not None  # SearchConfig has checked it
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._sweep, self._base, self._results_dir = sweep, base, results_dir
        self._left = search.trials if limit is None else min(limit, search.trials)
        self._storage = optuna.storages.InMemoryStorage()
        self._study = optuna.create_study(
            study_name=sweep.name,
            direction="maximize",
            storage=self._storage,
            sampler=SAMPLERS[search.sampler](seed=search.seed),
            pruner=PRUNERS[search.pruner](),
        )
        self._trials: dict[str, list[optuna.Trial]] = {}

    def ask(self) -> list[Point]:
        """The next batch of proposals; a point that is proposed twice is run once and told as often."""
        self._write_journal()
        points = {}
        for _ in range(min(self._sweep.search.batch, self._left)):
            trial = self._study.ask()
            settings = {name: _suggest(trial, name, values) for name, values in self._sweep.parameters.items()}
            point = make_point(self._base, settings)
            points[point.experiment.name] = point
            self._trials.setdefault(point.experiment.name, []).append(trial)
            self._left -= 1
        return list(points.values())

    def goes_on(self, point: Point, accuracies: list[float]) -> bool:
        """What the pruner says."""
        trials = self._trials[point.experiment.name]
        for trial in trials:
            trial.report(statistics.fmean(accuracies), step=len(accuracies))
        return not trials[0].should_prune()

    def tell(self, point: Point, accuracies: list[float]) -> None:
        """Tell Optuna the mean: of a point that was dropped, one that failed, or one with all its seeds."""
        for trial in self._trials.pop(point.experiment.name):
            if len(accuracies) == len(self._sweep.seeds):
                self._study.tell(trial, statistics.fmean(accuracies))
            else:
                state = optuna.trial.TrialState.PRUNED if accuracies else optuna.trial.TrialState.FAIL
                self._study.tell(trial, state=state)

    def _write_journal(self) -> None:
        """Write down what is known so far; anew, since a sweep that is started again asks from the beginning."""
        with atomic(self._results_dir / JOURNAL) as temporary:
            storage = optuna.storages.JournalStorage(JournalFileBackend(str(temporary)))
            optuna.copy_study(from_study_name=self._sweep.name, from_storage=self._storage, to_storage=storage)


def _suggest(trial: optuna.Trial, name: str, values: Any) -> Any:
    if isinstance(values, list):  # as JSON: Optuna's categories are plain values, ours may be lists
        return json.loads(trial.suggest_categorical(name, [json.dumps(value) for value in values]))
    kind, (low, high) = next(iter(values.items()))
    log = kind == "loguniform"
    if isinstance(low, int) and isinstance(high, int):
        return trial.suggest_int(name, low, high, log=log)
    return rounded(trial.suggest_float(name, low, high, log=log), low, high)
