"""Everything that decides a study or a sweep: many runs of the experiments of config.py."""

from dataclasses import dataclass, field
from typing import Any, Literal

from lora_study.base.errors import check
from lora_study.base.settings import Settings
from lora_study.config import check_name

STUDY_FILE = "study.yaml"  # in the results, for the report: the study's `WORDS`, and its experiments' names and seeds
OWN = ("name", "seed", "score_test")  # what a sweep sets in each of its runs
WORDS = ("title", "question", "limits")  # what a study or a sweep says of itself, and may say otherwise later


@dataclass(frozen=True)
class StudyConfig(Settings):
    """A study: experiments times seeds, with optional settings laid over every experiment.

    Args:
        name: Name of the study and of its results folder.
        title: One line for the head of the report.
        question: What is asked, in plain words, for the report.
        limits: What the study cannot say, likewise.
        next: What to type after it, in a line that the command ends with when all runs are completed.
        experiments: Experiment files, relative to the study file, or experiments written out as in such a file:
            settings under a name, laid over what their ``extends`` names.
        seeds: Seeds every experiment is run with.
        overrides: Settings laid over every experiment, as in an experiment file; ``extends`` works too.
    """

    name: str
    title: str
    experiments: tuple[str | dict[str, Any], ...]
    seeds: tuple[int, ...] = (1,)
    overrides: dict[str, Any] = field(default_factory=dict)
    question: str = ""
    limits: str = ""
    next: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_name("name", self.name)
        check(len(self.experiments) > 0, "experiments", self.experiments, "list at least one experiment")
        for entry in (self.overrides, *(entry for entry in self.experiments if isinstance(entry, dict))):
            place = "overrides" if entry is self.overrides else f"experiment {entry.get('name', '')}".rstrip()
            check("seed" not in entry, f"{place}: seed", entry.get("seed"), "list it under seeds, the study's own")
        check(len(self.seeds) > 0, "seeds", self.seeds, "list at least one seed")
        check(len(set(self.seeds)) == len(self.seeds), "seeds", self.seeds, "list each seed once")


@dataclass(frozen=True)
class SearchConfig(Settings, section="search"):
    """How a sweep chooses the settings that it tries.

    Args:
        method: 'grid' takes every combination of the parameters' values; 'random' draws values; 'adaptive' lets Optuna
            propose them from the results so far.
        trials: How many settings to draw or propose; null only for 'grid', whose values decide the number.
        seed: Seed of the draws or proposals.
        batch: How many settings are proposed together, before the results of any are known (method 'adaptive'). They
            can run side by side, and the proposals do not depend on how many actually do.
        sampler: Optuna's sampler (method 'adaptive'): 'tpe' (Parzen estimators) or 'gp' (a Gaussian process).
        pruner: Which of Optuna's pruners may drop settings after some of their seeds (method 'adaptive'): 'none',
            'median' (below the median of the others after as many seeds) or 'halving' (successive halving).
    """

    method: Literal["grid", "random", "adaptive"] = "grid"
    trials: int | None = None
    seed: int = 0
    batch: int = 4
    sampler: Literal["tpe", "gp"] = "tpe"
    pruner: Literal["none", "median", "halving"] = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        remedy = "a grid's values decide how many there are; leave it out" if self.method == "grid" else "use 1 or more"
        valid = self.trials is None if self.method == "grid" else self.trials is not None and self.trials >= 1
        check(valid, "search.trials", self.trials, remedy)
        check(0 <= self.seed < 2**32, "search.seed", self.seed, "use 0 to 4294967295")
        check(self.batch >= 1, "search.batch", self.batch, "use 1 or more")


@dataclass(frozen=True)
class SweepConfig(Settings):
    """A sweep: one experiment with many settings, the best of which by validation accuracy is tested.

    Args:
        name: Name of the sweep and of its results folder.
        title: One line for the head of its page.
        question: What is asked, in plain words, for the page.
        limits: What the sweep cannot say, likewise.
        experiment: Experiment file, relative to the sweep file.
        parameters: What varies: for each field of the experiment, such as 'lora.r', a list of its values (equal ones
            count once), or (not in a grid) 'uniform' or 'loguniform' with the lowest and the highest, as in
            {loguniform: [1e-5, 1e-3]}. Two whole numbers draw whole numbers; others are rounded to three digits.
        search: How the settings to try are chosen.
        seeds: Seeds all settings are run with; the mean over them is compared.
        overrides: Settings laid over the experiment, as in an experiment file; ``extends`` works too.
    """

    name: str
    title: str
    experiment: str
    parameters: dict[str, Any]
    search: SearchConfig = field(default_factory=SearchConfig)
    seeds: tuple[int, ...] = (1,)
    overrides: dict[str, Any] = field(default_factory=dict)
    question: str = ""
    limits: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_name("name", self.name)
        check(len(self.parameters) > 0, "parameters", self.parameters, "name at least one field, such as lora.r")
        check(len(self.seeds) > 0, "seeds", self.seeds, "list at least one seed")
        check(len(set(self.seeds)) == len(self.seeds), "seeds", self.seeds, "list each seed once")
        for name in OWN:
            check(name not in self.overrides, f"overrides.{name}", self.overrides.get(name), "the sweep sets it")
        for name, values in self.parameters.items():
            _check_parameter(name, values, self.search.method)
        check(
            self.search.pruner == "none" or (self.search.method == "adaptive" and len(self.seeds) > 1),
            "search.pruner",
            self.search.pruner,
            "an adaptive search drops settings between seeds; list two seeds or more with method adaptive, or use none",
        )


def _check_parameter(name: str, values: Any, method: str) -> None:
    """Refuse a parameter of a sweep that is neither a list of values nor a range."""
    field_name = f"parameters.{name}"
    check(name not in OWN, "parameters", name, "the sweep sets it; vary another field")
    if isinstance(values, list):
        check(len(values) > 0, field_name, values, "list one value or more")
        return
    ends = next(iter(values.values())) if isinstance(values, dict) and len(values) == 1 else None
    numbers = isinstance(ends, list) and len(ends) == 2 and all(type(end) in (int, float) for end in ends)
    known = numbers and next(iter(values)) in ("uniform", "loguniform")
    remedy = "give a list of values, or {uniform: [low, high]} or {loguniform: [low, high]} with two numbers"
    check(known, field_name, values, remedy)
    check(method != "grid", field_name, values, "a grid takes lists of values; use search.method random or adaptive")
    low, high = next(iter(values.values()))
    above = "loguniform" not in values or low > 0
    remedy = "the first number must be the lower one, and above 0 for loguniform; neither may be beyond 2**53"
    check(-(2**53) <= low < high <= 2**53 and above, field_name, values, remedy)
