"""How often each interval, test and rule is wrong where the truth is known, and how often a rule decides.

python scripts/false_positives.py [REPLICATIONS] > docs/rules.md
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import norm

from lora_study.base.text_tables import markdown_table
from lora_study.evidence.claims.comparisons import Accuracy, Difference, Gap, Ordering
from lora_study.evidence.claims.costs import Ratio
from lora_study.evidence.claims.evidence import Pairs, Runs
from lora_study.evidence.claims.kinds import Claim
from lora_study.evidence.claims.rules import judge_cut, judge_direction
from lora_study.evidence.reported import load_reported
from lora_study.evidence.statistics import ALPHA, accuracy_over_seeds, holm, mean_t, paired_difference, wilson
from lora_study.records.record import Record

REVIEWS = 1000
ACCURACY = 0.90
DIFFICULTY = 0.8  # share of a prediction's variance that lies in the review: what makes pairing worthwhile
SEED_DEVIATION = 0.005  # between seeds of one recipe, as a fraction of the reviews
LARGE_DEVIATION = 0.02
FAMILY = 7  # tests made together: the orderings and the gap
ARTICLE_REVIEWS = 10_000  # of a run here and of the article's

Right = NDArray[np.bool_]
Experiment = Callable[[np.random.Generator], bool]
Case = Callable[[np.random.Generator], int]
SOURCE: dict[str, Any] = {"id": "simulated", "sentence": "Simulated.", "source": "simulated"}


def predictions(
    random: np.random.Generator,
    seeds: int,
    difference: float = 0.0,
    deviation: float = 0.0,
    reviews: int = REVIEWS,
    accuracy: float = ACCURACY,
) -> tuple[Right, Right]:
    """Whether the predictions of two recipes are right, (seeds, reviews) each, on the same reviews.

    A prediction is right if difficulty of the review, luck of the seed and chance add up to more than a threshold,
    all normal; the threshold gives each recipe its accuracy over all reviews and seeds.

    Args:
        random: Source of the draws.
        seeds: Runs of each recipe.
        difference: Accuracy of the first recipe minus that of the second, a fraction.
        deviation: Standard deviation of the accuracy between seeds.
        reviews: Reviews that are drawn.
        accuracy: Of the first recipe.
    """
    review = np.sqrt(DIFFICULTY) * random.standard_normal(reviews)
    sides = []
    for expected in (accuracy, accuracy - difference):
        spread = deviation / norm.pdf(norm.ppf(expected))
        luck = spread * random.standard_normal((seeds, 1))
        chance = np.sqrt(1 - DIFFICULTY) * random.standard_normal((seeds, reviews))
        sides.append(review + luck + chance + norm.ppf(expected) * np.sqrt(1 + spread**2) > 0)
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


def mean_misses(seeds: int) -> Experiment:
    """Whether the interval over seeds alone misses the true mean."""

    def miss(random: np.random.Generator) -> bool:
        low, high = mean_t(list(random.normal(ACCURACY, SEED_DEVIATION, seeds))).interval()
        return not low <= ACCURACY <= high

    return miss


def difference_finds(seeds: int, deviation: float) -> Experiment:
    """Whether the paired difference tells two equal recipes apart."""
    return lambda random: paired_difference(*predictions(random, seeds, deviation=deviation)).differs() < ALPHA


def family_finds(corrected: bool) -> Experiment:
    """Whether any of several tests made together tells equal recipes apart."""

    def find(random: np.random.Generator) -> bool:
        p_values = [paired_difference(*predictions(random, 1)).differs() for _ in range(FAMILY)]
        return min(holm(p_values) if corrected else p_values) < ALPHA

    return find


def errors() -> Iterator[tuple[str, Experiment]]:
    """Intervals and tests that can be wrong: a description and the experiment."""
    noisy = f"seeds deviate by {100 * SEED_DEVIATION:g} points"
    yield "Wilson interval of one run misses the accuracy", wilson_misses
    for seeds in (3, 5):
        yield f"interval over reviews and {seeds} seeds misses it, {noisy}", accuracy_misses(seeds)
        yield f"t interval over {seeds} seeds misses their mean", mean_misses(seeds)
    yield "paired difference, equal models, 1 seed", difference_finds(1, 0.0)
    for seeds in (2, 3, 5):
        for deviation in (0.0, SEED_DEVIATION, LARGE_DEVIATION):
            what = f"paired difference, equal recipes, {seeds} seeds, seeds deviate by {100 * deviation:g} points"
            yield what, difference_finds(seeds, deviation)
    yield f"any of {FAMILY} tests, equal models, corrected by Holm", family_finds(corrected=True)
    yield f"any of {FAMILY} tests, equal models, not corrected", family_finds(corrected=False)


class Simulated(Runs):
    """Runs of the article's recipe whose numbers were drawn.

    Args:
        records: Per experiment, one per seed.
        right: Predictions of the two experiments of a claim.
    """

    def __init__(self, records: Sequence[Record], right: tuple[Right, Right] | None = None) -> None:
        super().__init__(records, Path())
        self._pair = right

    def label(self, records: Sequence[Record]) -> str | None:
        """None, as for the article's recipe on its encoder."""
        return None

    def pairs(self, first: str, second: str) -> Pairs:
        """The predictions that were drawn."""
        if self._pair is None:
            raise ValueError("no predictions were drawn")
        return Pairs(*self._pair, runs=(), label=None)


