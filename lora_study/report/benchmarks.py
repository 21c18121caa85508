"""Speed beside other tools: from the files of scripts/benchmark.py and benchmark_inference.py to tables and words.

A file that these scripts would not write is named in a line and left out.
"""

import json
import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from lora_study.base.errors import ConfigError

# How each kind of file was measured, by the beginning of its name, in the order of the page.
METHODS = {
    "training": (
        "Ours is this package; beside it stand Hugging Face's PEFT + Trainer, and a plain Lightning script in a "
        "tutorial's manner. Within a row all have the same encoder, reviews, dropout, batch size, length cap and "
        "precision: the ratios compare equal settings, except where a row's name says otherwise. They differ in how: "
        "ours batches reviews of similar length, PEFT + Trainer pads a batch to its longest review, the Lightning "
        "script pads every review to the cap. They are measured in turn, each in a process of its own: speeds are "
        "medians; a ratio is the median over neighbouring measurements, with the lowest and the highest. Optimizer "
        "steps after a warm-up are timed; loading and tokenisation are not. The share of the limit is the speed of "
        "ours over that of the machine's matrix products alone, counted in operations. Peak memory is the process's "
        "resident memory, on a GPU what torch allocated there."
    ),
    "inference": (
        "This package's predict beside transformers' pipeline with the same weights, and a model with LoRA beside one "
        "without, from text to label, in the same precision on both sides of a row, so that the ratios compare equal "
        "settings. Reviews of mixed length come as they are. They are measured in turn, in one process: speeds are "
        "medians; a ratio is the median over neighbouring measurements, with the lowest and the highest. Loading is "
        "not timed."
    ),
}
KINDS = tuple(METHODS)
SIDES = {
    "ours": "ours",
    "peft_trainer": "PEFT + Trainer",
    "lightning_script": "Lightning script",
    "pipeline": "transformers' pipeline",
    "plain": "ours without LoRA",
    "merged": "ours, LoRA merged",
    "unmerged": "ours, LoRA not merged",
}
T = TypeVar("T")
SECOND, MEMORY, TOKENS, SHARE = "reviews/s", "peak GiB", "tokens/s", "share of limit (%)"


@dataclass(frozen=True)
class Benchmark:
    """What one benchmark measured.

    Attributes:
        name: Name of its file without the ending.
        kind: What it measured, one of `KINDS`; `METHODS` says how.
        title: What it measured, on what and with which settings.
        encoder: The encoder, worded as in the report's other titles.
        source: How often, when, on what and with which settings and code it was measured, as plain text.
        table: One row per comparison as a reader sees it.
        ratios: One row per comparison and other side: row, over (the other side), ratio (median), low, high.
    """

    name: str
    kind: str
    title: str
    encoder: str
    source: str
    table: pd.DataFrame
    ratios: pd.DataFrame

    @property
    def exhibit(self) -> str:
        """Name of its table's and its figure's files."""
        return f"speed_{self.name.replace('-', '_')}"


def read_benchmarks(folder: Path) -> tuple[list[Benchmark], list[str]]:
    """The benchmarks of a folder, training first, then by title, and a line per file that cannot be used."""
    benchmarks, problems = [], []
    for kind in KINDS:
        for path in sorted(folder.glob(f"{kind}*.json")):
            try:
                # Every number is read as a float: one kind to check, and none is too large for it.
                content = json.loads(path.read_text(encoding="utf-8"), parse_int=float)
                benchmarks.append(_benchmark(path.stem, kind, content))
            except (OSError, ValueError) as error:  # what is not JSON or not text is a ValueError too
                reason = getattr(error, "strerror", None) or error
                problems.append(f"{path} is left out: {reason}; run the benchmark again")
    return sorted(benchmarks, key=lambda found: (KINDS.index(found.kind), found.title)), problems


def ratio_text(ratio: float, low: float, high: float) -> str:
    """A ratio and its range on one line, with no-break spaces."""
    return f"{ratio:.2f}\u00a0({low:.2f}\u00a0to\u00a0{high:.2f})"


def usable_benchmarks(folder: Path) -> list[Benchmark]:
    """The benchmarks of a folder, if it has one and all can be used.

    Raises:
        ConfigError: there is none, or one cannot be used.
    """
    benchmarks, problems = read_benchmarks(folder)
    if problems:
        raise ConfigError(problems[0])
    if not benchmarks:
        files = " or ".join(f"{kind}*.json" for kind in KINDS)
        raise ConfigError(f"{folder} holds no {files}; run `make benchmark` first")
    return benchmarks


def _benchmark(name: str, kind: str, content: Any) -> Benchmark:
    """A benchmark from the content of its file; ValueError if a value is missing or is not what it should be."""
    if not _of(list, content, "rows"):
        raise ValueError("it has no rows")
    table, ratios = _training(content) if kind == "training" else _inference(content)
    encoder = _of(dict, content, "encoder")
    title = f"{kind.capitalize()} speed on {_device(content)}"
    if kind == "training":
        title += f", {_number(content, 'max_length'):.0f} tokens, {_of(str, content, 'precision')}"
    return Benchmark(
        name=name,
        kind=kind,
        title=title,
        encoder=f"{'stand-in encoder' if encoder.get('stand_in') else 'encoder'}: {_of(str, encoder, 'name')}",
        source=_source(kind, content),
        table=table,
        ratios=pd.DataFrame(ratios),
    )


