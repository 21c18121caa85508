"""What each rule can decide: the chance of each verdict if the article is exactly right, by simulation.

The simulated runs have the same number of seeds and reviews and the same spread; their mean is what was reported.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
from scipy import stats

from lora_study.evidence.claims.rules import (
    Basis,
    Signs,
    judge_below_one,
    judge_direction,
    judge_prediction,
    prediction_half_width,
    verdict,
)
from lora_study.evidence.statistics import CONFIDENCE, Estimate, MeanSquares, mean_with_sampling

DRAWS = 2000
LESS = 0.8  # the ratio that is assumed if only "less" was claimed


def in_words(signs: Iterable[int], basis: Basis, seeds: int) -> str:
    """The share of each verdict, such as 'reproduced 83%, not reproduced 1%, inconclusive 16%'."""
    found = np.asarray(list(signs))
    shares = {verdict(sign, basis, seeds): float((found == sign).mean()) for sign in (1, -1, 0)}
    return ", ".join(f"{word} {share:.0%}" for word, share in shares.items())


def of_prediction(deviation: float, seeds: int, ours: float, theirs: float, bound: float) -> Signs:
    """Draws of `judge_prediction` if the mean over seeds and reviews is the reported number.

    Args:
        deviation: Standard deviation between seeds.
        seeds: Number of seeds.
        ours: Standard error of our mean from our reviews.
        theirs: The same of one run on the article's reviews.
        bound: That of the half-width, in the same unit.
    """
    random = np.random.default_rng(1)
    off = math.hypot(deviation / math.sqrt(seeds), ours) * random.standard_normal(DRAWS)
    half = prediction_half_width(_deviations(random, deviation, seeds), seeds, math.hypot(ours, theirs))
    return judge_prediction(off, half, 0.0, bound)


def of_direction(estimates: Iterable[Estimate], family: int) -> list[int]:
    """What `judge_direction` says about estimates, each of which has to pass at its share of the level.

    This is Holm's hardest case: the smallest p-value of the family.
    """
    return [judge_direction(drawn.value, min(1.0, family * drawn.differs())) for drawn in estimates]


def draw_differences(difference: float, squares: MeanSquares) -> Iterator[Estimate]:
    """Estimates of a paired difference if it is the reported one and the variances are the measured ones."""
    random = np.random.default_rng(1)
    seeds, reviews = squares.shape
    error = math.sqrt(squares.sampling_variance + squares.seed_variance / seeds)
    between = squares.residual + reviews * squares.seed_variance
    for _ in range(DRAWS // 4):
        mean = difference + error * random.standard_normal()
        drawn = between * random.chisquare(seeds - 1) / (seeds - 1)
        yield replace(squares, mean=mean, seeds=drawn).estimate()


def draw_means(mean: float, deviation: float, seeds: int, sampling: float) -> Iterator[Estimate]:
    """Estimates of a mean over seeds if it is the reported one; see `mean_with_sampling`."""
    random = np.random.default_rng(1)
    error = math.hypot(deviation / math.sqrt(seeds), sampling)
    for drawn in _deviations(random, deviation, seeds)[: DRAWS // 4]:
        yield mean_with_sampling(mean + error * random.standard_normal(), float(drawn), seeds, sampling)


def of_below_one(deviation: float, seeds: int) -> Signs:
    """Draws of `judge_below_one` if the ratio is `LESS`; the deviation is that of its logarithm."""
    random = np.random.default_rng(1)
    centre = math.log(LESS) + deviation / math.sqrt(seeds) * random.standard_normal(DRAWS)
    half = (
        float(stats.t.ppf((1 + CONFIDENCE) / 2, seeds - 1)) * _deviations(random, deviation, seeds) / math.sqrt(seeds)
    )
    return judge_below_one(np.exp(centre - half), np.exp(centre + half))


def _deviations(random: np.random.Generator, deviation: float, seeds: int) -> np.ndarray:
    """Simulated standard deviations between this many seeds."""
    return deviation * np.sqrt(random.chisquare(seeds - 1, DRAWS) / (seeds - 1))
