"""The claims about time and memory while training."""

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

from lora_study.base.errors import check
from lora_study.evidence.claims import power
from lora_study.evidence.claims.evidence import Missing, Runs, different_cost, different_work
from lora_study.evidence.claims.kinds import Claim, Finding
from lora_study.evidence.claims.rules import (
    MIN_SEEDS,
    RATIO_BOUND,
    RATIO_MARGIN,
    Basis,
    judge_below_one,
    judge_prediction,
    prediction_half_width,
)
from lora_study.evidence.reported import PLAIN
from lora_study.evidence.statistics import mean_t
from lora_study.evidence.summary import measured
from lora_study.records.record import Record


@dataclass(frozen=True)
class Costs:
    """What two experiments cost, seed by seed.

    Attributes:
        logs: Logarithm of the first's over the second's.
        records: The runs, the first and the second of each seed in turn.
    """

    logs: list[float]
    records: list[Record]


@dataclass(frozen=True, kw_only=True)
class Ratio(Claim):
    """The first experiment's time or memory over the second's, seed by seed on one machine and the same work.

    The article's layers are plain ones, so the claim is judged by runs with `train.fast: false`; the ratio with this
    study's levers stands beside it. Without a reported ratio the claim is that it is below 1. A reported one is of one
    run on another machine: it is judged by where one more run would end, and only by the article's recipe.

    Args:
        quantity: What is compared.
        reported: The reported ratio.
    """

    kind: ClassVar[str] = "ratio"
    quantity: Literal["timing.train_seconds", "memory.peak_bytes"]
    reported: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.needs(2)
        check(self.reported is None or self.reported > 0, "reported", self.reported, "use a ratio above 0")

    def _reported(self) -> str | None:
        return None if self.reported is None else f"{self.reported:.2f}"

    def _rule(self) -> str:
        if self.reported is None:
            return f"the 95% interval of the ratio is below 1/{RATIO_MARGIN:g}"
        return f"the 95% interval for one more run holds it and is no wider than a factor of {RATIO_BOUND:g}"

    def _examine(self, runs: Runs) -> Finding:
        with_levers = self._alike(self._costs(runs, fast=True)).logs
        beside = f"; with this study's levers {_mean(with_levers)}" if with_levers else ""
        found = self._costs(runs, fast=False)
        names, seeds = " and ".join(self.experiments), len(found.logs)
        timed = self.quantity == "timing.train_seconds"
        what = "seconds of training steps" if timed else "peak memory while training"
        unit = "training time" if timed else "peak memory"
        if not found.logs:
            raise Missing(f"no seed of {names} has {what} for both with plain layers (train.fast: false){beside}")
        alike = self._alike(found)
        if not alike.logs:
            different = different_cost(found.records[:2], self.quantity)
            raise Missing(f"{names} did different work: {', '.join(different)}{beside}")
        if left_out := seeds - len(alike.logs):
            beside += f"; {left_out} seed{'s' * (left_out > 1)} of other work or another machine left out"
        found, seeds = alike, len(alike.logs)
        label = runs.label(found.records)
        basis: Basis = "recipe" if not label else "number" if self.reported else "stand-in"
        sign, interval, chances = self._judge(found.logs, basis)
        kind = f" ({found.records[0].memory.get('kind')})" if self.quantity == "memory.peak_bytes" else ""
        return Finding(
            evidence=f"{what}{kind}, plain layers, {seeds} seed{'s' * (seeds > 1)}{beside}",
            basis=basis,
            sign=sign,
            seeds=seeds,
            measured=f"{_mean(found.logs)} of {self.experiments[1]}'s {unit}",
            interval=interval,
            runs=runs.folders(found.records),
            label=label,
            power=chances,
        )

    def _judge(self, logs: list[float], basis: Basis) -> tuple[int, str | None, Callable[[int], str] | None]:
        """The sign, the interval that is judged, and the rule's power."""
        seeds = len(logs)
        if seeds == 1:
            return 0, None, None
        centre, deviation, reported = statistics.fmean(logs), statistics.stdev(logs), self.reported
        if reported is None:
            low, high = (math.exp(bound) for bound in mean_t(logs).interval())
            sign = int(judge_below_one(low, high))
        else:
            half, bound = float(prediction_half_width(deviation, seeds, 0.0)), math.log(RATIO_BOUND)
            low, high = math.exp(centre - half), math.exp(centre + half)
            sign = int(judge_prediction(centre, half, math.log(reported), bound))

        def chances(family: int) -> str:
            if reported is None:
                words = power.in_words(power.of_below_one(deviation, seeds), basis, seeds)
                return f"{words}, if the ratio is {power.LESS:g}"
            return power.in_words(power.of_prediction(deviation, seeds, 0.0, 0.0, bound), basis, seeds)

        judged = seeds >= MIN_SEEDS and basis != "number"
        return sign, f"{low:.3f} to {high:.3f}", chances if judged else None

    def _costs(self, runs: Runs, fast: bool) -> Costs:
        """The runs of both experiments that have the quantity, with or without levers, for the seeds both have."""
        sides = [
            {
                record.seed: (record, value)
                for record in runs.completed([f"{name}{PLAIN}", name])
                if record.flat.get("config.train.fast") is fast and (value := self._value(record))
            }
            for name in self.experiments
        ]
        both = [(sides[0][seed], sides[1][seed]) for seed in sorted(sides[0].keys() & sides[1].keys())]
        return Costs(
            [math.log(first / second) for (_, first), (_, second) in both],
            [record for pair in both for record, _ in pair],
        )

    def _alike(self, found: Costs) -> Costs:
        """The largest group of seeds whose runs did the same work on one machine and, for time, had as much of it."""
        groups: list[Costs] = []
        for log, *pair in zip(found.logs, found.records[::2], found.records[1::2], strict=True):
            if different_cost(pair, self.quantity):
                continue
            group = next((group for group in groups if not different_work([*group.records, *pair])), None)
            if group is None:
                groups.append(group := Costs([], []))
            group.logs.append(log)
            group.records.extend(pair)
        return max(groups, key=lambda group: len(group.logs), default=Costs([], []))

    def _value(self, record: Record) -> float | None:
        """The quantity; None for the memory of an older record, whose peak may be that of scoring."""
        old = "peak_bytes_with_scoring" not in record.memory
        return None if old and self.quantity == "memory.peak_bytes" else measured(record, self.quantity)


def _mean(logs: list[float]) -> str:
    return f"{math.exp(statistics.fmean(logs)):.3f}"