def _training(content: Mapping[str, Any]) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """Table and ratios of scripts/benchmark.py."""
    lines, ratios = [], []
    for row in content["rows"]:
        name, sides = _of(str, row, "row"), _of(dict, row, "sides")
        ours = _of(dict, sides, "ours")
        line = {"row": name, f"ours, {SECOND}": _number(ours, "reviews_per_second")}
        # Speeds and ratios come first: the table is wide, and these are what it is for.
        details = {
            f"ours, {TOKENS}": _number(ours, "tokens_per_second"),
            SHARE: _scaled(ours, "share_of_limit", 100),
            f"ours, {MEMORY}": _scaled(ours, "peak_bytes", 2**-30),
        }
        for side, ratio in _of(dict, row, "ratios").items():
            peer, found, label = _of(dict, sides, side), _ratio(ratio, "median", "min", "max"), _side(side)
            line[f"{label}, {SECOND}"] = _number(peer, "reviews_per_second")
            line[f"ours over {label}"] = ratio_text(**found)
            details[f"{label}, {MEMORY}"] = _scaled(peer, "peak_bytes", 2**-30)
            ratios.append({"row": name, "over": label, **found})
        lines.append(line | details)
    if not ratios:
        raise ValueError("it compares nothing: every row's ratios are empty")
    table = pd.DataFrame(lines)
    numbers = dict.fromkeys(_columns(table, SECOND, TOKENS, SHARE, MEMORY), "float64")
    return table.astype(numbers), ratios


def _columns(table: pd.DataFrame, *endings: str) -> list[str]:
    return [name for name in map(str, table.columns) if name.endswith(endings)]


def _inference(content: Mapping[str, Any]) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """Table and ratios of scripts/benchmark_inference.py."""
    lines, ratios = [], []
    for row in content["rows"]:
        name, found = _of(str, row, "row"), _ratio(row, "ratio", "ratio_min", "ratio_max")
        first, second = _side(_of(str, row, "first")), _side(_of(str, row, "second"))
        lines.append(
            {
                "row": name,
                "first": first,
                f"first, {SECOND}": _number(row, "first_per_second"),
                "second": second,
                f"second, {SECOND}": _number(row, "second_per_second"),
                "first over second": ratio_text(**found),
            }
        )
        ratios.append({"row": name, "over": second, **found})
    return pd.DataFrame(lines), ratios


def _source(kind: str, content: Mapping[str, Any]) -> str:
    """How often, with which settings, on what, when and with which code."""
    if kind == "training":
        amount = (
            f"{_number(content, 'steps'):.0f} steps, in batches of {_number(content, 'batch_size'):.0f} reviews cut at "
            f"{_number(content, 'max_length'):.0f} tokens"
        )
    else:
        amount = (
            f"{_number(content, 'reviews'):.0f} reviews (of about {_number(content, 'equal_length'):.0f} tokens where "
            f"lengths are equal), in batches of {_number(content, 'batch_size'):.0f} and cut at "
            f"{_number(content, 'max_length'):.0f} tokens"
        )
    repeats, versions = _number(content, "repeats"), _of(dict, content, "versions")
    threads = _number(_of(dict, content, "hardware"), "threads")
    often = "One measurement" if repeats == 1 else f"Medians of {repeats:.0f} measurements"
    commit = _of(str, content, "commit") if content.get("commit") is not None else None
    words = (
        f"{often} of {amount}, on {_device(content)}, {threads:.0f} threads, "
        f"{_of(str, content, 'measured')[:10]}, with torch {_of(str, versions, 'torch')} and transformers "
        f"{_of(str, versions, 'transformers')}, at {f'commit {commit[:12]}' if commit else 'an unknown commit'}"
        f"{' with uncommitted changes' if content.get('dirty') else ''}."
    )
    if repeats == 1:
        words += " Measured once, the ratios have no range."
    return words


def _device(content: Mapping[str, Any]) -> str:
    """What it was measured on: the accelerator, if there is one, and the processor."""
    hardware = _of(dict, content, "hardware")
    cpu = hardware.get("cpu") or "an unknown processor"
    accelerator = hardware.get("accelerator")
    return f"{cpu}" if accelerator in (None, "cpu") else f"{accelerator} ({cpu})"


def _of(kind: type[T], values: Any, key: str) -> T:
    """An entry of a JSON object, which has to be of this kind."""
    value = values.get(key) if isinstance(values, Mapping) else None
    if not isinstance(value, kind):
        raise ValueError(f"{key} is {reprlib.repr(value)}, where a benchmark has a {kind.__name__}")
    return value


def _number(values: Any, key: str) -> float:
    """An entry that has to be a number above zero."""
    value = _of(float, values, key)
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{key} is {value}, where a benchmark has a number above 0")
    return value


def _scaled(values: Mapping[str, Any], key: str, factor: float) -> float | None:
    """A number in another unit; None where it was not measured."""
    return None if values.get(key) is None else factor * _number(values, key)


def _ratio(values: Any, median: str, low: str, high: str) -> dict[str, float]:
    found = {"ratio": _number(values, median), "low": _number(values, low), "high": _number(values, high)}
    if not found["low"] <= found["ratio"] <= found["high"]:
        raise ValueError(f"{median} is {found['ratio']}, which is not between {low} and {high}")
    return found


def _side(name: str) -> str:
    if name not in SIDES:
        raise ValueError(f"side {reprlib.repr(name)} is none of {', '.join(SIDES)}")
    return SIDES[name]
