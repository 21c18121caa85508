"""The claims about accuracy: compared with a reported number, or between two experiments."""

import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from lora_study.base.errors import check
from lora_study.evidence.claims import power
from lora_study.evidence.claims.evidence import Missing, Pairs, Runs
from lora_study.evidence.claims.kinds import Claim, Finding
from lora_study.evidence.claims.rules import BOUND, MIN_SEEDS, Basis, judge_prediction, prediction_half_width
from lora_study.evidence.statistics import (
    ALPHA,
    Estimate,
    mean_squares,
    mean_with_sampling,
    paired_difference,
    sampling_error,
    wilson,
)
from lora_study.evidence.summary import all_measured, measured
from lora_study.records.record import Record

Part = Literal["train", "val", "test"]
ARTICLE_REVIEWS: dict[Part, int] = {"train": 35_000, "val": 5_000, "test": 10_000}
OF_TWO_MODELS = " (these two models)"  # what an interval over reviews alone is of
PREDICTION = f"the 95% interval for one more run holds it and is no wider than ±{BOUND:g} points"
TEST = f"two-sided test over reviews and seeds, Holm-adjusted p < {ALPHA:g}"


@dataclass(frozen=True, kw_only=True)
class Accuracy(Claim):
    """A reported accuracy, judged by where one more run would end (see `rules.judge_prediction`).

    Args:
        part: train, val or test.
        reported: Percent.
    """

    kind: ClassVar[str] = "accuracy"
    part: Part = "test"
    reported: float

    def __post_init__(self) -> None:
        super().__post_init__()
        self.needs(1)
        check(0 <= self.reported <= 100, "reported", self.reported, "use percent, 0 to 100")

    def _reported(self) -> str:
        return f"{self.reported:.2f}%"

    def _rule(self) -> str:
        return PREDICTION

    def _examine(self, runs: Runs) -> Finding:
        records = _scored(runs.of(self.experiments[0]), [self.part])
        if not records:
            raise Missing(f"no run of {self.experiments[0]} has an accuracy on {self.part}")
        values = [100 * value for value in all_measured(records, f"metrics.{self.part}.accuracy")]
        n = int(min(all_measured(records, f"metrics.{self.part}.n")))
        mean = statistics.fmean(values)
        label = runs.label(records)
        ours, theirs = (100 * sampling_error(mean / 100, n, m) for m in (n, ARTICLE_REVIEWS[self.part]))
        if len(values) == 1:
            low, high = (100 * bound for bound in wilson(round(mean / 100 * n), n))
            interval, evidence = f"{low:.2f} to {high:.2f}%", f"{n:,} reviews, 1 seed; the interval is of these reviews"
            sign, chances = 0, None
        else:
            sign, half, chances = _predict(values, ours, theirs, self.reported)
            interval = f"{max(mean - half, 0):.2f} to {min(mean + half, 100):.2f}%"
            evidence = f"{n:,} reviews, {_seeds(values)}; one more run: ±{half:.2f} points"
        return Finding(
            evidence=evidence if label else f"{evidence}; difference {mean - self.reported:+.2f} points",
            basis="number" if label else "recipe",
            sign=sign,
            seeds=len(values),
            measured=f"{mean:.2f}%",
            interval=interval,
            runs=runs.folders(records),
            label=label,
            power=None if label else chances,
        )


@dataclass(frozen=True, kw_only=True)
class _InPoints(Claim):
    """A claim about the first experiment beside the second, in percentage points of accuracy."""

    reported: float | None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.needs(2)

    def _reported(self) -> str | None:
        return None if self.reported is None else f"{self.reported:+.2f} points"


@dataclass(frozen=True, kw_only=True)
class Difference(_InPoints):
    """A reported difference of test accuracies, the first experiment's less the second's, judged likewise.

    Args:
        reported: Percentage points.
    """

    kind: ClassVar[str] = "difference"
    reported: float

    def _rule(self) -> str:
        return PREDICTION

    def _examine(self, runs: Runs) -> Finding:
        pairs = runs.pairs(*self.experiments)
        differences = pairs.first.astype(float) - pairs.second
        values = [100 * float(value) for value in differences.mean(axis=1)]
        mean, (seeds, reviews) = statistics.fmean(values), differences.shape
        # Never below that of two reviews decided one each way: a few reviews without any disagreement prove nothing.
        ours = 100 * math.sqrt(max(float(differences.mean(axis=0).var(ddof=1)), 2 / reviews) / reviews)
        theirs = 100 * math.sqrt(
            max(float(differences.var(axis=1, ddof=1).mean()), 2 / reviews) / ARTICLE_REVIEWS["test"]
        )
        if seeds == 1:
            low, high = (100 * bound for bound in paired_difference(pairs.first, pairs.second).interval())
            evidence = f"{reviews:,} reviews, 1 seed; the interval is of these two models"
            sign, chances = 0, None
        else:
            sign, half, chances = _predict(values, ours, theirs, self.reported)
            low, high = mean - half, mean + half
            evidence = f"{reviews:,} reviews, {_seeds(values)}; one more pair of runs: ±{half:.2f} points"
        return Finding(
            evidence=evidence,
            basis="number" if pairs.label else "recipe",
            sign=sign,
            seeds=seeds,
            measured=f"{mean:+.2f} points",
            interval=_between(low, high) + OF_TWO_MODELS * (seeds == 1),
            runs=pairs.runs,
            label=pairs.label,
            power=None if pairs.label else chances,
        )


