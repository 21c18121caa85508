"""The claims that compare: an accuracy with the reported one, an experiment with another."""

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from lora_study.base.errors import check
from lora_study.evidence.claims.evidence import Missing, Runs, different_work
from lora_study.evidence.claims.kinds import Claim, Finding
from lora_study.evidence.statistics import (
    ALPHA,
    Estimate,
    accuracy_over_seeds,
    equivalence,
    mcnemar,
    mean_t,
    outside,
    paired_difference,
)
from lora_study.evidence.summary import all_measured, measured
from lora_study.records.record import Record


@dataclass(frozen=True, kw_only=True)
class Accuracy(Claim):
    """A reported accuracy.

    It is reproduced if the mean over seeds is within the tolerance, not reproduced if it is not; inconclusive if the
    95% interval is wider than the tolerance to either side, unless even its nearer end is out.

    Args:
        part: train, val or test.
        reported: Percent.
        tolerance: Points.
    """

    kind: ClassVar[str] = "accuracy"
    part: Literal["train", "val", "test"] = "test"
    reported: float
    tolerance: float

    def __post_init__(self) -> None:
        super().__post_init__()
        self.needs(1)
        check(0 <= self.reported <= 100, "reported", self.reported, "use percent, 0 to 100")
        check(self.tolerance > 0, "tolerance", self.tolerance, "use points, above 0")

    def _reported(self) -> str:
        return f"{self.reported:.2f}%"

    def _tolerance(self) -> str:
        return f"within ±{self.tolerance:g} points"

    def _examine(self, runs: Runs) -> Finding:
        path = f"metrics.{self.part}"
        every = runs.of(self.experiments[0])
        records = [r for r in every if measured(r, f"{path}.accuracy") is not None and measured(r, f"{path}.n")]
        if not records:
            raise Missing(f"no run of {self.experiments[0]} has an accuracy on {self.part}")
        n = int(min(all_measured(records, f"{path}.n")))
        result = accuracy_over_seeds(all_measured(records, f"{path}.accuracy"), n)
        low, high = (100 * bound for bound in result.interval)
        difference, half = 100 * result.mean - self.reported, (high - low) / 2
        deviation = result.seed_deviation
        seeds = "one seed" if deviation is None else f"{result.seeds} seeds, deviation {100 * deviation:.2f} points"
        sampling = 50 * (result.sampling[1] - result.sampling[0])
        evidence = (
            f"95% interval {low:.2f} to {high:.2f}%; {n:,} reviews (±{sampling:.2f} points), {seeds}; "
            f"difference {difference:+.2f} points"
        )
        label = runs.label(records)
        finding = Finding(None, evidence, f"{100 * result.mean:.2f}%", runs.folders(records), label=label)
        if label:
            return dataclasses.replace(finding, judged=False)
        clearly_off = abs(difference) - half > self.tolerance
        if half > self.tolerance and not clearly_off:
            return dataclasses.replace(finding, evidence=f"{evidence}; too few reviews or seeds for the tolerance")
        return dataclasses.replace(finding, holds=round(abs(difference), 6) <= self.tolerance)


@dataclass(frozen=True, kw_only=True)
class Ordering(Claim):
    """The first experiment is more accurate than the second on the same test reviews.

    One seed: McNemar's exact test. Several: paired difference over reviews and seeds. Two-sided either way.
    """

    kind: ClassVar[str] = "ordering"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.needs(2)

    def _reported(self) -> None:
        return None

    def _tolerance(self) -> str:
        return f"paired two-sided test, adjusted p < {ALPHA:g}"

    def _examine(self, runs: Runs) -> Finding:
        pairs = runs.pairs(*self.experiments)
        difference = paired_difference(pairs.first, pairs.second)
        p_value, test = difference.differs(), "paired difference over reviews and seeds"
        if len(pairs.first) == 1:
            result = mcnemar(pairs.first[0], pairs.second[0])
            p_value = result.p_value
            test = f"McNemar exact, only one right {result.only_first} against {result.only_second} times"
        return Finding(
            holds=difference.value > 0,
            evidence=f"{test}; {_difference(difference, *pairs.first.shape)}",
            measured=f"{100 * difference.value:+.2f} points",
            runs=pairs.runs,
            p_value=p_value,
            label=pairs.label,
        )


