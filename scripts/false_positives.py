"""How often each interval and test of lora_study.evidence.statistics is wrong where the truth is known, by simulation.

python scripts/false_positives.py [REPLICATIONS]
"""

import sys
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import norm

from lora_study.base.text_tables import markdown_table
from lora_study.evidence.statistics import (
    ALPHA,
    accuracy_over_seeds,
    equivalence,
    holm,
    mcnemar,
    mean_bootstrap,
    mean_t,
    outside,
    paired_difference,
    wilson,
)

REVIEWS = 1000
ACCURACY = 0.90
DIFFICULTY = 0.8  # share of a prediction's variance that lies in the review: what makes pairing worthwhile
SEED_DEVIATION = 0.005  # between seeds of one recipe, as a fraction of the reviews
LARGE_DEVIATION = 0.02
FAMILY = 5  # tests made together

Right = NDArray[np.bool_]
Experiment = Callable[[np.random.Generator], bool]


def predictions(
    random: np.random.Generator, seeds: int, difference: float = 0.0, deviation: float = 0.0
) -> tuple[Right, Right]:
    """Whether the predictions of two recipes are right, (seeds, reviews) each, on the same reviews.

    A prediction is right if difficulty of the review, luck of the seed and chance add up to more than a threshold,
    all normal; the threshold gives each recipe its accuracy over all reviews and seeds.

    Args:
        random: Source of the draws.
        seeds: Runs of each recipe.
        difference: Accuracy of the first recipe minus that of the second, a fraction.
        deviation: Standard deviation of the accuracy between seeds.
    """
    review = np.sqrt(DIFFICULTY) * random.standard_normal(REVIEWS)
    sides = []
    for accuracy in (ACCURACY, ACCURACY - difference):
        spread = deviation / norm.pdf(norm.ppf(accuracy))
        luck = spread * random.standard_normal((seeds, 1))
        chance = np.sqrt(1 - DIFFICULTY) * random.standard_normal((seeds, REVIEWS))
        sides.append(review + luck + chance + norm.ppf(accuracy) * np.sqrt(1 + spread**2) > 0)
    return sides[0], sides[1]


def wilson_misses(random: np.random.Generator) -> bool:
    """Whether Wilson's interval of one run misses the true accuracy."""
    low, high = wilson(int(random.binomial(REVIEWS, ACCURACY)), REVIEWS)
    return not low <= ACCURACY <= high


def accuracy_misses(seeds: int) -> Experiment:
    """Whether the interval over reviews and seeds misses the true accuracy."""

    def miss(random: np.random.Generator) -> bool:
        right, _ = predictions(random, seeds, deviation=SEED_DEVIATION)
        low, high = accuracy_over_seeds(list(right.mean(axis=1)), REVIEWS).interval
        return not low <= ACCURACY <= high

    return miss


def mean_misses(seeds: int, bootstrap: bool) -> Experiment:
    """Whether an interval over seeds alone misses the true mean."""

    def miss(random: np.random.Generator) -> bool:
        values = list(random.normal(ACCURACY, SEED_DEVIATION, seeds))
        low, high = mean_bootstrap(values, seed=1, resamples=999) if bootstrap else mean_t(values).interval()
        return not low <= ACCURACY <= high

    return miss


def mcnemar_finds(deviation: float) -> Experiment:
    """Whether McNemar's test tells two equal recipes apart from one seed each."""

    def find(random: np.random.Generator) -> bool:
        first, second = predictions(random, 1, deviation=deviation)
        return mcnemar(first[0], second[0]).p_value < ALPHA

    return find


def difference_finds(seeds: int, deviation: float) -> Experiment:
    """Whether the paired difference tells two equal recipes apart."""
    return lambda random: paired_difference(*predictions(random, seeds, deviation=deviation)).differs() < ALPHA


def equivalence_finds(seeds: int, margin: float) -> Experiment:
    """Whether two recipes that differ by exactly the margin are called equivalent."""

    def find(random: np.random.Generator) -> bool:
        pair = predictions(random, seeds, difference=margin, deviation=SEED_DEVIATION)
        return equivalence(paired_difference(*pair), margin) < ALPHA

    return find


def outside_finds(seeds: int, margin: float) -> Experiment:
    """Whether two recipes that differ by exactly the margin are called different by more."""

    def find(random: np.random.Generator) -> bool:
        pair = predictions(random, seeds, difference=margin, deviation=SEED_DEVIATION)
        return outside(paired_difference(*pair), margin) < ALPHA

    return find


def family_finds(corrected: bool) -> Experiment:
    """Whether any of several tests made together tells two equal recipes apart."""

    def find(random: np.random.Generator) -> bool:
        p_values = [paired_difference(*predictions(random, 1)).differs() for _ in range(FAMILY)]
        return min(holm(p_values) if corrected else p_values) < ALPHA

    return find


def cases() -> Iterator[tuple[str, Experiment]]:
    """What is simulated: a description and the experiment."""
    points = 100 * SEED_DEVIATION
    noisy = f"seeds deviate by {points:g} points"
    yield "Wilson interval of one run misses the accuracy", wilson_misses
    for seeds in (3, 5):
        yield f"interval over reviews and {seeds} seeds misses it, {noisy}", accuracy_misses(seeds)
    for seeds in (3, 5):
        yield f"t interval over {seeds} seeds misses their mean", mean_misses(seeds, bootstrap=False)
        yield f"bootstrap interval over {seeds} seeds misses their mean", mean_misses(seeds, bootstrap=True)
    yield "McNemar, equal models", mcnemar_finds(0.0)
    yield f"McNemar, equal recipes, one seed each, {noisy}", mcnemar_finds(SEED_DEVIATION)
    yield "paired difference, equal models, 1 seed", difference_finds(1, 0.0)
    for seeds in (2, 3, 5):
        for deviation in (0.0, SEED_DEVIATION, LARGE_DEVIATION):
            what = f"paired difference, equal recipes, {seeds} seeds, seeds deviate by {100 * deviation:g} points"
            yield what, difference_finds(seeds, deviation)
    for seeds in (3, 5):
        yield f"equivalence within 2 points, they differ by 2, {seeds} seeds, {noisy}", equivalence_finds(seeds, 0.02)
        yield f"difference above 2 points, they differ by 2, {seeds} seeds, {noisy}", outside_finds(seeds, 0.02)
    yield f"any of {FAMILY} tests, equal models, corrected by Holm", family_finds(corrected=True)
    yield f"any of {FAMILY} tests, equal models, not corrected", family_finds(corrected=False)


def measure(replications: int, seed: int = 1) -> pd.DataFrame:
    """The rate of each case, in percent, with Wilson's interval of that rate; every case has its own draws."""
    rows = []
    for number, (name, experiment) in enumerate(cases()):
        random = np.random.default_rng((seed, number))
        wrong = sum(experiment(random) for _ in range(replications))
        low, high = wilson(wrong, replications)
        rows.append((name, 100 * wrong / replications, 100 * low, 100 * high))
    return pd.DataFrame(rows, columns=["wrong when", "rate (%)", "from", "to"])


def main() -> int:
    """Print the table for the number of replications on the command line."""
    replications = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    print(f"{replications:,} replications, {REVIEWS:,} reviews, accuracy {ACCURACY:.0%}; nominal {ALPHA:.0%}\n")
    print(markdown_table(measure(replications)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
