"""What matters most, in three lines: accuracies on the article's encoder, orderings, arithmetic."""

from collections import Counter
from collections.abc import Iterable, Sequence

from lora_study.evidence.claims import ClaimResult
from lora_study.evidence.claims.arithmetic import REFERENCE
from lora_study.evidence.claims.rules import VERDICTS, WORDS
from lora_study.records.record import Record, rules_sha256


def headline(results: Iterable[ClaimResult]) -> tuple[str, str, str]:
    """Accuracies, orderings and arithmetic, one line each.

    Such as "Orderings: 4 of 6 in the same direction on the stand-in (1 inconclusive, 1 not run)."
    """
    results, kinds = list(results), ("accuracy", "ordering", "equality")
    accuracies, orderings, equalities = ([result for result in results if result.kind == kind] for kind in kinds)
    agree = sum(result.verdict == "agrees" for result in equalities)
    return _accuracies(accuracies), _orderings(orderings), f"Arithmetic: {agree} of {len(equalities)} agree."


def age_of_rules(records: Iterable[Record]) -> str:
    """How many runs started under the rules that judge them now."""
    done = [record for record in records if record.status == "completed"]
    rules = rules_sha256()
    under = sum(record.provenance.get("rules_sha256") == rules for record in done)
    return f"Rules: {under} of {len(done)} completed runs were begun under the present ones (SHA-256 {rules[:12]})."


def _accuracies(results: Sequence[ClaimResult]) -> str:
    there = [result for result in results if result.basis == "recipe"]
    verdicts = f": {_counts(there)}" if there else ""
    departs = any("departing from the article" in (result.measured or "") for result in results)
    where = "by the article's recipe" if departs else f"on {REFERENCE}"
    return f"Accuracies: {len(there)} of {len(results)} measured {where}{verdicts}."


def _orderings(results: Sequence[ClaimResult]) -> str:
    recipe = any(result.basis == "recipe" for result in results)
    word = WORDS["recipe" if recipe else "stand-in"][0]
    stand_in = any("stand-in encoder" in (result.measured or "") for result in results)
    other = any("(encoder: " in (result.measured or "") for result in results)
    where = " on the stand-in" if stand_in else " on another encoder" if other else " with another recipe"
    where = "" if recipe else where
    held = [result for result in results if result.verdict == word]
    rest = _counts([result for result in results if result.verdict != word])
    said = word if recipe else f"in the {word}"
    return f"Orderings: {len(held)} of {len(results)} {said}{where if held else ''}{f' ({rest})' if rest else ''}."


def _counts(results: Sequence[ClaimResult]) -> str:
    counts = Counter(result.verdict for result in results)
    return ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict])
