"""What the report says in sentences. All of it is made from the records and the verdicts; nothing is typed by hand."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import pandas as pd

from lora_study.base.text_tables import count, escape
from lora_study.config import flatten
from lora_study.evidence.claims.rules import INCONCLUSIVE, NO_VERDICT, WORDS
from lora_study.evidence.summary import all_measured, encoder_label, encoders_of, measured
from lora_study.records.record import Record
from lora_study.report.exhibits import judged
from lora_study.report.material import Study
from lora_study.report.plots import running_mean

HOLDS, AGAINST = ([pair[side] for pair in WORDS.values()] for side in (0, 1))
CONSISTENT = WORDS["cut"][0]
HEAD = ("pre_classifier", "classifier")  # the head's layers, by their names
LEARNING = 0.95  # of the loss of guessing is the training loss of a run that no longer guesses


def scope(study: Study) -> str:
    """What was run, with how many seeds, and on which reviews."""
    done = study.completed
    failed = len(study.records) - len(done)
    seeds = sorted({sum(record.name == name for record in done) for name in study.curves})
    each = f"{seeds[0]} to {seeds[-1]} seeds" if len(seeds) > 1 else count(seeds[0], "seed")
    failures = f" and {count(failed, 'failed run')}" if failed else ""
    runs = f"{count(len(study.curves), 'experiment')}, {each} each ({count(len(done), 'completed run')}{failures})"
    return f"Beside {escape(study.reported.article)}: {runs}. {budget(study)}".rstrip()


def encoder_in_words(study: Study) -> str:
    """Which encoder was run, and what that makes of the numbers."""
    runs, reported = study.completed or study.records, study.reported
    encoder = escape(encoder_label(runs).replace("encoder: ", "encoder "))
    words = f"Run with the **{encoder}**. "
    if len(set(encoders_of(study.completed))) > 1:
        return words + "Runs of different encoders stand beside one another: only those of one can be compared."
    if any(record.encoder.stand_in or record.encoder.name not in (None, reported.encoder) for record in runs):
        return words + (
            f"**{escape(reported.encoder)}, the article's, was not run**: accuracies here and there are of different "
            "models, and only the direction of a gap between two rows is judged."
        )
    return words + f"The article's: {escape(reported.encoder)}, one seed for each row."


def budget(study: Study) -> str:
    """What each run learned from and was tested on, as a sentence and a space; empty where the runs differ."""
    budgets, lasted = set(), set[Any]()
    for record in study.completed:
        sizes, settings = record.data.get("sizes") or {}, flatten(record.config)
        tested = measured(record, "metrics.test.n") or (sizes.get("test") if record.metrics.get("test") else 0)
        budgets.add((sizes.get("train"), settings.get("data.max_length"), tested))
        lasted.add(settings.get("train.epochs"))
    (reviews, tokens, tested), *others = budgets or {(None, None, None)}
    if others or not (reviews and tokens) or tested is None:
        return ""
    epochs = f" for {count(lasted.pop(), 'epoch')}" if len(lasted) == 1 and all(lasted) else ""
    said = f"is tested on {tested:,}" if tested else "leaves its test reviews alone"
    return f"Each run trains on {reviews:,} reviews of at most {tokens} tokens{epochs} and {said}. "


def in_plain_words(study: Study) -> Iterator[str]:
    """What was asked, what was seen, what that means for the article's claims, and what it cannot say."""
    if question := study.words.get("question"):
        yield f"**Asked.** {escape(question)}"
    yield f"**Seen.** {' '.join(_seen(study)) or 'No sentence of the article can be checked against these runs.'}"
    yield f"**What it means.** {_meaning(study)}"
    if limits := study.words.get("limits"):
        yield f"**What it cannot say.** {escape(limits)}"


def legend(study: Study) -> str:
    """The words of the verdicts that were given, explained."""
    results = judged(study)
    given = {result.verdict for result in results}
    words = []
    if given & {*WORDS["stand-in"]}:
        words.append("*Same* or *other direction* is the most that another encoder or recipe can show.")
    if INCONCLUSIVE in given:
        words.append(
            "*Inconclusive*: these runs cannot tell. (An interval is of one comparison alone; a test's verdict allows "
            "for all of them.)"
        )
    if NO_VERDICT in given:
        words.append(
            "*No verdict*: fewer than three seeds, or a number that only the article's own recipe could confirm."
        )
    absent = [result for result in study.verdicts if result.basis is None]
    if absent:
        words.append(
            f"For {count(len(absent), 'other claim')} there is no evidence here; see *Evidence for each claim*."
        )
    return " ".join(words)


