"""Claim by claim: what was reported, what the runs say, and a verdict.

The claims are in ``claims.yaml`` beside this file, the rules that judge them in ``rules.py``.
"""

import dataclasses
import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from lora_study.base.errors import ConfigError
from lora_study.base.files import user_path
from lora_study.base.settings import build
from lora_study.config_files import read_yaml
from lora_study.evidence.claims.arithmetic import REFERENCE
from lora_study.evidence.claims.comparisons import Accuracy, Difference, Gap, Ordering
from lora_study.evidence.claims.costs import Ratio
from lora_study.evidence.claims.evidence import Runs
from lora_study.evidence.claims.kinds import Claim, Equality, Fact, Finding
from lora_study.evidence.claims.rules import MIN_SEEDS, NO_VERDICT, NOT_RUN, adjust, judge_direction, verdict
from lora_study.evidence.claims.rules import VERDICTS as VERDICTS
from lora_study.evidence.reported import PLAIN, load_reported
from lora_study.records.record import Record

_KINDS: tuple[type[Claim], ...] = (Equality, Accuracy, Difference, Ordering, Gap, Ratio, Fact)
KINDS = {kind.kind: kind for kind in _KINDS}

LAYERWISE = (
    *("layerwise_classifier", "layerwise_last_two", "layerwise_all"),
    *(f"layerwise_blocks_{blocks}" for blocks in range(1, 7)),
)


@dataclass(frozen=True)
class ClaimResult:
    """One claim and its verdict, in words and ready for JSON.

    Attributes:
        id: The claim.
        sentence: The claim in our words.
        source: Where it was made.
        kind: equality, accuracy, difference, ordering, gap, ratio or fact.
        basis: What kind of evidence the verdict rests on (`rules.Basis`); None if there is none.
        verdict: One of `VERDICTS`. Runs that are not the article's recipe on its encoder have at most a direction:
            they never reproduce its numbers, nor fail to.
        reported: What was reported; None if only a sentence was.
        measured: What was measured, and what was run if that is not the article's recipe; None if nothing was.
        interval: The interval that the rule examines; None if there is none.
        evidence: Number of reviews and seeds, p-values: one line.
        experiments: Experiments the claim needs.
        runs: Folders of the runs it rests on, relative to the results, such as lora_best/seed-1.
        p_value: Of the test, if one was made.
        adjusted_p: The same after Holm's correction for all claims that are tests, whether made or not.
        rule: The rule that gave the verdict.
        power: The chance of each verdict if the article is exactly right, with this spread, these seeds and reviews;
            None if there is no verdict.
    """

    id: str
    sentence: str
    source: str
    kind: str
    basis: str | None
    verdict: str
    reported: str | None
    measured: str | None
    interval: str | None
    evidence: str
    experiments: tuple[str, ...]
    runs: tuple[str, ...]
    p_value: float | None
    adjusted_p: float | None
    rule: str
    power: str | None


def load_claims(path: str | Path | None = None) -> tuple[Claim, ...]:
    """The claims of a file; by default those that ship with the package.

    Raises:
        ConfigError: the file cannot be read, a claim has an unknown kind or field, lacks one, or has a value that
            is not valid, or two claims share an id.
    """
    content = read_yaml(user_path(path or Path(__file__).with_name("claims.yaml")))
    where = f"claims file {path or 'claims.yaml'}"
    entries = content.get("claims")
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"{where}: claims: {entries!r} is not valid; list at least one claim")
    claims = tuple(_claim(entry, f"{where}: claim {number}") for number, entry in enumerate(entries, start=1))
    ids = [claim.id for claim in claims]
    if twice := sorted({name for name in ids if ids.count(name) > 1}):
        raise ConfigError(f"{where}: id: {twice[0]!r} is used twice; give each claim its own")
    return claims