def run(name: str, seed: int, seconds: float | None = None, **accuracies: float) -> Record:
    """A completed run with some accuracies, on as many reviews as the article's."""
    sizes = {"train": 35_000, "val": 5_000, "test": ARTICLE_REVIEWS}
    metrics = {part: {"accuracy": accuracy, "n": sizes[part]} for part, accuracy in accuracies.items()}
    config, timing = {"train": {"fast": False}}, {"train_seconds": seconds}
    mode = load_reported().rows[name].mode
    return Record(name, mode, seed, "completed", config=config, metrics=metrics, timing=timing)


def sign(claim: Claim, runs: Runs) -> int:
    """What the rule of a claim says; a test has to pass at its share of the level."""
    finding = claim.examine(runs)
    if finding.estimate is None:
        return finding.sign
    return judge_direction(finding.estimate.value, min(1.0, FAMILY * finding.estimate.differs()))


def accuracy_rule(seeds: int, deviation: float, off: float, one_run: bool = False) -> Case:
    """The accuracy of a recipe that is off by some percentage points; reported was its mean, or one of its runs."""

    def case(random: np.random.Generator) -> int:
        right, _ = predictions(random, seeds, 0.0, deviation / 100, ARTICLE_REVIEWS, 0.92 + off / 100)
        other, _ = predictions(random, 1, 0.0, deviation / 100, ARTICLE_REVIEWS, 0.92)
        reported = 100 * float(other.mean()) if one_run else 92.0
        records = [run("full", seed, test=float(row.mean())) for seed, row in enumerate(right)]
        return sign(Accuracy(**SOURCE, experiments=("full",), reported=reported), Simulated(records))

    return case


def pair_rule(kind: type[Difference] | type[Ordering], seeds: int, deviation: float, truth: float) -> Case:
    """A difference of 2.87 percentage points was reported; the recipes differ by ``truth``."""

    def case(random: np.random.Generator) -> int:
        right = predictions(random, seeds, truth / 100, deviation / 100, ARTICLE_REVIEWS, 0.92)
        return sign(kind(**SOURCE, experiments=("full", "lora_default"), reported=2.87), Simulated([], right))

    return case


def gap_rule(seeds: int, deviation: float, truth: float) -> Case:
    """The first recipe's gap from training to test is smaller by ``truth`` percentage points."""

    def case(random: np.random.Generator) -> int:
        records = []
        for name, gap in (("lora_default", 3.0), ("full", 3.0 + truth)):
            for seed in range(seeds):
                test = 0.90 + random.normal(0, deviation / 100)
                expected = {"train": test + gap / 100 + random.normal(0, deviation / 100), "test": test}
                sizes = {"train": 35_000, "test": ARTICLE_REVIEWS}
                drawn = {part: random.binomial(sizes[part], min(p, 1)) / sizes[part] for part, p in expected.items()}
                records.append(run(name, seed, **drawn))
        return sign(Gap(**SOURCE, experiments=("lora_default", "full"), reported=1.39), Simulated(records))

    return case


def ratio_rule(seeds: int, deviation: float, truth: float, reported: float | None) -> Case:
    """The ratio of training times is ``truth``; a run's time deviates by that factor's logarithm."""

    def case(random: np.random.Generator) -> int:
        times = {"lora_default": 100 * truth, "full": 100.0}
        records = [
            run(name, seed, seconds=seconds * float(np.exp(random.normal(0, deviation))))
            for name, seconds in times.items()
            for seed in range(seeds)
        ]
        names = tuple(times)
        claim = Ratio(**SOURCE, experiments=names, quantity="timing.train_seconds", reported=reported)
        return sign(claim, Simulated(records))

    return case


