"""Speed beside other tools: from the files of scripts/benchmark.py and benchmark_inference.py to tables and words.

A file that these scripts would not write is named in a line and left out.
"""

import json
import math
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from lora_study.base.errors import ConfigError

# The files that are read, by name without the ending, and what each measures.
TITLES = {
    f"training-{device}{length}{kind}": f"Training speed{in_kind}{at_length} on a {shown}"
    for device, shown in (("cpu", "CPU"), ("cuda", "GPU"))
    for kind, in_kind in (("", ""), ("-fp32", " in fp32"))
    for length, at_length in (("", ""), ("-512", " at 512 tokens"))
} | {"inference": "Inference speed"}
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
        name: Name of its file without the ending, a key of `TITLES`.
        title: What it measures.
        encoder: The encoder, worded as in the report's other titles.
        about: What was compared with what and how, as plain text.
        source: When, on what and with which code it was measured, as plain text.
        table: One row per comparison as a reader sees it.
        ratios: One row per comparison and other side: row, over (the other side), ratio (median), low, high.
    """

    name: str
    title: str
    encoder: str
    about: str
    source: str
    table: pd.DataFrame
    ratios: pd.DataFrame

    @property
    def exhibit(self) -> str:
        """Name of its table's and its figure's files."""
        return f"speed_{self.name.replace('-', '_')}"


def read_benchmarks(folder: Path) -> tuple[list[Benchmark], list[str]]:
    """The benchmarks of a folder, in the order of `TITLES`, and a line per file that cannot be used."""
    benchmarks, problems = [], []
    for name in TITLES:
        path = folder / f"{name}.json"
        if not path.exists():
            continue
        try:
            # Every number is read as a float: one kind to check, and none is too large for it.
            content = json.loads(path.read_text(encoding="utf-8"), parse_int=float)
            benchmarks.append(_benchmark(name, content))
        except (OSError, ValueError) as error:  # what is not JSON or not text is a ValueError too
            problems.append(f"{path} is left out: {getattr(error, 'strerror', None) or error}; run the benchmark again")
    return benchmarks, problems


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
        files = ", ".join(f"{name}.json" for name in TITLES)
        raise ConfigError(f"{folder} holds none of {files}; run `make benchmark` first")
    return benchmarks


def _benchmark(name: str, content: Any) -> Benchmark:
    """A benchmark from the content of its file; ValueError if a value is missing or is not what it should be."""
    if not _of(list, content, "rows"):
        raise ValueError("it has no rows")
    read: Callable[[Any], tuple[pd.DataFrame, list[dict[str, Any]], str]]
    read = _inference if name == "inference" else _training
    table, ratios, about = read(content)
    encoder = _of(dict, content, "encoder")
    return Benchmark(
        name=name,
        title=TITLES[name],
        encoder=f"{'stand-in encoder' if encoder.get('stand_in') else 'encoder'}: {_of(str, encoder, 'name')}",
        about=about,
        source=_source(content),
        table=table,
        ratios=pd.DataFrame(ratios),
    )


def _training(content: Mapping[str, Any]) -> tuple[pd.DataFrame, list[dict[str, Any]], str]:
    """Table, ratios and words of scripts/benchmark.py."""
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
    return table.astype(numbers), ratios, _about_training(content)


def _columns(table: pd.DataFrame, *endings: str) -> list[str]:
    return [name for name in map(str, table.columns) if name.endswith(endings)]


def _about_training(content: Mapping[str, Any]) -> str:
    words = (
        "Ours is this package; beside it stand Hugging Face's PEFT + Trainer, and a plain Lightning script in a "
        "tutorial's manner. Within a row all have the same encoder, reviews, dropout, batch size "
        f"({_number(content, 'batch_size'):.0f}), length cap ({_number(content, 'max_length'):.0f} tokens) and "
        f"precision ({_of(str, content, 'precision')}): the ratios compare equal settings, except where a row's name "
        "says otherwise. They differ in how: ours batches reviews of similar length, PEFT + Trainer pads a batch to "
        "its longest review, the Lightning script pads every review to the cap. "
        f"{_how_often(content, 'in a process of its own')} A measurement of training is "
        f"{_number(content, 'steps'):.0f} optimizer steps after a warm-up; loading and tokenisation are not timed. "
        "The share of the limit is the speed of ours over that of the machine's matrix products alone, counted in "
        "operations. Peak memory is the process's resident memory, on a GPU what torch allocated there."
    )
    if "study" in content:
        study = _of(dict, content, "study")
        words += (
            f" From scratch, the embedded study took {_number(study, 'seconds'):,.0f} seconds; its largest run needed "
            f"{_number(study, 'peak_bytes') / 2**30:.2f} GiB."
        )
    return words


def _inference(content: Mapping[str, Any]) -> tuple[pd.DataFrame, list[dict[str, Any]], str]:
    """Table, ratios and words of scripts/benchmark_inference.py."""
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
    about = (
        "This package's predict beside transformers' pipeline with the same weights, and a model with LoRA beside one "
        f"without: {_number(content, 'reviews'):.0f} reviews from text to label, in batches of "
        f"{_number(content, 'batch_size'):.0f} and cut at {_number(content, 'max_length'):.0f} tokens, in the same "
        "precision on both sides of a row, so that the ratios compare equal settings. Reviews of equal length have "
        f"about {_number(content, 'equal_length'):.0f} tokens, those of mixed length come as they are. "
        f"{_how_often(content, 'in one process')} Loading is not timed."
    )
    return pd.DataFrame(lines), ratios, about


def _how_often(content: Mapping[str, Any], where: str) -> str:
    repeats = _number(content, "repeats")
    if repeats == 1:
        return f"Each was measured once, {where}, so that the ratios have no range."
    return (
        f"Each was measured {repeats:.0f} times, in turn and {where}: speeds are medians; a ratio is the median over "
        "neighbouring measurements, with the lowest and the highest."
    )


def _source(content: Mapping[str, Any]) -> str:
    """When, on what and with which code."""
    hardware, versions = _of(dict, content, "hardware"), _of(dict, content, "versions")
    machine = f"{hardware.get('cpu') or 'an unknown processor'}, {_number(hardware, 'threads'):.0f} threads"
    if (accelerator := hardware.get("accelerator")) not in (None, "cpu"):
        machine = f"{accelerator} ({machine})"
    commit = _of(str, content, "commit") if content.get("commit") is not None else None
    changes = " with uncommitted changes" if content.get("dirty") else ""
    repeats = _number(content, "repeats")
    often = "Measured once" if repeats == 1 else f"Medians of {repeats:.0f} measurements"
    return (
        f"{often} on {machine}, {_of(str, content, 'measured')[:10]}, with torch {_of(str, versions, 'torch')} and "
        f"transformers {_of(str, versions, 'transformers')}, at "
        f"{f'commit {commit[:12]}' if commit else 'an unknown commit'}{changes}."
    )


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
