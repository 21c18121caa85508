"""The rules: what they decide, that more evidence weakens nothing, and that their stated power is theirs."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from lora_study.evidence.claims import power
from lora_study.evidence.claims.rules import (
    BOUND,
    MIN_SEEDS,
    NO_VERDICT,
    VERDICTS,
    WORDS,
    adjust,
    judge_below_one,
    judge_cut,
    judge_direction,
    judge_prediction,
    prediction_half_width,
    verdict,
)
from lora_study.evidence.statistics import (
    CONFIDENCE,
    Estimate,
    mean_squares,
    mean_with_sampling,
    paired_difference,
    sampling_error,
)

SEEDS = (3, 4, 5, 8, 20)
REVIEWS = (1_000, 5_000, 10_000)


def test_the_half_width_by_hand():
    """t with two degrees is 4.303, the normal quantile 1.960."""
    assert prediction_half_width(0.3, 3, 0.0) == pytest.approx(4.302653 * 0.3 * math.sqrt(4 / 3))
    assert prediction_half_width(0.0, 3, 0.4) == pytest.approx(1.959964 * 0.4)
    assert prediction_half_width(0.3, 3, 0.4) == pytest.approx(math.hypot(1.490483, 0.783986))


@pytest.mark.parametrize(
    ("value", "half", "expected"),
    [(92.0, 0.5, 1), (92.0, 2.0, 1), (92.0, 2.01, 0), (92.0, 0.3, -1), (88.0, 3.0, -1), (88.0, 5.0, 0)],
)
def test_a_reported_number(value, half, expected):
    assert judge_prediction(value, half, 92.31, BOUND) == expected


def test_a_direction_needs_a_significant_test():
    assert [judge_direction(1.0, 0.049), judge_direction(-1.0, 0.049), judge_direction(1.0, 0.05)] == [1, -1, 0]


def test_less_is_less_by_a_margin():
    ratios = [(0.8, 0.95), (0.9, 0.97), (0.9, 1.2), (1.05, 1.2), (1.01, 1.04)]
    assert [int(judge_below_one(low, high)) for low, high in ratios] == [1, 0, 0, -1, 0]


def test_two_cuts_differ_by_chance():
    assert judge_cut(116 + 30, 116, 8.5) and not judge_cut(116 + 31, 116, 8.5) and not judge_cut(116 - 31, 116, 8.5)


def test_words_belong_to_the_kind_of_evidence():
    assert len(set(VERDICTS)) == len(VERDICTS) == 11
    for basis, (holds, fails) in WORDS.items():
        assert (verdict(1, basis, None), verdict(-1, basis, 3), verdict(0, basis, 3)) == (holds, fails, "inconclusive")
    for sign, seeds in itertools.product((1, 0, -1), (1, 2)):
        assert verdict(sign, "recipe", seeds) == verdict(sign, "stand-in", seeds) == NO_VERDICT
    assert verdict(1, "number", 5) == NO_VERDICT


class TestMoreEvidenceWeakensNothing:
    """At the same mean and deviation a verdict that was reached stays, or turns into the other; see `rules`."""

    @pytest.mark.parametrize("deviation", [0.0, 0.1, 0.3, 0.6, 1.5, 4.2])
    @pytest.mark.parametrize("off", [0.0, 0.4, 0.9, 1.6, 3.0, 8.0])
    def test_of_a_reported_number(self, deviation, off):
        signs = {}
        for seeds, reviews in itertools.product(SEEDS, REVIEWS):
            sampling = 100 * math.hypot(sampling_error(0.92, reviews, reviews), sampling_error(0.92, reviews, 10_000))
            half = float(prediction_half_width(deviation, seeds, sampling))
            signs[seeds, reviews] = (int(judge_prediction(off, half, 0.0, BOUND)), half)
        for less, more in itertools.product(signs, signs):
            if more[0] >= less[0] and more[1] >= less[1]:
                assert signs[more][1] <= signs[less][1]
                assert signs[less][0] == 0 or signs[more][0] != 0
                assert signs[less][0] != -1 or signs[more][0] == -1  # what is outside stays outside

    @pytest.mark.parametrize("difference", [0.002, 0.01, 0.03])
    def test_of_a_direction(self, difference):
        """The same predictions again, as further seeds: the estimate stays, its p-value falls."""
        random = np.random.default_rng(3)
        review = random.standard_normal(800)
        noise = random.standard_normal((2, 3, 800))
        first, second = (review + 0.7 * noise[side] + 1.3 + shift > 0 for side, shift in ((0, 3 * difference), (1, 0)))
        p_values = []
        for times in (1, 2, 4):
            estimate = paired_difference(np.tile(first, (times, 1)), np.tile(second, (times, 1)))
            p_values.append(estimate.differs())
        assert p_values == sorted(p_values, reverse=True)

    def test_of_a_gap(self):
        widths = [mean_with_sampling(1.4, 0.6, seeds, 0.5).interval() for seeds in SEEDS]
        assert [low for low, _ in widths] == sorted(low for low, _ in widths)

    def test_of_other_claims_that_are_tested_too(self):
        """Whatever the tests that were not made would give, no adjusted p-value rises."""
        random = np.random.default_rng(4)
        for _ in range(200):
            p_values = [float(p) for p in random.random(6) ** 4]
            made = random.random(6) < 0.6
            before = adjust([p if there else None for p, there in zip(p_values, made, strict=True)])
            after = adjust(p_values)
            assert all(after[index] <= before[index] + 1e-15 for index in np.flatnonzero(made))

    def test_of_a_verdict_that_was_none(self):
        assert MIN_SEEDS == 3 and verdict(1, "recipe", 2) == NO_VERDICT


class TestPower:
    def test_of_a_reported_number(self):
        """By hand: no spread, sampling of 0.4 points on each side: outside once in 20; too wide for the bound never."""
        signs = power.of_prediction(0.0, 3, 0.4, 0.4, BOUND)
        assert (signs == 0).sum() == 0 and 0.0 < (signs == -1).mean() < 0.02  # only our half of the error is drawn
        assert (power.of_prediction(4.2, 3, 0.4, 0.4, BOUND) == 1).mean() < 0.02
        small, large = 0.01, 0.5  # ours are drawn, so only ours can fall outside
        assert (power.of_prediction(0.0, 3, small, large, BOUND) == -1).sum() == 0
        assert (power.of_prediction(0.0, 3, large, small, BOUND) == -1).mean() == pytest.approx(0.05, abs=0.015)
        more = [(power.of_prediction(0.3, seeds, 0.3, 0.3, BOUND) == 1).mean() for seeds in (3, 5, 10)]
        assert more == sorted(more) and more[0] > 0.6 and more[-1] > 0.95

    def test_of_a_direction(self):
        random = np.random.default_rng(5)
        scores = (random.random((3, 2000)) < 0.05).astype(float) - (random.random((3, 2000)) < 0.05)
        squares = replace(
            mean_squares(scores), seeds=0.1, residual=0.1, reviews=0.1
        )  # seeds that differ by chance alone
        shares = [
            np.mean(np.array(power.of_direction(power.draw_differences(difference, squares), 7)) == 1)
            for difference in (0.0, 0.01, 0.1)
        ]
        assert shares[0] < 0.05 and shares == sorted(shares) and shares[-1] > 0.95

    def test_of_a_direction_at_its_share_of_the_level(self):
        estimate = Estimate(1.0, 0.4)  # p = 0.012
        assert [power.of_direction([estimate], family) for family in (1, 4, 5, 7)] == [[1], [1], [0], [0]]

    def test_means_vary_as_those_of_so_many_seeds_and_reviews(self):
        def spread(deviation, seeds, sampling):
            return np.std([drawn.value for drawn in power.draw_means(1.0, deviation, seeds, sampling)])

        assert spread(0.6, 9, 0.0) == pytest.approx(0.2, rel=0.1)
        assert spread(0.0, 9, 0.5) == pytest.approx(0.5, rel=0.1)

    def test_of_less(self):
        more = [(power.of_below_one(0.1, seeds) == 1).mean() for seeds in (3, 4, 10)]
        assert more == sorted(more) and more[0] < 0.6 and more[-1] > 0.99
        assert (power.of_below_one(0.01, 3) == 1).mean() > 0.99
        assert (power.of_below_one(0.5, 3) == 1).mean() < 0.3

    def test_in_words(self):
        words = power.in_words([1, 1, 0, -1], "stand-in", 3)
        assert words == "same direction 50%, other direction 25%, inconclusive 25%"


def test_one_more_run_falls_outside_no_more_often_than_stated():
    """By simulation, with seeds that vary and reviews drawn on both sides; the parts add on the wide side."""
    random = np.random.default_rng(6)
    deviation, ours, theirs, draws = 0.5, 0.3, 0.27, 4000
    runs = random.normal(0, deviation, (draws, 3))
    mean = runs.mean(axis=1) + random.normal(0, ours, draws)
    other = random.normal(0, math.hypot(deviation, theirs), draws)
    half = prediction_half_width(runs.std(axis=1, ddof=1), 3, math.hypot(ours, theirs))
    assert 0.4 * (1 - CONFIDENCE) < np.mean(np.abs(mean - other) > half) < 1 - CONFIDENCE