@dataclass(frozen=True, kw_only=True)
class Ordering(_InPoints):
    """The first experiment is more accurate than the second on the same test reviews.

    Args:
        reported: By how many percentage points; None if that was not reported.
    """

    kind: ClassVar[str] = "ordering"
    is_test: ClassVar[bool] = True
    reported: float | None = None

    def _rule(self) -> str:
        return TEST

    def _examine(self, runs: Runs) -> Finding:
        pairs = runs.pairs(*self.experiments)
        difference = paired_difference(pairs.first, pairs.second)
        low, high = (100 * bound for bound in difference.interval())
        seeds, reviews = pairs.first.shape
        caveats = {
            1: "1 seed, so about these two models, not their recipes",
            2: "2 seeds, too few to know their variance",
        }
        return Finding(
            evidence=f"paired difference; {reviews:,} reviews, {caveats.get(seeds, f'{seeds} seeds')}",
            basis="stand-in" if pairs.label else "recipe",
            seeds=seeds,
            measured=f"{100 * difference.value:+.2f} points",
            interval=_between(low, high) + OF_TWO_MODELS * (seeds == 1),
            runs=pairs.runs,
            estimate=difference if seeds >= MIN_SEEDS else None,
            label=pairs.label,
            power=self._power(pairs),
        )

    def _power(self, pairs: Pairs) -> Callable[[int], str] | None:
        reported, seeds = self.reported, len(pairs.first)
        if reported is None or seeds < MIN_SEEDS:
            return None
        squares = mean_squares(pairs.first.astype(float) - pairs.second)

        def chances(family: int) -> str:
            drawn = power.draw_differences(reported / 100, squares)
            return power.in_words(power.of_direction(drawn, family), "stand-in" if pairs.label else "recipe", seeds)

        return chances


@dataclass(frozen=True, kw_only=True)
class Gap(_InPoints):
    """The first experiment loses less accuracy from training to test reviews than the second.

    Args:
        reported: How many percentage points less.
    """

    kind: ClassVar[str] = "gap"
    is_test: ClassVar[bool] = True
    reported: float

    def _rule(self) -> str:
        return TEST

    def _examine(self, runs: Runs) -> Finding:
        pairs = runs.same_reviews(*self.experiments)
        pairs = [pair for pair in pairs if len(_scored(pair, ["train", "test"])) == 2]
        if not pairs:
            raise Missing(f"no seed of {' and '.join(self.experiments)} has training and test accuracies for both")
        firsts, seconds = ([pair[side] for pair in pairs] for side in (0, 1))
        values = [100 * (_gap(second) - _gap(first)) for first, second in pairs]
        mean, seeds, label = statistics.fmean(values), len(values), runs.label([*firsts, *seconds])
        sampling = 100 * math.hypot(_gap_error(firsts), _gap_error(seconds))
        basis: Basis = "stand-in" if label else "recipe"
        deviation = statistics.stdev(values) if seeds > 1 else 0.0
        estimate = mean_with_sampling(mean, deviation, seeds, sampling) if seeds > 1 else Estimate(mean, sampling)

        def chances(family: int) -> str:
            drawn = power.draw_means(self.reported, deviation, seeds, sampling)
            return power.in_words(power.of_direction(drawn, family), basis, seeds)

        return Finding(
            evidence=f"training less test accuracy of the second, less that of the first; {_seeds(values)}",
            basis=basis,
            seeds=seeds,
            measured=f"{mean:+.2f} points",
            interval=_between(*estimate.interval()),
            runs=runs.folders([*firsts, *seconds]),
            estimate=estimate if seeds >= MIN_SEEDS else None,
            label=label,
            power=chances if seeds >= MIN_SEEDS else None,
        )


def _predict(
    values: list[float], ours: float, theirs: float, reported: float
) -> tuple[int, float, Callable[[int], str]]:
    """What the rule says about a reported number, the half-width of its interval, and the rule's power."""
    deviation, seeds = statistics.stdev(values), len(values)
    half = float(prediction_half_width(deviation, seeds, math.hypot(ours, theirs)))
    sign = int(judge_prediction(statistics.fmean(values), half, reported, BOUND))

    def chances(family: int) -> str:
        return power.in_words(power.of_prediction(deviation, seeds, ours, theirs, BOUND), "recipe", seeds)

    return sign, half, chances


def _scored(records: Iterable[Record], parts: Iterable[Part]) -> list[Record]:
    """The records that have an accuracy on each of these parts."""
    paths = [f"metrics.{part}.{key}" for part in parts for key in ("accuracy", "n")]
    return [record for record in records if all(measured(record, path) is not None for path in paths)]


def _gap(record: Record) -> float:
    train, test = (measured(record, f"metrics.{part}.accuracy") for part in ("train", "test"))
    return (train or 0.0) - (test or 0.0)


def _gap_error(records: list[Record]) -> float:
    """Standard error of the mean gap of some runs from drawing the reviews of its two parts."""
    parts = (
        [all_measured(records, f"metrics.{part}.{key}") for key in ("accuracy", "n")] for part in ("train", "test")
    )
    return math.hypot(
        *(sampling_error(statistics.fmean(accuracies), min(reviews), min(reviews)) for accuracies, reviews in parts)
    )


def _seeds(values: list[float]) -> str:
    if len(values) == 1:
        return "1 seed"
    return f"{len(values)} seeds, deviation {np.std(values, ddof=1):.2f} points"


def _between(low: float, high: float) -> str:
    return f"{low:+.2f} to {high:+.2f} points"
