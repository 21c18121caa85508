"""Which settings a sweep tries: every combination, random draws, or what the results so far suggest, all by Optuna.

Two things are not left to Optuna. Its GridSampler shuffles the grid and raises when told the last result; ours keeps
the file's order, so that the longest runs can come first. And its storage would mistake a killed process's trials for
running ones, and restart the sampler's random numbers. Here the study lives in memory: a sweep that is started again
asks from the beginning, with the same seed and so for the same settings, and finds their runs completed.
"""

import dataclasses
import hashlib
import itertools
import json
import math
import re
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from lora_study.config import ExperimentConfig
from lora_study.config_studies import SweepConfig

LONGEST_NAME = 80  # characters

PRUNERS: dict[str, Callable[[], optuna.pruners.BasePruner]] = {
    "none": optuna.pruners.NopPruner,
    "median": optuna.pruners.MedianPruner,
    "halving": optuna.pruners.SuccessiveHalvingPruner,
}


@dataclass
class Trial:
    """Settings to try: the experiment with them, and its validation accuracies so far, one per seed."""

    experiment: ExperimentConfig
    proposal: optuna.Trial
    accuracies: list[float] = field(default_factory=list)
    failed: bool = False


class Search:
    """An Optuna study, which is asked for settings and told how they did.

    Args:
        sweep: The sweep.
        base: The experiment that is varied.
        limit: Propose at most this many settings.

    Raises:
        ConfigError: a value, or an end of a range, makes no valid experiment.
    """

    def __init__(self, sweep: SweepConfig, base: ExperimentConfig, limit: int | None = None) -> None:
        _check_values(sweep, base)
        search, self._sweep, self._base = sweep.search, sweep, base
        size = search.trials or math.prod(map(len, sweep.parameters.values()))
        self._left = size if limit is None else min(limit, size)
        self._batch = search.batch if search.method == "adaptive" else self._left
        self._trials: dict[ExperimentConfig, Trial] = {}  # by experiment, ignoring its name
        self._repeats: list[tuple[optuna.Trial, Trial]] = []
        self._distributions = {name: _distribution(values) for name, values in sweep.parameters.items()}
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        pruner = PRUNERS[search.pruner]()
        self._study = optuna.create_study(direction="maximize", sampler=_sampler(sweep), pruner=pruner)
        if search.method == "grid":
            for values in itertools.islice(itertools.product(*sweep.parameters.values()), self._left):
                self._study.enqueue_trial(dict(zip(sweep.parameters, map(json.dumps, values), strict=True)))

    def ask(self) -> list[Trial]:
        """The next trials, which may run side by side; none once the search is over.

        A grid and random draws come all at once. Adaptive proposals come in batches, however many workers there are.

        Raises:
            ConfigError: together, proposed settings make no valid experiment.
        """
        new: list[Trial] = []
        while self._left and not new:
            for proposal, known in self._repeats:
                self.tell(dataclasses.replace(known, proposal=proposal))
            self._repeats.clear()
            for _ in range(min(self._batch, self._left)):
                proposal = self._study.ask(self._distributions)
                settings = {name: self._value(name, proposal.params[name]) for name in self._distributions}
                trial = Trial(make_experiment(self._base, settings), proposal)
                known = self._trials.setdefault(dataclasses.replace(trial.experiment, name=self._base.name), trial)
                if known is trial:
                    new.append(trial)
                else:
                    self._repeats.append((proposal, known))
                self._left -= 1
        return new

    def goes_on(self, trial: Trial) -> bool:
        """Whether the pruner finds these settings worth another seed."""
        trial.proposal.report(statistics.fmean(trial.accuracies), len(trial.accuracies))
        return not trial.proposal.should_prune()

    def tell(self, trial: Trial) -> None:
        """Tell Optuna how settings did: their mean over all seeds, or that they failed or were dropped."""
        if trial.failed:
            self._study.tell(trial.proposal, state=optuna.trial.TrialState.FAIL)
        elif len(trial.accuracies) == len(self._sweep.seeds):
            self._study.tell(trial.proposal, statistics.fmean(trial.accuracies))
        else:
            self._study.tell(trial.proposal, state=optuna.trial.TrialState.PRUNED)

    def _value(self, name: str, value: Any) -> Any:
        """A value that Optuna proposes, as the sweep file would write it."""
        values = self._sweep.parameters[name]
        if isinstance(values, list):
            return json.loads(value)
        low, high = _ends(values)
        # Three digits, still within the range, so that names and configs are readable.
        return value if isinstance(value, int) else min(max(float(f"{value:.3g}"), low), high)


def make_experiment(base: ExperimentConfig, settings: Mapping[str, Any]) -> ExperimentConfig:
    """An experiment with these settings, by dotted name, and named after them: the same settings share a folder.

    Raises:
        ConfigError: they make no valid experiment.
    """
    experiment: Any = dataclasses.replace(base, name=setting_name(settings))
    for name, value in settings.items():
        experiment = _replace(experiment, name, value)
    return experiment  # type: ignore[no-any-return]


def setting_name(settings: Mapping[str, Any]) -> str:
    """A name that spells out the settings, such as 'r-8_alpha-16_targets-query-value'; other settings get another name.

    A name that is too long, or lost a character that a folder's name cannot have, ends in a part of a SHA-256.
    """
    labels = [name.rpartition(".")[2] for name in settings]
    parts, removed = [], 0
    for name, label, value in zip(settings, labels, settings.values(), strict=True):
        items = [str(item) for item in (value if isinstance(value, list) else [value])]
        kept, count = re.subn(r"[^A-Za-z0-9._-]", "", "-".join(items))
        parts.append(f"{label if labels.count(label) == 1 else name}-{kept}")
        removed += count
    text = "_".join(parts)
    if not removed and len(text) <= LONGEST_NAME:
        return text
    return f"{text[:LONGEST_NAME]}-{hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]}"


def _check_values(sweep: SweepConfig, base: ExperimentConfig) -> None:
    """Refuse, before anything runs, a value that no experiment can have; a search might reach it only later."""
    candidates = {n: values if isinstance(values, list) else _ends(values) for n, values in sweep.parameters.items()}
    first = {name: values[0] for name, values in candidates.items()}
    for name, values in candidates.items():
        for value in values:
            make_experiment(base, first | {name: value})


def _sampler(sweep: SweepConfig) -> optuna.samplers.BaseSampler:
    search = sweep.search
    if search.method != "adaptive":
        return optuna.samplers.RandomSampler(seed=search.seed)
    kind = optuna.samplers.TPESampler if search.sampler == "tpe" else optuna.samplers.GPSampler
    return kind(seed=search.seed)


def _distribution(values: Any) -> BaseDistribution:
    if isinstance(values, list):  # as JSON, because Optuna's categories are plain values and ours may be lists
        return CategoricalDistribution([json.dumps(value) for value in values])
    low, high = _ends(values)
    log = "loguniform" in values
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log)
    return FloatDistribution(low, high, log=log)


def _ends(values: Mapping[str, list[Any]]) -> list[Any]:
    """The lowest and the highest of {uniform: [low, high]}."""
    return next(iter(values.values()))


def _replace(config: Any, name: str, value: Any) -> Any:
    """A config with the field of this dotted name replaced; the config checks itself."""
    first, _, rest = name.partition(".")
    return dataclasses.replace(config, **{first: _replace(getattr(config, first), rest, value) if rest else value})
