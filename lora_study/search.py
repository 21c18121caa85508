"""Which points a sweep runs: every combination, random draws, or what Optuna proposes (`lora_study.adaptive`).

A point is an ordinary experiment whose name says its settings, so the same point is always found in the same folder.
"""

import dataclasses
import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import numpy as np

from lora_study.config import ExperimentConfig, SearchConfig, SweepConfig
from lora_study.config_files import field_value

LONGEST_NAME = 80  # characters


@dataclass(frozen=True)
class Point:
    """One combination of settings.

    Attributes:
        settings: Value of each parameter, by dotted name, as the sweep file would write it.
        experiment: The experiment with these settings.
    """

    settings: Mapping[str, Any]
    experiment: ExperimentConfig


class Search(Protocol):
    """A way to choose points, some at a time; `lora_study.sweep` runs them."""

    def ask(self) -> list[Point]:
        """The next points, which may run side by side; none when the search is over."""

    def goes_on(self, point: Point, accuracies: list[float]) -> bool:
        """Whether a point is worth another seed, given its validation accuracies so far."""

    def tell(self, point: Point, accuracies: list[float]) -> None:
        """Hear of a point's validation accuracies with all its seeds; none if one of its runs failed."""


class ListedSearch:
    """Points that are known beforehand: a grid, or random draws.

    Args:
        points: The points, in order.
    """

    def __init__(self, points: list[Point]) -> None:
        self._points = points

    def ask(self) -> list[Point]:
        """All points at first, then none."""
        points, self._points = self._points, []
        return points

    def goes_on(self, point: Point, accuracies: list[float]) -> bool:
        """Always: every point is run with every seed."""
        return True

    def tell(self, point: Point, accuracies: list[float]) -> None:
        """Results change nothing."""


def listed_points(sweep: SweepConfig, base: ExperimentConfig, limit: int | None = None) -> list[Point]:
    """The points of a grid, the last parameter varying fastest, or the different ones among random draws.

    Args:
        sweep: The sweep; search.method is 'grid' or 'random'.
        base: The experiment that is varied.
        limit: Stop after this many.

    Raises:
        ConfigError: a point is not a valid experiment.
    """
    settings = _grid(sweep.parameters) if sweep.search.method == "grid" else _draws(sweep.parameters, sweep.search)
    return [make_point(base, chosen) for chosen in itertools.islice(settings, limit)]


def grid_size(parameters: Mapping[str, Any]) -> int:
    """How many points a grid has."""
    return math.prod(len(values) for values in parameters.values())


def make_point(base: ExperimentConfig, settings: Mapping[str, Any]) -> Point:
    """The point with these settings.

    Raises:
        ConfigError: they do not make a valid experiment.
    """
    experiment: Any = dataclasses.replace(base, name=point_name(settings))
    for name, value in settings.items():
        experiment = _replace(experiment, name, _typed(name, json.dumps(value)))
    return Point(settings, experiment)


def point_name(settings: Mapping[str, Any]) -> str:
    """A name that says the settings, such as 'r-8_alpha-16_targets-query-value', and is different for others.

    A name that would be too long, or lost a character that cannot stand in a folder's name, gets a part of a SHA-256.
    """
    labels = [name.rpartition(".")[2] for name in settings]
    parts, removed = [], 0
    for name, label, value in zip(settings, labels, settings.values(), strict=True):
        items = [str(item) for item in (value if isinstance(value, list) else [value])]
        kept, count = re.subn(r"[^A-Za-z0-9._-]", "", "-".join(items))
        parts.append(f"{label if labels.count(label) == 1 else name}-{kept}")
        removed += count
    text = "_".join(parts)
    if not removed and len(text) <= LONGEST_NAME:
        return text
    return f"{text[:LONGEST_NAME]}-{hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]}"


def rounded(value: float, low: float, high: float) -> float:
    """A drawn number with three digits, still within its range, so that names and configs are readable."""
    return min(max(float(f"{value:.3g}"), low), high)


def _grid(parameters: Mapping[str, list[Any]]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*parameters.values()):
        yield dict(zip(parameters, values, strict=True))


def _draws(parameters: Mapping[str, Any], search: SearchConfig) -> Iterator[dict[str, Any]]:
    assert search.trials is not None  # SearchConfig has checked it
    generator = np.random.default_rng(search.seed)
    drawn = [{name: _draw(values, generator) for name, values in parameters.items()} for _ in range(search.trials)]
    yield from {point_name(settings): settings for settings in drawn}.values()


def _draw(values: Any, generator: np.random.Generator) -> Any:
    """One of a list, or a number from a range, its ends included."""
    if isinstance(values, list):
        return values[int(generator.integers(len(values)))]
    kind, (low, high) = next(iter(values.items()))
    whole = isinstance(low, int) and isinstance(high, int)
    # Half a unit beyond each end, so that rounding to whole numbers gives the ends their full share.
    ends = (low - 0.5, high + 0.5) if whole else (low, high)
    scale, back = (math.log, math.exp) if kind == "loguniform" else (float, float)
    value = back(generator.uniform(scale(ends[0]), scale(ends[1])))
    return min(max(round(value), low), high) if whole else rounded(value, low, high)


@cache
def _typed(name: str, value: str) -> Any:
    """A value, as JSON, as its field holds it; a grid asks for the same few again and again."""
    return field_value(name, json.loads(value))


def _replace(config: Any, name: str, value: Any) -> Any:
    """A config with the field of this dotted name replaced; the config checks itself."""
    first, _, rest = name.partition(".")
    return dataclasses.replace(config, **{first: _replace(getattr(config, first), rest, value) if rest else value})
