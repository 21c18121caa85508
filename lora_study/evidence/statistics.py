"""Intervals and tests behind the tables and verdicts: pure functions of numbers, without records or clock.

Two sources of error are kept apart throughout. Reviews: another sample of test reviews would give another accuracy.
Seeds: the same recipe, trained again, gives another model. An interval from one run knows nothing about seeds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

CONFIDENCE = 0.95
ALPHA = 0.05

Interval = tuple[float, float]


@dataclass(frozen=True)
class Estimate:
    """A number with its error: ``(value - truth) / standard_error`` follows Student's t with ``df`` degrees.

    Attributes:
        value: The estimate.
        standard_error: Its standard error, in the same unit; 0 where nothing varied.
        df: Degrees of freedom; infinite for a normal distribution.
    """

    value: float
    standard_error: float
    df: float = math.inf

    def interval(self, confidence: float = CONFIDENCE) -> Interval:
        """The two-sided confidence interval."""
        half = float(stats.t.ppf((1 + confidence) / 2, self.df)) * self.standard_error
        return self.value - half, self.value + half

    def above(self, bound: float) -> float:
        """One-sided p-value for the truth being above ``bound`` (null hypothesis: it is not)."""
        if self.standard_error == 0:
            return 0.0 if self.value > bound else 1.0
        return float(stats.t.sf((self.value - bound) / self.standard_error, self.df))

    def below(self, bound: float) -> float:
        """One-sided p-value for the truth being below ``bound``."""
        return Estimate(-self.value, self.standard_error, self.df).above(-bound)

    def differs(self, bound: float = 0.0) -> float:
        """Two-sided p-value for the truth differing from ``bound``."""
        return min(1.0, 2 * min(self.above(bound), self.below(bound)))


def wilson(correct: int, n: int, confidence: float = CONFIDENCE) -> Interval:
    """Wilson's score interval of one run's accuracy (Wilson 1927): the error of sampling ``n`` reviews only.

    Args:
        correct: Reviews classified correctly, 0 to n.
        n: Reviews, 1 or more.
        confidence: Coverage.

    Returns:
        Lower and upper bound, fractions.
    """
    bounds = stats.binomtest(correct, n).proportion_ci(confidence, method="wilson")
    return float(bounds.low), float(bounds.high)


def sampling_error(accuracy: float, n: float, drawn: float) -> float:
    """Standard error of an accuracy from drawing that many reviews.

    Args:
        accuracy: As found on ``n`` reviews, a fraction; two right and two wrong ones are added (Agresti & Coull 1998),
            since a few reviews all being right does not prove that every review is.
        n: Reviews it was found on, 1 or more.
        drawn: Reviews that are drawn, 1 or more.
    """
    p = (accuracy * n + 2) / (n + 4)
    return math.sqrt(p * (1 - p) / drawn)


def mean_t(values: Sequence[float]) -> Estimate:
    """The mean over seeds with Student's standard error: how much another set of seeds would change it.

    Raises:
        ValueError: there are fewer than two values.
    """
    if len(values) < 2:
        raise ValueError("one value has no spread; the error over seeds needs two or more")
    return Estimate(float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(len(values)), len(values) - 1)


def mean_with_sampling(mean: float, deviation: float, seeds: int, sampling: float) -> Estimate:
    """A mean over seeds with the error of sampling reviews added (degrees of freedom: Satterthwaite 1946).

    Args:
        mean: Over the seeds.
        deviation: Standard deviation between them.
        seeds: Their number, two or more.
        sampling: Standard error from the reviews.
    """
    between = deviation**2 / seeds
    variance = between + sampling**2
    df = (seeds - 1) * (variance / between) ** 2 if between else math.inf
    return Estimate(mean, math.sqrt(variance), df)


@dataclass(frozen=True)
class AccuracyOverSeeds:
    """The error of one recipe's accuracy.

    Attributes:
        sampling: Wilson's interval of that accuracy for one run's reviews: the part that more reviews would shrink.
            All seeds share the test reviews, so more seeds do not shrink it.
        interval: That and the error of seeds together, at the same confidence; the first alone for one run.
    """

    sampling: Interval
    interval: Interval


def accuracy_over_seeds(accuracies: Sequence[float], n: int, confidence: float = CONFIDENCE) -> AccuracyOverSeeds:
    """Accuracy of a recipe from its runs, each on the same ``n`` reviews.

    The parts are independent and are added by recovering their variances from their limits (Zou & Donner 2008):
    the distances from the mean to Wilson's and to Student's limits add in squares. The spread between seeds holds
    some chance of single reviews too, so the interval errs on the wide side.

    Args:
        accuracies: One per seed, fractions.
        n: Reviews of each run.
        confidence: Coverage.
    """
    mean = float(np.mean(accuracies))
    sampling = wilson(round(mean * n), n, confidence)
    if len(accuracies) < 2:
        return AccuracyOverSeeds(sampling, sampling)
    low, high = mean_t(accuracies).interval(confidence)
    both = (mean - math.hypot(mean - sampling[0], mean - low), mean + math.hypot(sampling[1] - mean, high - mean))
    return AccuracyOverSeeds(sampling, (max(both[0], 0.0), min(both[1], 1.0)))


@dataclass(frozen=True)
class MeanSquares:
    """Two-way analysis of variance without replication: one score per seed (row) and review (column).

    Attributes:
        mean: Mean score.
        seeds: Mean square between seeds; expected ``reviews * var(seed) + var(residual)``.
        reviews: Mean square between reviews; expected ``seeds * var(review) + var(residual)``.
        residual: Mean square of what is left, the seed-by-review interaction.
        shape: Number of seeds and reviews.
    """

    mean: float
    seeds: float
    reviews: float
    residual: float
    shape: tuple[int, int]

    @property
    def seed_variance(self) -> float:
        """Variance that retraining adds to the mean score over reviews; a negative estimate counts as zero."""
        return max(0.0, self.seeds - self.residual) / self.shape[1]

    @property
    def sampling_variance(self) -> float:
        """Variance of the mean score that comes from drawing these reviews and not others."""
        return self.reviews / (self.shape[0] * self.shape[1])

    def estimate(self) -> Estimate:
        """The mean score with the error of both sources: seeds and reviews are random (see `paired_difference`)."""
        seeds, reviews = self.shape
        variance = self.sampling_variance + self.seed_variance / seeds
        if variance <= 2 / reviews**2:
            return Estimate(self.mean, math.sqrt(2) / reviews, seeds - 1)
        spread = self.reviews**2 / (reviews - 1)
        if self.seed_variance > 0:
            spread += self.seeds**2 / (seeds - 1) + self.residual**2 / ((seeds - 1) * (reviews - 1))
        return Estimate(self.mean, math.sqrt(variance), (variance * seeds * reviews) ** 2 / spread)


def mean_squares(scores: ArrayLike) -> MeanSquares:
    """The two-way mean squares of a table of scores, (seeds, reviews), two or more of each.

    Source: Shrout & Fleiss 1979, with seeds as judges and reviews as targets.
    """
    table = np.asarray(scores, dtype=float)
    seeds, reviews = table.shape
    mean, by_seed, by_review = table.mean(), table.mean(axis=1), table.mean(axis=0)
    rest = table - by_seed[:, None] - by_review[None, :] + mean
    return MeanSquares(
        mean=float(mean),
        seeds=float(reviews * by_seed.var(ddof=1)),
        reviews=float(seeds * by_review.var(ddof=1)),
        residual=float((rest**2).sum() / ((seeds - 1) * (reviews - 1))),
        shape=(seeds, reviews),
    )


def paired_difference(first: ArrayLike, second: ArrayLike) -> Estimate:
    """How much more accurate the first recipe is than the second, paired per review and seed.

    With one seed the error is that of sampling reviews: the answer is about these two trained models. With several,
    the variance between seeds is added and reviews and seeds are both random, as readers and cases are in
    multi-reader studies (Obuchowski & Rockette 1995; degrees of freedom as in Satterthwaite 1946 and Hillis 2007).
    Two seeds say little about the variance between seeds: if it is large, the test is then too bold; with five seeds
    it is not (scripts/false_positives.py measures both).

    Args:
        first: Whether each prediction is right, (seeds, reviews), or (reviews,) for one seed; 2 or more reviews.
        second: The same reviews and seeds in the same order.

    Returns:
        The difference of accuracies, a fraction. Its standard error is never below that of two reviews decided
        one each way, so that a few reviews without any disagreement prove nothing.

    Raises:
        ValueError: the shapes differ.
    """
    a, b = (np.atleast_2d(np.asarray(scores, dtype=float)) for scores in (first, second))
    if a.shape != b.shape or a.shape[1] < 2:
        raise ValueError(f"paired scores need one shape and 2 or more reviews, not {a.shape} and {b.shape}")
    differences = a - b
    seeds, reviews = differences.shape
    if seeds == 1:
        variance = float(differences.var(ddof=1)) / reviews
        return Estimate(float(differences.mean()), math.sqrt(max(variance, 2 / reviews**2)), reviews - 1)
    return mean_squares(differences).estimate()


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values of tests made together, in the order given (Holm 1979).

    Calling those below a level significant keeps the chance of even one false finding at that level.
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(np.arange(len(p), 0, -1) * p[order])
    return [min(float(value), 1.0) for value in adjusted]
