"""What the article and its companion script reported, read from ``reported.yaml`` beside this file.

Accuracies are percentages of distilbert-base-uncased on IMDb; a value that was not reported is None.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any

from lora_study.base.plain_yaml import load_yaml
from lora_study.config import flatten
from lora_study.records.record import Record

PLAIN = "_plain"  # the ending of a row's name where a study times it once more without levers


@dataclass(frozen=True)
class ReportedRow:
    """One reported row.

    Attributes:
        name: Experiment.
        mode: Fine-tuning mode.
        test: Test accuracy in percent.
        source: Where it was reported, in words.
        settings: What makes a run this row besides its mode, by dotted name.
        trainable: Number of trainable parameters.
        train: Training accuracy in percent.
        val: Validation accuracy in percent.
        minutes: Minutes of training on one A100.
    """

    name: str
    mode: str
    test: float
    source: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    trainable: int | None = None
    train: float | None = None
    val: float | None = None
    minutes: float | None = None

    def unlike(self, record: Record) -> list[str]:
        """In which settings, as far as its record says, a run of this row's name is another experiment."""
        there, row = {**flatten(record.config), "mode": record.mode}, {"mode": self.mode, **self.settings}
        return [
            f"{name} {there[name]} in place of {value}"
            for name, value in row.items()
            if there.get(name) is not None and _set(there[name]) != _set(value)
        ]


@dataclass(frozen=True)
class Reported:
    """Everything that was reported.

    Attributes:
        article: The article, as one would cite it.
        encoder: The pretrained encoder of every row.
        test_reviews: Size of the test part.
        rows: The article's rows by experiment.
        layerwise: The companion script's rows by experiment, from the fewest trained layers to all.
        findings: What a careful reader notices about how the numbers were obtained.
    """

    article: str
    encoder: str
    test_reviews: int
    rows: Mapping[str, ReportedRow]
    layerwise: Mapping[str, ReportedRow]
    findings: tuple[str, ...]

    @property
    def by_name(self) -> dict[str, ReportedRow]:
        """Every row, the companion script's too."""
        return {**self.rows, **self.layerwise}


@cache
def load_reported() -> Reported:
    """The reported numbers that ship with the package."""
    content = load_yaml(files(__package__).joinpath("reported.yaml").read_text(encoding="utf-8"))
    rows = {kind: _rows(content[kind]) for kind in ("rows", "layerwise")}
    return Reported(**content | rows | {"findings": tuple(content["findings"])})


def _set(value: Any) -> Any:
    """Layers are the same in any order."""
    return sorted(value) if isinstance(value, list) else value


def _rows(content: Mapping[str, Mapping[str, Any]]) -> Mapping[str, ReportedRow]:
    return MappingProxyType({name: ReportedRow(name=name, **row) for name, row in content.items()})