def starts(curves: Mapping[str, pd.DataFrame], guess: float) -> str:
    """When the runs began to learn for good, and which took much longer than their row: means over epochs hide it.

    A run that falls back to guessing begins anew.

    Args:
        curves: For each experiment the rows of its runs' ``curves.csv`` and their seed.
        guess: The loss of a run that guesses.
    """
    first: dict[tuple[str, Any], float] = {}
    ended: dict[tuple[str, Any], float] = {}
    for name, rows in curves.items():
        for seed, run in rows.dropna(subset=["train_loss"]).groupby("seed") if not rows.empty else ():
            smooth = running_mean(run)
            last = run["step"][smooth >= guess].max()  # step at which it still, or again, guesses
            learned = run["step"][(smooth < LEARNING * guess) & ~(run["step"] <= last)]
            first[name, seed] = learned.iloc[0] if len(learned) else math.inf
            ended[name, seed] = smooth.iloc[-1]
    usual = {name: statistics.median_low(step for (row, _), step in first.items() if row == name) for name, _ in first}
    never = [
        f"{escape(name)} seed {seed:g} ({ended[name, seed]:.2f} at its end)"
        for (name, seed), step in first.items()
        if step == math.inf
    ]
    late = [
        f"{escape(name)} seed {seed:g} at step {step:,.0f}"
        for (name, seed), step in first.items()
        if 2 * usual[name] < step < math.inf
    ]
    below = f"a training loss below {LEARNING * guess:.2f} for good (running mean; guessing gives {guess:.2f})"
    if len(never) == len(first):
        return f"No run reached {below}."
    middle = statistics.median_low(first.values())
    said = f"Half of the runs reached {below} by step {middle:,.0f}"
    if middle == math.inf:
        said = f"Most runs never reached {below}"
    said += f"; much later than the rest of its row: {', '.join(late)}" * bool(late)
    said += f"; never: {', '.join(never)}" * bool(never)
    alone = len(first) == len(usual)  # a row of one run has no rest
    return f"{said}." if late or never or alone else f"{said}, and none took more than twice as long as its row."


def confidence(study: Study) -> str:
    """Between which probabilities models with a frozen and with a trained head stay, and why."""
    spans: dict[bool, list[tuple[str, float, float]]] = {True: [], False: []}
    for name, runs in study.predictions.items():
        record = next(record for record in study.completed if record.name == name)
        every = pd.concat(run["probability"] for run in runs.values())
        spans[_is_frozen(record)].append((name, every.min(), every.max()))
    if not spans[True]:
        return ""
    words = f"With a head that stays as it was drawn ({_names(spans[True])}), probabilities lie {_between(spans[True])}"
    if spans[False]:
        words += f"; with a trained head ({_names(spans[False])}) {_between(spans[False])}"
    words += ". Such a head turns normalised activations into logits of bounded size, so no training can make the "
    frozen = [record for record in study.records if record.name in [name for name, *_ in spans[True]]]
    least, most = (all_measured(frozen, f"metrics.lora.{end}_probability") for end in ("least", "most"))
    if not least or not most:
        return f"{words}model surer; `lora-study inspect` computes the bound."
    cap = f"none can be below {min(least):.2f} or above {max(most):.2f}"
    return f"{words}model surer: as computed for these heads, {cap}."


def copies(study: Study) -> str:
    """How many test reviews have a copy in the training part, where all runs agree on it."""
    found = {
        (
            (record.data["overlap"].get("across") or {}).get("test_in_train"),
            (record.data.get("sizes") or {}).get("test"),
        )
        for record in study.records
        if record.data.get("overlap")
    }
    for number, tested in found if len(found) == 1 else ():
        if number is not None and tested:
            if number == 0:
                return f"None of the {tested:,} test reviews has a copy in the training part (up to white space)."
            verbs = ("has", "tests") if number == 1 else ("have", "test")
            return (
                f"{number:,} of the {tested:,} test reviews ({number / tested:.2%}) {verbs[0]} a copy in the training "
                f"part (equal up to white space), and so {verbs[1]} nothing."
            )
    return ""


