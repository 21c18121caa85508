"""The verdicts once more, by other code: scipy and loops, nothing of this package but the records' format.

Three seeds that differ much, predictions that are paired in part, and evidence of each kind: the article's recipe on
its encoder, a stand-in, and arithmetic. The expected numbers are computed from the same predictions in another way.
"""

import contextlib
import io
import json
import math
import statistics

import numpy as np
import pandas as pd
import pytest
from fabricate import record
from scipy import stats

from lora_study.cli import main
from lora_study.records.record import run_dir, write_record

REVIEWS = 6000
TESTS = 7  # orderings and gaps in the shipped claims
REPORTED = {"last_two_layers": 86.22, "lora_default": 89.44, "lora_best": 92.39, "full": 92.31}
# Chance of being right beyond an easy review's, per seed: unequal on purpose.
SKILL = {
    "last_two_layers": (0.80, 0.84, 0.81),
    "lora_default": (1.45, 0.90, 1.25),
    "lora_best": (1.42, 1.45, 1.44),
    "full": (1.40, 1.49, 1.56),
}
# How much better each run does on its training reviews, likewise.
GAPS = {"last_two_layers": (0.01, 0.0, 0.01), "lora_default": (0.02, 0.03, 0.024), "full": (0.05, 0.049, 0.06)}
TRAIN_REVIEWS = 4000


def right_ones(name, seed):
    """Which reviews a run gets right: their difficulty is shared by all runs, luck is not."""
    difficulty = np.random.default_rng(11).standard_normal(REVIEWS)
    luck = np.random.default_rng((sum(map(ord, name)), seed)).standard_normal(REVIEWS)
    return 0.8 * difficulty + 0.6 * luck + SKILL[name][seed - 1] > 0


@pytest.fixture(scope="module", params=["recipe", "stand-in"])
def judged(request, tmp_path_factory):
    """What the command says of a fabricated study, by claim; whether it is the article's recipe; who was right."""
    folder = tmp_path_factory.mktemp(request.param)
    right = {name: np.stack([right_ones(name, seed) for seed in (1, 2, 3)]) for name in SKILL}
    encoder = {"name": "distilbert-base-uncased", "backbone": "distilbert-base-uncased", "stand_in": False}
    for name, table in right.items():
        for seed, found in enumerate(table, start=1):
            test = float(found.mean())
            scores = {"test": {"accuracy": test, "n": REVIEWS}, "train": {"accuracy": test, "n": TRAIN_REVIEWS}}
            scores["train"]["accuracy"] += GAPS.get(name, (0, 0, 0))[seed - 1]
            run = record(name, seed, test, metrics=scores, config={"train": {"fast": False}})
            run.timing["train_seconds"] = {"full": 100.0, "lora_default": 80.0}.get(name, 90.0) + 2 * seed**2
            if request.param == "recipe":
                run.provenance["encoder"] = encoder
                run.deviations.clear()
            label = np.arange(REVIEWS) % 2
            said = np.where(found == (label == 1), 0.9, 0.1)
            rows = pd.DataFrame({"id": [f"r{i}" for i in range(REVIEWS)], "label": label, "probability": said})
            write_record(run, run_dir(folder, name, seed))
            rows.sample(frac=1, random_state=seed).to_parquet(run_dir(folder, name, seed) / "predictions.parquet")
    return folder, request.param == "recipe", right


@pytest.fixture(scope="module")
def results(judged):
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main(["claims", "--results-dir", str(judged[0]), "--json"]) == 0
    return {result["id"]: result for result in json.loads(printed.getvalue())}


def one_more_run(values, sampling):
    """Half the interval for one more run: Student over the seeds and the normal over reviews, in squares."""
    k = len(values)
    spread = statistics.stdev(values) * math.sqrt(1 + 1 / k) * stats.t.isf(0.025, k - 1)
    return math.sqrt(spread**2 + (stats.norm.isf(0.025) * sampling) ** 2)


def word_for(value, half, reported):
    if not value - half <= reported <= value + half:
        return "not reproduced"
    return "reproduced" if half <= 2 else "inconclusive"


def bounds(result):
    """The two numbers of an interval as it is printed."""
    return [float(text.strip("%")) for text in result["interval"].removesuffix(" points").split(" to ")]


def test_accuracies(judged, results):
    _, recipe, right = judged
    words = set()
    for name, reported in REPORTED.items():
        values = [100 * row.sum() / REVIEWS for row in right[name]]
        words.add(check_accuracy(results[f"accuracy.{name}.test"], values, (REVIEWS, 10_000), reported, recipe))
    assert len(words) == (3 if recipe else 1)  # the case has every verdict


@pytest.mark.parametrize(("name", "reported"), [("lora_default", 92.15), ("full", 96.41)])
def test_accuracies_on_training_reviews(judged, results, name, reported):
    _, recipe, right = judged
    values = [100 * (row.sum() / REVIEWS + gap) for row, gap in zip(right[name], GAPS[name], strict=True)]
    check_accuracy(results[f"accuracy.{name}.train"], values, (TRAIN_REVIEWS, 35_000), reported, recipe)


def check_accuracy(result, values, reviews, reported, recipe):
    mean, (ours, theirs) = sum(values) / 3, reviews
    p = (mean / 100 * ours + 2) / (ours + 4)
    half = one_more_run(values, 100 * math.sqrt(p * (1 - p) / ours + p * (1 - p) / theirs))
    assert result["measured"].split("%")[0] == f"{mean:.2f}"
    assert bounds(result) == pytest.approx([max(mean - half, 0), min(mean + half, 100)], abs=0.006)
    assert result["verdict"] == (word_for(mean, half, reported) if recipe else "no verdict")
    return result["verdict"]


