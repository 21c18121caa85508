"""How well runs are shared out among workers, by simulation: no run is run, and the clock is a number.

The dispatch is `lora_study.launchers.dispatch`, the local launcher's own. Runs last differently long (log-normal), some
workers are slower than others, and some are lost part of the way through a run, which is then run again from its start
(really, from its last finished epoch): at once, or after the rest if it was lost too often. The time until all are
completed is set beside the least that is possible: all work, that of lost runs too, divided by what the workers do in a
second, or the longest run on the fastest worker.

    .venv/bin/python scripts/simulate_scheduler.py
"""

import argparse
import heapq
import time
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lora_study.formats import markdown_table
from lora_study.launchers.dispatch import dispatch

MINUTES = 7.0  # of a run, in the middle: the article's for training all layers


@dataclass(frozen=True)
class Scenario:
    """What a simulated study is like.

    Attributes:
        spread: Standard deviation of the logarithm of the runs' minutes.
        slowest: Speed of the slowest worker; the others lie evenly between it and 1.
        failures: Probability that a run's worker is lost, at a moment evenly drawn.
        longest_first: Whether the runs are ordered from the longest to the shortest, which a user may know.
    """

    spread: float
    slowest: float
    failures: float
    longest_first: bool = False


SCENARIOS = {
    "alike": Scenario(0.0, 1.0, 0.0),
    "of different lengths": Scenario(0.7, 1.0, 0.0),
    "and workers half as fast": Scenario(0.7, 0.5, 0.0),
    "and 5% failures": Scenario(0.7, 0.5, 0.05),
    "and 20% failures": Scenario(0.7, 0.5, 0.2),
    "and the longest first": Scenario(0.7, 0.5, 0.2, longest_first=True),
    "a few very long": Scenario(1.5, 0.5, 0.05),
}


@dataclass(frozen=True)
class Outcome:
    """How a simulated study went.

    Attributes:
        minutes: Until every run was completed.
        bound: The least that is possible.
        passes: How often the study was started until every run was completed.
        failures: How often a run lost its worker.
        busy: Share of the workers' time in which they ran something.
    """

    minutes: float
    bound: float
    passes: int
    failures: int
    busy: float


class Machines:
    """The workers, and the clock that goes on to the next end of a run.

    Args:
        scenario: How often they are lost.
        lengths: Minutes of work in each run.
        speeds: Work that each worker does in a minute.
        generator: Draws who is lost, and when.

    Attributes:
        clock: Minutes since the start.
        work: Minutes of work done, at speed 1.
        occupied: Minutes that workers have spent on it, together.
        failures: Runs lost.
    """

    def __init__(
        self,
        scenario: Scenario,
        lengths: NDArray[np.float64],
        speeds: NDArray[np.float64],
        generator: np.random.Generator,
    ) -> None:
        self.scenario, self.lengths, self.speeds, self.generator = scenario, lengths, speeds, generator
        self.clock = self.work = self.occupied = 0.0
        self.failures = 0
        self._ends: list[tuple[float, int]] = []
        self._lost: set[int] = set()

    def start(self, run: int, worker: int) -> int:
        """Start a run on a worker."""
        self._lost.discard(run)
        effort = float(self.lengths[run])
        if self.generator.random() < self.scenario.failures:
            self._lost.add(run)
            self.failures += 1
            effort *= self.generator.random()
        minutes = effort / float(self.speeds[worker])
        self.work += effort
        self.occupied += minutes
        heapq.heappush(self._ends, (self.clock + minutes, run))
        return run

    def wait(self, going: Collection[int]) -> list[int]:
        """Go on to the end of a run."""
        self.clock, run = heapq.heappop(self._ends)
        return [run]

    def lost(self, run: int) -> bool:
        """Whether an ended run was lost with its worker."""
        return run in self._lost


def simulate(scenario: Scenario, runs: int, workers: int, seed: int) -> Outcome:
    """Run a simulated study until every run is completed."""
    generator = np.random.default_rng(seed)
    lengths = MINUTES * np.exp(scenario.spread * generator.standard_normal(runs))
    if scenario.longest_first:
        lengths = np.sort(lengths)[::-1]
    machines = Machines(scenario, lengths, np.linspace(scenario.slowest, 1.0, workers), generator)
    passes, waiting = 0, list(range(runs))
    while waiting:
        passes += 1
        ended = dispatch(waiting, workers, machines.start, machines.wait, machines.lost)
        waiting = [run for run, _ in ended if machines.lost(run)]
    bound = max(machines.work / float(machines.speeds.sum()), float(lengths.max()))
    return Outcome(machines.clock, bound, passes, machines.failures, machines.occupied / (workers * machines.clock))


def main() -> None:
    """Print one row per scenario."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=256)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    started = time.perf_counter()
    rows = []
    for name, scenario in SCENARIOS.items():
        found = simulate(scenario, options.runs, options.workers, options.seed)
        rows.append(
            {
                "runs": name,
                "hours": found.minutes / 60,
                "least possible": found.bound / 60,
                "over it (%)": 100 * (found.minutes / found.bound - 1),
                "workers busy (%)": 100 * found.busy,
                "failures": found.failures,
                "starts": found.passes,
            }
        )
    print(f"{options.runs:,} runs on {options.workers:,} workers, seed {options.seed}\n")
    print(markdown_table(pd.DataFrame(rows)))
    print(f"\nsimulated in {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    main()
