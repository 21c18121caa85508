"""What a claim is, what the runs say about one, and the claims that need no statistics: arithmetic and facts."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from lora_study.base.errors import ConfigError, check
from lora_study.base.settings import Settings
from lora_study.base.text_tables import plain
from lora_study.evidence.claims.arithmetic import REFERENCE, evaluate_formula, expected_trainable
from lora_study.evidence.claims.evidence import Missing, Runs
from lora_study.evidence.claims.rules import CUT_DEVIATIONS, Basis, judge_cut
from lora_study.evidence.statistics import Estimate


@dataclass(frozen=True)
class Finding:
    """What the runs say about one claim.

    Attributes:
        evidence: How that was found, one line.
        basis: What kind of evidence it is, which decides the words of the verdict; None if there is none.
        sign: 1 if the claim holds, -1 if it does not, 0 if the numbers cannot tell. For a claim that is a test it
            follows from `estimate`, corrected for the other tests.
        seeds: Seeds of a measurement, None for what needs none.
        measured: The measured value in words; None if there is none.
        interval: The interval that is judged, in words.
        runs: Folders of the runs it rests on, relative to the results.
        estimate: If a test is to be made, what it tests.
        label: What the runs are if they are not the article's recipe on its encoder; None if they are.
        power: Given the number of tests made together, the chance of each verdict if the article is exactly right.
    """

    evidence: str
    basis: Basis | None = None
    sign: int = 0
    seeds: int | None = None
    measured: str | None = None
    interval: str | None = None
    runs: tuple[str, ...] = ()
    estimate: Estimate | None = None
    label: str | None = None
    power: Callable[[int], str] | None = None


@dataclass(frozen=True, kw_only=True)
class Claim(Settings, ABC):
    """A sentence that can be checked.

    Args:
        id: Short name, unique in the file.
        sentence: The claim in our words.
        source: Where it was made.
        experiments: Experiments it needs; for a comparison the first is compared with the second.
    """

    kind: ClassVar[str]
    is_test: ClassVar[bool] = False  # whether it is judged by a p-value, which is corrected for all such claims
    id: str
    sentence: str
    source: str
    experiments: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("id", "sentence", "source"):
            check(bool(getattr(self, name).strip()), name, getattr(self, name), "write a text")

    @property
    def reported_text(self) -> str | None:
        """What was reported, in words; None if only a sentence was."""
        return self._reported()

    @property
    def rule_text(self) -> str:
        """The rule by which the claim is judged, in words."""
        return self._rule()

    def examine(self, runs: Runs) -> Finding:
        """Ask the runs whether the claim holds; a finding without a basis says what they lack."""
        try:
            return self._examine(runs)
        except Missing as reason:
            return Finding(str(reason))

    @abstractmethod
    def _reported(self) -> str | None: ...

    @abstractmethod
    def _rule(self) -> str: ...

    @abstractmethod
    def _examine(self, runs: Runs) -> Finding: ...

    def needs(self, number: int) -> None:
        """Refuse a claim that does not name this many experiments."""
        what = f"a claim of kind {self.kind} names {number} different experiment{'s' * (number > 1)}"
        check(len(set(self.experiments)) == len(self.experiments) == number, "experiments", self.experiments, what)


@dataclass(frozen=True, kw_only=True)
class Equality(Claim):
    """A number that follows from arithmetic, such as a count of parameters; it needs no run.

    Where runs of its experiments exist, their own counts must agree with the same arithmetic at their shape.

    Args:
        value: A number or a formula of `lora_study.evidence.claims.arithmetic`.
        over: What it is divided by, likewise.
        reported: The reported number.
        judged: 'exact', or after 'rounded' or 'truncated' to the digits that were reported.
        digits: Significant digits of the reported number; for 'rounded' and 'truncated'.
    """

    kind: ClassVar[str] = "equality"
    value: dict[str, Any] | float
    reported: float
    over: dict[str, Any] | float = 1.0
    judged: Literal["exact", "rounded", "truncated"] = "exact"
    digits: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        exact = self.judged == "exact"
        check(exact == (self.digits is None), "digits", self.digits, "give it if and only if judged is not 'exact'")
        check(self.digits is None or self.digits >= 1, "digits", self.digits, "use 1 or more")
        for name in ("value", "over"):
            try:
                number = evaluate_formula(getattr(self, name))
            except ValueError as error:
                raise ConfigError(f"{name}: {error}") from error
            check(number > 0, name, number, "use a number above 0")

    def _reported(self) -> str:
        return _number(self.reported)

    def _rule(self) -> str:
        return "exact" if self.judged == "exact" else f"equal when {self.judged} to {self.digits} significant digit(s)"

    def _examine(self, runs: Runs) -> Finding:
        value = evaluate_formula(self.value) / evaluate_formula(self.over)
        holds = math.isclose(self._as_reported(value), self.reported, rel_tol=1e-12)
        evidence = f"computed: {_number(value)}"
        if not self.experiments:
            return Finding(evidence, "arithmetic", sign_of(holds), measured=_number(value))
        measured = _number(value)
        evidence = f"computed from the architecture of {REFERENCE}: {measured}"
        counted = [(record, expected_trainable(record)) for record in runs.completed(self.experiments)]
        known = [(record, count) for record, count in counted if count is not None]
        wrong = [(record, count) for record, count in known if record.parameters.get("trainable") != count]
        if wrong:
            record, count = wrong[0]
            found = record.parameters.get("trainable")
            wrongly = f"{record.name} seed {record.seed} counts {plain(found)} where its shape gives {count:,}"
            measured, evidence = f"{measured}; {wrongly}", f"{evidence}; but {wrongly}"
        elif known:
            evidence += f"; the counts of {len(known)} run(s) agree with the same arithmetic at their encoder's shape"
        folders = runs.folders(record for record, _ in known)
        return Finding(evidence, "arithmetic", sign_of(holds and not wrong), measured=measured, runs=folders)

    def _as_reported(self, value: float) -> float:
        if self.digits is None:
            return value
        unit = 10.0 ** (math.floor(math.log10(value)) - self.digits + 1)
        return (round(value / unit) if self.judged == "rounded" else math.floor(value / unit)) * unit


@dataclass(frozen=True, kw_only=True)
class Fact(Claim):
    """A field of the records has this value in every run that has the field.

    Args:
        fields: Dotted names in the record; the numbers of several are added.
        reported: The value.
        less: Subtracted from the number.
        within: How far a number may lie from the reported one, where rounding keeps it from being exact.
        deviation: How much a number varies between random cuts of the same reviews (standard deviation), where the
            reported one is of the article's own cut; None for what all cuts share.
        only_if: Dotted names and values that a run must have to count.
    """

    kind: ClassVar[str] = "fact"
    fields: tuple[str, ...]
    reported: bool | float | str
    less: float = 0.0
    within: float = 0.0
    deviation: float | None = None
    only_if: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        check(len(self.fields) > 0, "fields", self.fields, "name at least one field of the record")
        check(self.deviation is None or self.deviation > 0, "deviation", self.deviation, "use a number above 0")
        numeric = not isinstance(self.reported, bool | str)
        check(
            numeric or not (self.less or self.within or self.deviation),
            *("reported", self.reported, "less, within and deviation need a number"),
        )
        check(self.within >= 0, "within", self.within, "use 0 or more")
        check(not (self.within and self.deviation), "within", self.within, "leave it out beside a deviation")

    def _reported(self) -> str:
        return _value(self.reported)

    def _rule(self) -> str:
        if self.deviation is None:
            return f"within {self.within:g}" if self.within else "exact"
        return (
            f"within {CUT_DEVIATIONS:g} deviations of the difference between two random cuts ({self.deviation:g} each)"
        )

    def _examine(self, runs: Runs) -> Finding:
        found = []
        for record in runs.completed(self.experiments):
            content = record.flat
            values = [content[name] for name in self.fields if content.get(name) is not None]
            applies = all(content.get(key) == value for key, value in self.only_if.items())
            if applies and len(values) == len(self.fields):
                found.append((record, sum(values) - self.less if len(values) > 1 or self.less else values[0]))
        if not found:
            conditions = ", ".join(f"{key} {_value(value)}" for key, value in self.only_if.items())
            raise Missing(f"no record has {' and '.join(self.fields)}{f' with {conditions}' if conditions else ''}")
        values = [value for _, value in found]
        numeric = not any(isinstance(value, bool | str) for value in values)
        shown = [min(values), max(values)] if numeric else values  # twenty runs have twenty rounding errors
        less = f" less {self.less:g}" if self.less else ""
        return Finding(
            evidence=f"{' + '.join(self.fields)}{less} in {len(found)} record(s)",
            basis="arithmetic" if self.deviation is None else "cut",
            sign=sign_of(all(self._agrees(value) for value in values)),
            measured=(" to " if numeric else ", ").join(dict.fromkeys(map(_value, shown))),
            runs=runs.folders(record for record, _ in found),
        )

    def _agrees(self, value: Any) -> bool:
        if isinstance(self.reported, bool | str) or isinstance(value, bool | str):
            return type(value) is type(self.reported) and value == self.reported
        if self.deviation is None:
            return bool(abs(value - self.reported) <= self.within)
        return judge_cut(value, self.reported, self.deviation)


def sign_of(holds: bool) -> int:
    """The sign of a finding that either holds or does not."""
    return 1 if holds else -1


def _number(value: float) -> str:
    if float(value).is_integer():
        return f"{value:,.10g}"
    return f"{value:,.5g}" if abs(value) >= 1e-3 else f"{value:.2g}"  # so small are only errors of rounding


def _value(value: Any) -> str:
    if isinstance(value, bool | str):
        return str(value).lower() if isinstance(value, bool) else value
    return _number(value)