def cut_rule(random: np.random.Generator) -> int:
    """Test reviews with a copy in train, in two random cuts of 50,000 reviews, among which 418 pairs are identical."""
    counts = random.binomial(418, 2 * 0.2 * 0.7, size=2)
    return 1 if judge_cut(counts[0], counts[1], np.sqrt(418 * 0.28 * 0.72)) else -1


def rules() -> Iterator[tuple[str, str, Case]]:
    """What each rule is tried on: the rule, the truth and the draws."""
    for seeds in (3, 5):
        for deviation in (0.3, 1.0, 4.2):
            where = f"{seeds} seeds, deviation {deviation:g}"
            rule = f"accuracy, {where}"
            yield rule, "the article is exactly right", accuracy_rule(seeds, deviation, 0.0)
            yield rule, "the article is one run of this recipe", accuracy_rule(seeds, deviation, 0.0, one_run=True)
            yield rule, "the recipe is 4 points below", accuracy_rule(seeds, deviation, -4.0)
            for kind in (Difference, Ordering):
                rule = f"{kind.kind} of 2.87, {where}"
                yield rule, "the article is exactly right", pair_rule(kind, seeds, deviation, 2.87)
                yield rule, "the recipes are equal", pair_rule(kind, seeds, deviation, 0.0)
            yield f"gap of 1.39, {where}", "the article is exactly right", gap_rule(seeds, deviation, 1.39)
            yield f"gap of 1.39, {where}", "the gaps are equal", gap_rule(seeds, deviation, 0.0)
        for deviation in (0.02, 0.1):
            rule = f"less time, {seeds} seeds, deviation {deviation:.0%}"
            yield rule, "the ratio is 0.8", ratio_rule(seeds, deviation, 0.8, None)
            yield rule, "the ratio is 1", ratio_rule(seeds, deviation, 1.0, None)
            rule = f"ratio of 0.66, {seeds} seeds, deviation {deviation:.0%}"
            yield rule, "the article is exactly right", ratio_rule(seeds, deviation, 0.66, 0.66)
            yield rule, "the ratio is 1", ratio_rule(seeds, deviation, 1.0, 0.66)
    yield "count of one cut", "both are random cuts", cut_rule


def measure(replications: int, seed: int = 1) -> pd.DataFrame:
    """The rate of each error, in percent, with Wilson's interval of that rate; every case has its own draws."""
    rows = []
    for number, (name, experiment) in enumerate(errors()):
        random = np.random.default_rng((seed, number))
        wrong = sum(experiment(random) for _ in range(replications))
        low, high = wilson(wrong, replications)
        rows.append((name, 100 * wrong / replications, 100 * low, 100 * high))
    return pd.DataFrame(rows, columns=["wrong when", "rate (%)", "from", "to"])


def measure_rules(replications: int, seed: int = 2) -> pd.DataFrame:
    """How often each rule gives which answer, in percent."""
    rows = []
    for number, (rule, truth, case) in enumerate(rules()):
        random = np.random.default_rng((seed, number))
        signs = np.array([case(random) for _ in range(replications)])
        rows.append((rule, truth, *(100 * float((signs == sign).mean()) for sign in (1, -1, 0))))
    return pd.DataFrame(rows, columns=["rule", "truth", "holds (%)", "does not hold (%)", "inconclusive (%)"])


def main() -> int:
    """Print the page of tables for the number of replications on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("replications", type=int, nargs="?", default=1000)
    replications = parser.parse_args().replications
    if replications < 1:
        parser.error("replications: use 1 or more")
    print("# How often the rules err, and how often they decide\n")
    print("Written by `python scripts/false_positives.py > docs/rules.md`: simulations in which the truth is known.")
    print(f"{replications:,} replications; deviations are between seeds, in percentage points. The rules are in")
    print("[rules.py](../lora_study/evidence/claims/rules.py).\n")
    print("## Rules\n")
    print(f"On {ARTICLE_REVIEWS:,} test reviews here and in the article; tests pass at {ALPHA:.0%} / {FAMILY}.")
    print('"Holds" is *reproduced*, *same direction* or *consistent*, depending on the evidence. If seeds deviate by a')
    print("percentage point or more, one more run can be anywhere, and only what is far off can be told.\n")
    print(markdown_table(measure_rules(replications)))
    print("\n## Intervals and tests\n")
    print(f"On {REVIEWS:,} reviews at an accuracy of {ACCURACY:.0%}; nominal {ALPHA:.0%}.\n")
    print(markdown_table(measure(replications)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