@pytest.mark.parametrize(
    ("claim", "pair"), [("full_and_lora", ("full", "lora_default")), ("best_lora_and_full", ("lora_best", "full"))]
)
def test_differences(judged, results, claim, pair):
    _, recipe, right = judged
    first, second = (right[name].astype(int) for name in pair)
    apart = first - second
    values = [100 * float(row.sum()) / REVIEWS for row in apart]
    ours = statistics.variance(apart.mean(axis=0).tolist()) / REVIEWS
    theirs = statistics.fmean(statistics.variance(row.tolist()) for row in apart) / 10_000
    half, mean = one_more_run(values, 100 * math.sqrt(ours + theirs)), statistics.fmean(values)
    result = results[f"difference.{claim}"]
    assert bounds(result) == pytest.approx([mean - half, mean + half], abs=0.006)
    reported = REPORTED[pair[0]] - REPORTED[pair[1]]
    assert result["verdict"] == (word_for(mean, half, reported) if recipe else "no verdict")


def paired_p(first, second):
    """Two-way analysis of variance over reviews and seeds, written out; t with Satterthwaite's degrees of freedom."""
    apart = first.astype(float) - second
    k, n = apart.shape
    total = apart.sum()
    correction = total**2 / (k * n)
    seeds = (apart.sum(axis=1) ** 2).sum() / n - correction
    reviews = (apart.sum(axis=0) ** 2).sum() / k - correction
    rest = (apart**2).sum() - correction - seeds - reviews
    seeds, reviews, rest = seeds / (k - 1), reviews / (n - 1), rest / ((k - 1) * (n - 1))
    if seeds > rest:
        variance = reviews + seeds - rest
        df = variance**2 / (reviews**2 / (n - 1) + seeds**2 / (k - 1) + rest**2 / ((k - 1) * (n - 1)))
    else:
        variance, df = reviews, n - 1
    return total / (k * n), 2 * stats.t.sf(abs(total / (k * n)) / math.sqrt(variance / (k * n)), df)


def gap_p(right):
    """Gaps of full less those of default LoRA; the reviews of the four accuracies add their binomial variances."""
    gaps = [100 * (full - lora) for full, lora in zip(GAPS["full"], GAPS["lora_default"], strict=True)]
    reviews = 0.0
    for name in ("full", "lora_default"):
        test = statistics.fmean(right[name].mean(axis=1).tolist())
        for accuracy, n in ((test, REVIEWS), (test + statistics.fmean(GAPS[name]), TRAIN_REVIEWS)):
            p = (accuracy * n + 2) / (n + 4)
            reviews += 100**2 * p * (1 - p) / n
    seeds = statistics.variance(gaps) / 3
    df = (seeds + reviews) ** 2 / (seeds**2 / 2)
    return statistics.fmean(gaps), 2 * stats.t.sf(statistics.fmean(gaps) / math.sqrt(seeds + reviews), df)


def test_orderings_and_the_gap(judged, results):
    _, recipe, right = judged
    pairs = {
        "ordering.best_lora_above_last_two": ("lora_best", "last_two_layers"),
        "ordering.lora_above_last_two": ("lora_default", "last_two_layers"),
        "ordering.best_lora_above_default": ("lora_best", "lora_default"),
        "ordering.full_above_lora": ("full", "lora_default"),
    }
    found = {claim: paired_p(*(right[name] for name in pair)) for claim, pair in pairs.items()}
    found["gap.lora_below_full"] = gap_p(right)
    adjusted, worst = {}, 0.0
    for rank, claim in enumerate(sorted(found, key=lambda claim: found[claim][1])):
        worst = max(worst, min(1.0, (TESTS - rank) * found[claim][1]))  # what was not run counts as p = 1
        adjusted[claim] = worst
    words = ("reproduced", "not reproduced") if recipe else ("same direction", "other direction")
    for claim, (difference, p_value) in found.items():
        assert results[claim]["p_value"] == pytest.approx(p_value, rel=1e-5)
        assert results[claim]["adjusted_p"] == pytest.approx(adjusted[claim], rel=1e-5)
        expected = words[int(difference < 0)] if adjusted[claim] < 0.05 else "inconclusive"
        assert results[claim]["verdict"] == expected
    assert len({results[claim]["verdict"] for claim in found}) > 1  # the case decides some and leaves others open


def test_time(judged, results):
    _, recipe, _ = judged
    logs = [math.log((80 + 2 * seed**2) / (100 + 2 * seed**2)) for seed in (1, 2, 3)]
    mean, half = statistics.fmean(logs), stats.t.isf(0.025, 2) * statistics.stdev(logs) / math.sqrt(3)
    result = results["ratio.time.lora_default"]
    assert bounds(result) == pytest.approx([math.exp(mean - half), math.exp(mean + half)], abs=6e-4)
    below = math.exp(mean + half) <= 1 / 1.05
    assert result["verdict"] == (("reproduced" if recipe else "same direction") if below else "inconclusive")


def test_arithmetic(judged, results):
    """Counts by hand. The fabricated runs count as the stand-in does, which the article's encoder contradicts."""
    width, wide = 768, 3072
    counts = {
        "last_two_layers": width * width + width + 2 * width + 2,
        "lora_default": 6 * 2 * 8 * (width + width),
        "lora_best": 6 * 8 * (2 * (width + width) + 2 * (width + wide)),
    }
    for name, count in counts.items():
        result = results[f"parameters.{name}"]
        measured, _, contradicts = result["measured"].partition("; ")
        assert result["reported"] == measured == f"{count:,}"
        assert result["verdict"] == ("does not agree" if judged[1] else "agrees")
        assert (f"where its shape gives {count:,}" in contradicts) == judged[1]
    assert results["parameters.square_ratio"]["verdict"] == results["recipe.settings_tried"]["verdict"] == "agrees"