def spent(study: Study) -> str:
    """The time that all runs took, added up; side by side they take less."""
    times = all_measured(study.records, "timing.total_seconds")
    if not times:
        return "No run has recorded its time."
    words = f"{count(len(study.records), 'run')}, {sum(times) / 3600:,.2f} hours when added up"
    if untimed := len(study.records) - len(times):
        words += f"; {untimed} of them ended without recording a time"
    return words + ". Runs that were repeated, and runs for choosing settings, are not in these records."


def _seen(study: Study) -> Iterator[str]:
    results = judged(study)
    against = [result for result in results if result.verdict in AGAINST]
    turned = [r for r in against if r.kind in ("ordering", "gap") or (r.kind == "ratio" and r.reported is None)]
    holds = [result for result in results if result.verdict in HOLDS and result.verdict != CONSISTENT]
    ends = [result for result in holds if result.kind in ("accuracy", "difference")]  # judged by one more run
    for start, group in (
        ("Holds here:", [result for result in holds if result not in ends]),
        ("One more run may end as the article's did:", ends),
        ("Consistent with these reviews:", [result for result in results if result.verdict == CONSISTENT]),
        ("The other way round here:", turned),
        ("Does not hold here:", [result for result in against if result not in turned]),
        ("Cannot be told from these runs:", [result for result in results if result.verdict == INCONCLUSIVE]),
    ):
        if group:
            yield f"{start} {'; '.join(escape(result.sentence.rstrip('.')) for result in group)}."
    if numbers := sum(result.verdict == NO_VERDICT for result in results):
        yield f"{count(numbers, 'comparison')} {'has' if numbers == 1 else 'have'} a number and no verdict."


def _meaning(study: Study) -> str:
    decided = [result for result in judged(study) if result.verdict != NO_VERDICT]
    if not decided:
        return "These are numbers without a verdict: they speak neither for nor against the article."
    recipe = [result for result in decided if result.basis == "recipe"]
    pointing = [result for result in decided if result.basis == "stand-in"]
    facts = [result for result in decided if result.basis in ("cut", "arithmetic")]
    words = []
    if recipe:
        held, against = (sum(result.verdict in verdicts for result in recipe) for verdicts in (HOLDS, AGAINST))
        words.append(
            f"With the article's recipe on its encoder, {held} of {count(len(recipe), 'sentence')} "
            f"{'is' if held == 1 else 'are'} reproduced and {against} {'is' if against == 1 else 'are'} not."
        )
    if pointing:
        held, against = (sum(result.verdict in verdicts for result in pointing) for verdicts in (HOLDS, AGAINST))
        open_ = len(pointing) - held - against
        words.append(
            f"With another model or recipe, {held} of {count(len(pointing), 'sentence')} "
            f"{'points' if held == 1 else 'point'} the article's way and {against} the other way"
            + f", and of {open_} these runs cannot tell" * bool(open_)
            + "; its accuracies are neither confirmed nor refuted."
        )
    if facts:
        consistent = sum(result.verdict == CONSISTENT for result in facts)
        held = sum(result.verdict in HOLDS for result in facts) - consistent
        said = [f"{held} {'holds' if held == 1 else 'hold'}"] * bool(held or not consistent)
        said += [f"{consistent} {'is' if consistent == 1 else 'are'} consistent"] * bool(consistent)
        words.append(f"Of {count(len(facts), 'fact')} about the reviews or LoRA itself, {' and '.join(said)}.")
    return " ".join(words)


def _is_frozen(record: Record) -> bool:
    """Whether the head stays as it was drawn: nothing in it is trained, nor has an update beside it."""
    targets: Sequence[str] = flatten(record.config).get("lora.targets") or ()
    adapted = "head" in targets or any(fnmatchcase(layer, target) for layer in HEAD for target in targets)
    return record.mode == "lora" and record.parameters.get("head") == 0 and not adapted


def _names(spans: Sequence[tuple[str, float, float]]) -> str:
    return escape(", ".join(name for name, *_ in spans))


def _between(spans: Sequence[tuple[str, float, float]]) -> str:
    return f"between {min(low for _, low, _ in spans):.2f} and {max(high for *_, high in spans):.2f}"