@dataclass(frozen=True, kw_only=True)
class Equivalence(Claim):
    """The first experiment's accuracy minus the second's is ``centre``, give or take the tolerance.

    Two one-sided tests for the difference lying within, or a two-sided one for its lying outside, whichever side of
    the bounds the estimate is on. For runs that are not the article's recipe only "not below" is judged, and only
    around 0.

    Args:
        tolerance: Margin in points.
        centre: Reported difference in points.
    """

    kind: ClassVar[str] = "equivalence"
    tolerance: float
    centre: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.needs(2)
        check(self.tolerance > 0, "tolerance", self.tolerance, "use points, above 0")

    def _reported(self) -> str | None:
        return f"{self.centre:+g} points" if self.centre else None

    def _tolerance(self) -> str:
        return f"within {self.centre:g} ± {self.tolerance:g} points, two one-sided tests, adjusted p < {ALPHA:g}"

    def _examine(self, runs: Runs) -> Finding:
        pairs = runs.pairs(*self.experiments)
        difference = paired_difference(pairs.first, pairs.second)
        margin, centre = self.tolerance / 100, self.centre / 100
        inside = abs(difference.value - centre) < margin
        test = equivalence if inside else outside
        where = "within" if inside else "above" if difference.value > centre else "below"
        evidence = f"test for a difference {where} {self.centre:g} ± {self.tolerance:g} points; "
        return Finding(
            holds=inside or (bool(pairs.label) and where == "above"),
            evidence=evidence + _difference(difference, *pairs.first.shape),
            measured=f"{100 * difference.value:+.2f} points",
            runs=pairs.runs,
            p_value=test(difference, margin, centre) if not pairs.label or not centre else None,
            label=pairs.label,
            judged=not pairs.label or not centre,
        )


@dataclass(frozen=True, kw_only=True)
class Ratio(Claim):
    """The first experiment's time or memory over the second's, on the same machine, work and seeds.

    Without a reported ratio the claim is that it is below 1. With several seeds the 95% t interval of its logarithm
    must lie wholly on one side of the bounds. A reported ratio is not judged by runs that are not the article's.

    Args:
        quantity: What is compared.
        tolerance: A factor above 1: how far the ratio must be from 1, or may be from the reported one.
        reported: The reported ratio.
    """

    kind: ClassVar[str] = "ratio"
    quantity: Literal["timing.train_seconds", "memory.peak_bytes"]
    tolerance: float
    reported: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.needs(2)
        check(self.tolerance > 1, "tolerance", self.tolerance, "use a factor above 1")
        check(self.reported is None or self.reported > 0, "reported", self.reported, "use a ratio above 0")

    def _reported(self) -> str | None:
        return None if self.reported is None else f"{self.reported:.2f}"

    def _tolerance(self) -> str:
        if self.reported is None:
            return f"ratio at most 1/{self.tolerance:g}"
        return f"within a factor of {self.tolerance:g} of the reported ratio"

    def _examine(self, runs: Runs) -> Finding:
        first, second = ({record.seed: record for record in runs.of(name)} for name in self.experiments)
        used: list[Record] = []
        logs = []
        for seed in sorted(first.keys() & second.keys()):
            numbers = [measured(record, self.quantity) for record in (first[seed], second[seed])]
            if numbers[0] and numbers[1]:
                logs.append(math.log(numbers[0] / numbers[1]))
                used += (first[seed], second[seed])
        if not logs:
            raise Missing(f"no seed of {' and '.join(self.experiments)} has {self.quantity} for both")
        if fields := different_work(used):
            raise Missing(f"{' and '.join(self.experiments)} did different work: {', '.join(fields)}")
        centre = Estimate(logs[0], 0.0) if len(logs) == 1 else mean_t(logs)
        low, high = (math.exp(bound) for bound in centre.interval())
        spread = f"geometric mean over {len(logs)} seeds, 95% interval {low:.3f} to {high:.3f}"
        label = runs.label(used)
        return Finding(
            holds=self._holds(low, high),
            evidence=f"{_quantity(used[0], self.quantity)}; {'one seed, no interval' if len(logs) == 1 else spread}",
            measured=f"{math.exp(centre.value):.3f}",
            runs=runs.folders(used),
            label=label,
            judged=self.reported is None or not label,
        )

    def _holds(self, low: float, high: float) -> bool | None:
        if self.reported is None:
            within, beyond = high <= 1 / self.tolerance, low >= self.tolerance
        else:
            bounds = self.reported / self.tolerance, self.reported * self.tolerance
            within, beyond = bounds[0] <= low and high <= bounds[1], high < bounds[0] or low > bounds[1]
        return True if within else False if beyond else None


def _difference(difference: Estimate, seeds: int, reviews: int) -> str:
    low, high = (100 * bound for bound in difference.interval())
    caveats = {1: "1 seed, so about these two models, not their recipes", 2: "2 seeds, too few to know their variance"}
    return f"95% interval {low:+.2f} to {high:+.2f} points; {reviews:,} reviews, {caveats.get(seeds, f'{seeds} seeds')}"


def _quantity(record: Record, quantity: str) -> str:
    if quantity == "timing.train_seconds":
        return "seconds of training steps"
    return f"peak memory ({record.memory.get('kind') or 'of an unknown kind'})"
