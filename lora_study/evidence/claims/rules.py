"""How a claim gets its verdict: every rule with its bound, and every word. The claims themselves are in claims.yaml.

The SHA-256 of this file stands in every record (``provenance.rules_sha256``), so that a reader can see whether the
rules are older than the runs they judge. docs/rules.md says how often each rule errs, and how often it decides.

More evidence never weakens a verdict, in this sense: with the same mean and the same deviation, more seeds or more
reviews never turn a verdict into "inconclusive"; fewer than three seeds have no verdict that could be weakened; and as
tests that are not made count as p = 1, running one more experiment weakens no verdict on the others.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from lora_study.evidence.statistics import ALPHA, CONFIDENCE, holm

MIN_SEEDS = 3  # fewer say nothing about the variance between seeds: numbers, no verdict

# An interval no wider than this to either side tells rows of the article apart that lie 4 points from each other.
BOUND = 2.0  # points, for accuracies and differences
RATIO_BOUND = 1.25  # factor, for reported ratios
RATIO_MARGIN = 1.05  # factor below 1 that counts as less time or memory
CUT_DEVIATIONS = 2.5  # standard deviations of the difference between two random cuts of the same reviews

# recipe: the article's recipe on the article's encoder. stand-in: anything else, of which only the direction is judged.
# number: a measurement that could only be judged on the recipe. arithmetic: what follows without a run, and exact facts
# about the reviews. cut: counts that another random cut of the same reviews changes by chance.
Basis = Literal["recipe", "stand-in", "number", "arithmetic", "cut"]
WORDS: dict[Basis, tuple[str, str]] = {
    "recipe": ("reproduced", "not reproduced"),
    "stand-in": ("same direction", "other direction"),
    "arithmetic": ("agrees", "does not agree"),
    "cut": ("consistent", "not consistent"),
}
INCONCLUSIVE, NO_VERDICT, NOT_RUN = "inconclusive", "no verdict", "not run"
VERDICTS = (*(word for pair in WORDS.values() for word in pair), INCONCLUSIVE, NO_VERDICT, NOT_RUN)

Signs = NDArray[np.int_]  # 1: the claim holds; -1: it does not; 0: the numbers cannot tell


def prediction_half_width(deviation: ArrayLike, seeds: int, sampling: float) -> Any:
    """Half the width of the 95% interval for one more run, of another seed and tested on other reviews.

    The reported number is one run, so it is compared with where one run would end, not with the mean over seeds. The
    part of the seeds is Student's; the part of the reviews is normal; they add in squares.

    Args:
        deviation: Standard deviation between the seeds.
        seeds: Their number, two or more.
        sampling: Standard error from drawing our reviews and the other run's reviews, in the unit of the deviation.
    """
    tail = (1 + CONFIDENCE) / 2
    between = stats.t.ppf(tail, seeds - 1) * np.asarray(deviation) * np.sqrt(1 + 1 / seeds)
    return np.hypot(between, stats.norm.ppf(tail) * sampling)


def judge_prediction(value: ArrayLike, half_width: ArrayLike, reported: float, bound: float) -> Signs:
    """A reported number: it holds inside the interval if that is no wider than the bound; outside it does not hold."""
    value, half_width = np.asarray(value), np.asarray(half_width)
    inside = np.abs(value - reported) <= half_width
    return np.where(inside, np.where(half_width <= bound, 1, 0), -1)


def judge_direction(value: float, adjusted_p: float) -> int:
    """A sentence that something is greater: which way the difference goes, if the two-sided test finds one."""
    return 0 if adjusted_p >= ALPHA else 1 if value > 0 else -1


def judge_below_one(low: ArrayLike, high: ArrayLike) -> Signs:
    """A sentence that less time or memory is needed: the whole interval of the ratio is beyond the margin."""
    below, above = np.asarray(high) <= 1 / RATIO_MARGIN, np.asarray(low) >= RATIO_MARGIN
    return np.where(below, 1, np.where(above, -1, 0))


def judge_cut(value: float, reported: float, deviation: float) -> bool:
    """A count that depends on the random cut: both may be counts of one law with that deviation."""
    return bool(abs(value - reported) <= CUT_DEVIATIONS * np.sqrt(2) * deviation)


def adjust(p_values: Sequence[float | None]) -> list[float]:
    """Holm's correction over all claims that are tests; those that were not made count as p = 1."""
    return holm([1.0 if p is None else p for p in p_values])


def verdict(sign: int, basis: Basis, seeds: int | None) -> str:
    """The word for what was found.

    Args:
        sign: 1, -1 or 0; see `Signs`.
        basis: What kind of evidence it rests on.
        seeds: Seeds of a measurement, None for what needs none.
    """
    if basis == "number" or (seeds is not None and seeds < MIN_SEEDS):
        return NO_VERDICT
    return WORDS[basis][0 if sign > 0 else 1] if sign else INCONCLUSIVE