def evaluate(claims: Sequence[Claim], records: Iterable[Record], results_dir: Path) -> list[ClaimResult]:
    """Judge claims by a study's runs, in the order of the claims.

    Args:
        claims: What to judge; the tests are corrected for their number.
        records: The study's records.
        results_dir: Its results folder, where the runs' predictions are.

    Warns:
        UserWarning: a record or a pair of runs is left out, and why.

    Raises:
        ConfigError: a claim names an experiment that is neither a reported row nor has a record.
    """
    records = list(records)
    _check_experiments(claims, {record.name for record in records})
    runs = Runs(records, results_dir)
    findings = [claim.examine(runs) for claim in claims]
    p_values = [finding.estimate.differs() if finding.estimate else None for finding in findings]
    tests = [index for index, claim in enumerate(claims) if claim.is_test]
    adjusted = dict(zip(tests, adjust([p_values[index] for index in tests]), strict=True))
    return [
        _result(claim, finding, p_value, None if p_value is None else adjusted[index], len(tests))
        for index, (claim, finding, p_value) in enumerate(zip(claims, findings, p_values, strict=True))
    ]


def claims_table(results: Iterable[ClaimResult]) -> pd.DataFrame:
    """The verdicts as a table, one row per claim."""
    texts = ["sentence", "verdict", "reported", "measured", "interval", "rule", "power", "evidence"]
    kinds = dict.fromkeys(texts, "string") | {"p_value": "float64", "adjusted_p": "float64"}
    kinds |= {"source": "string", "id": "string"}
    names = {"sentence": "claim", "power": "if the article is right", "p_value": "p", "adjusted_p": "adjusted p"}
    return pd.DataFrame(map(vars, results), columns=list(kinds)).astype(kinds).rename(columns=names)


def claims_json(results: Iterable[ClaimResult]) -> list[dict[str, Any]]:
    """The verdicts as plain JSON: the fields of `ClaimResult`."""
    return [dataclasses.asdict(result) for result in results]


def _result(claim: Claim, finding: Finding, p_value: float | None, adjusted_p: float | None, tests: int) -> ClaimResult:
    evidence, measured, sign = finding.evidence, finding.measured, finding.sign
    word = NOT_RUN if finding.basis is None else verdict(sign, finding.basis, finding.seeds)
    if finding.estimate is not None and finding.basis is not None and p_value is not None and adjusted_p is not None:
        sign = judge_direction(finding.estimate.value, adjusted_p)
        word = verdict(sign, finding.basis, finding.seeds)
        evidence += f"; p = {p_value:.3g}, adjusted for {tests} test(s) {adjusted_p:.3g}"
    if word == NO_VERDICT:
        few = finding.seeds is not None and finding.seeds < MIN_SEEDS
        needed = [f"the article's recipe on {REFERENCE}"] if finding.basis == "number" else []
        needed += [f"{MIN_SEEDS} seeds or more"] if few else []
        evidence += f"; a verdict takes {' with '.join(needed)}"
    if measured is not None and finding.label is not None:
        measured += f" ({finding.label})"
    return ClaimResult(
        id=claim.id,
        sentence=claim.sentence,
        source=claim.source,
        kind=claim.kind,
        basis=finding.basis,
        verdict=word,
        reported=claim.reported_text,
        measured=measured,
        interval=finding.interval,
        evidence=evidence,
        experiments=claim.experiments,
        runs=finding.runs,
        p_value=p_value,
        adjusted_p=adjusted_p,
        rule=claim.rule_text,
        power=finding.power(tests) if finding.power and word != NO_VERDICT else None,
    )


def _claim(entry: Any, where: str) -> Claim:
    if not isinstance(entry, dict):
        raise ConfigError(f"{where}: {entry!r} is not valid; it takes fields such as id, kind and sentence")
    values = dict(entry)
    where, kind = f"{where} ({values.get('id')})", values.pop("kind", None)
    if kind not in KINDS:
        raise ConfigError(f"{where}: kind: {kind!r} is not valid; use {', '.join(KINDS)}")
    return build(KINDS[kind], values, where)


def _check_experiments(claims: Iterable[Claim], recorded: set[str]) -> None:
    known = {*load_reported().rows, *LAYERWISE, *recorded, *(f"{name}{PLAIN}" for name in load_reported().rows)}
    for claim in claims:
        for name in claim.experiments:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(sorted(known))}"
                raise ConfigError(f"claim {claim.id}: experiments: {name!r} is not known; {hint}")
