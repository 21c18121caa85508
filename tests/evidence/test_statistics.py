"""Statistics: published worked examples, independent implementations, and properties."""

import math

import false_positives
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import DescrStatsW

from lora_study.evidence.statistics import (
    Estimate,
    accuracy_over_seeds,
    holm,
    mean_squares,
    mean_t,
    mean_with_sampling,
    paired_difference,
    sampling_error,
    wilson,
)

# Student (1908), hours of sleep gained under two drugs, ten patients.
SLEEP_1 = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
SLEEP_2 = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
SLEEP = [second - first for first, second in zip(SLEEP_1, SLEEP_2, strict=True)]

fractions = st.floats(0, 1)
seed_values = st.lists(fractions, min_size=2, max_size=8)
p_values = st.lists(fractions, min_size=1, max_size=8)
right = arrays(bool, st.tuples(st.integers(1, 4), st.integers(2, 30)))


def both(shapes):
    return shapes.flatmap(lambda shape: st.tuples(arrays(bool, shape), arrays(bool, shape)))


pairs = both(st.tuples(st.integers(1, 4), st.integers(2, 30)))


class TestWilson:
    @pytest.mark.parametrize(
        ("correct", "n", "low", "high"),
        [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
    )
    def test_newcombe_s_examples(self, correct, n, low, high):
        """Newcombe, Statistics in Medicine 17 (1998), table I, method 3."""
        assert wilson(correct, n) == pytest.approx((low, high), abs=5e-5)

    @given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
    def test_it_holds_the_estimate_and_mirrors(self, counts):
        correct, n = counts
        low, high = wilson(correct, n)
        assert 0 <= low <= correct / n <= high <= 1 and low < high
        assert wilson(n - correct, n) == pytest.approx((1 - high, 1 - low))

    @given(st.integers(0, 50))
    def test_more_reviews_narrow_it(self, correct):
        widths = [high - low for low, high in (wilson(correct * k, 50 * k) for k in (1, 4, 16))]
        assert widths == sorted(widths, reverse=True)


class TestSeeds:
    def test_student_s_sleep_data(self):
        """Student (1908): mean gain 1.58 hours, t = 4.0621 on 9 degrees, p = 0.002833, interval 0.7001 to 2.4599."""
        gain = mean_t(SLEEP)
        assert gain.value == pytest.approx(1.58)
        assert gain.value / gain.standard_error == pytest.approx(4.0621, abs=5e-5) and gain.df == 9
        assert gain.differs() == pytest.approx(0.002833, abs=5e-7)
        assert gain.interval() == pytest.approx((0.7001, 2.4599), abs=5e-5)

    @given(seed_values, st.floats(-5, 5))
    def test_the_t_interval_moves_with_the_data(self, values, shift):
        low, high = mean_t(values).interval()
        assert mean_t([value + shift for value in values]).interval() == pytest.approx(
            (low + shift, high + shift), abs=1e-9
        )

    def test_one_seed_has_no_interval(self):
        with pytest.raises(ValueError, match="two or more"):
            mean_t([0.9])

    def test_the_error_of_reviews_is_added(self):
        """By hand: 0.3 points between three seeds and 0.4 of sampling; without sampling it is Student's."""
        found = mean_with_sampling(1.5, 0.3, 3, 0.4)
        assert found.value == 1.5 and found.standard_error == pytest.approx(math.sqrt(0.03 + 0.16))
        assert found.df == pytest.approx(2 * (0.19 / 0.03) ** 2)
        alone, student = mean_with_sampling(1.58, float(np.std(SLEEP, ddof=1)), 10, 0.0), mean_t(SLEEP)
        assert (alone.standard_error, alone.df) == pytest.approx((student.standard_error, student.df))
        assert mean_with_sampling(1.5, 0.0, 3, 0.4).df == math.inf

    def test_the_error_of_an_accuracy(self):
        """The binomial one for many reviews; not none where all of a few are right."""
        assert sampling_error(0.92, 10**8, 10_000) == pytest.approx(math.sqrt(0.92 * 0.08 / 10_000))
        assert sampling_error(1.0, 6, 100) == pytest.approx(math.sqrt(0.8 * 0.2 / 100))

    @given(st.lists(st.integers(0, 200), min_size=1, max_size=6))
    def test_reviews_and_seeds_are_apart_and_together(self, counts):
        result = accuracy_over_seeds([count / 200 for count in counts], 200)
        assert 0 <= result.interval[0] <= result.sampling[0] <= result.sampling[1] <= result.interval[1] <= 1
        if len(set(counts)) == 1:  # seeds that agree add nothing
            assert result.interval == pytest.approx(result.sampling)

    def test_more_seeds_do_not_shrink_the_sampling_error(self):
        few, many = (accuracy_over_seeds([0.89, 0.91] * k, 1000) for k in (1, 20))
        assert many.sampling == few.sampling
        assert many.interval[1] - many.interval[0] < few.interval[1] - few.interval[0]


class TestMeanSquares:
    def test_shrout_and_fleiss(self):
        """Shrout & Fleiss, Psychological Bulletin 86 (1979), tables 2 and 3: 11.24, 32.49 and 1.02."""
        ratings = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]
        squares = mean_squares(np.transpose(ratings))  # judges as seeds, targets as reviews
        assert squares.shape == (4, 6)
        found = (squares.reviews, squares.seeds, squares.residual)
        assert found == pytest.approx((11.24, 32.49, 1.02), abs=5e-3)

    def test_known_variances_are_found(self):
        random = np.random.default_rng(1)
        scores = random.normal(0, 0.3, (200, 1)) + random.normal(0, 2, (1, 500)) + random.normal(0, 1, (200, 500))
        squares = mean_squares(scores)
        assert squares.seed_variance == pytest.approx(0.09, rel=0.25)
        assert squares.sampling_variance == pytest.approx(4 / 500, rel=0.25)


class TestPairedDifference:
    def test_one_seed_is_the_paired_t_test(self):
        """Student (1908) again: the paired difference of the two drugs."""
        gain = paired_difference(SLEEP_2, SLEEP_1)
        assert (gain.value, gain.standard_error, gain.df) == pytest.approx((1.58, 1.58 / 4.0621, 9), rel=1e-5)

    @given(pairs)
    def test_swapping_turns_it_round(self, pair):
        forth, back = paired_difference(*pair), paired_difference(*pair[::-1])
        assert back.value == pytest.approx(-forth.value)
        assert (back.standard_error, back.df) == pytest.approx((forth.standard_error, forth.df))
        assert forth.value == pytest.approx(pair[0].mean() - pair[1].mean())
        assert math.isfinite(forth.standard_error) and forth.standard_error > 0 and forth.df > 0

    @given(pairs, st.randoms(use_true_random=False))
    def test_order_of_reviews_and_seeds_does_not_matter(self, pair, random):
        seeds, reviews = (random.sample(range(size), size) for size in pair[0].shape)
        shuffled = paired_difference(*(scores[seeds][:, reviews] for scores in pair))
        before = paired_difference(*pair)
        assert (shuffled.value, shuffled.standard_error) == pytest.approx((before.value, before.standard_error))

    @given(right)
    def test_no_disagreement_is_no_proof(self, scores):
        same = paired_difference(scores, scores)
        assert same.value == 0 and same.differs() == 1
        assert same.standard_error == pytest.approx(math.sqrt(2) / scores.shape[1])

    def test_copies_of_a_seed_are_no_evidence(self):
        random = np.random.default_rng(1)
        a, b = random.random(400) < 0.9, random.random(400) < 0.8
        one, five = paired_difference(a, b), paired_difference([a] * 5, [b] * 5)
        assert (five.value, five.standard_error) == pytest.approx((one.value, one.standard_error))

    def test_seeds_that_differ_widen_it(self):
        random = np.random.default_rng(1)
        steady = random.random((4, 2000)) < 0.9
        unsteady = random.random((4, 2000)) < np.array([[0.98], [0.94], [0.86], [0.82]])
        other = random.random((4, 2000)) < 0.8
        assert paired_difference(unsteady, other).standard_error > 3 * paired_difference(steady, other).standard_error

    @pytest.mark.parametrize("shapes", [((2, 5), (2, 4)), ((5,), (2, 5)), ((1,), (1,))])
    def test_pairs_need_one_shape(self, shapes):
        with pytest.raises(ValueError, match="paired scores"):
            paired_difference(*(np.zeros(shape) for shape in shapes))


class TestEstimate:
    def test_one_sided_tests_of_a_published_example(self):
        """TOSTER's manual, TOSTmeta: 0.12 with standard error 0.09 in ±0.2: p 0.0002 and 0.187, 90% -0.028 to 0.268."""
        effect = Estimate(0.12, 0.09)
        assert effect.above(-0.2) == pytest.approx(0.0002, abs=5e-5)
        assert effect.below(0.2) == pytest.approx(0.187, abs=5e-4)
        assert effect.interval(0.90) == pytest.approx((-0.028, 0.268), abs=5e-4)

    @pytest.mark.parametrize(("margin", "centre"), [(0.5, 0.0), (1.0, 1.5), (2.0, -0.5)])
    def test_it_agrees_with_statsmodels(self, margin, centre):
        _, above, below = DescrStatsW(SLEEP).ttost_mean(centre - margin, centre + margin)
        gain = mean_t(SLEEP)
        assert (gain.above(centre - margin), gain.below(centre + margin)) == pytest.approx((above[1], below[1]))

    @given(st.floats(-1, 1), st.floats(0.01, 1), st.integers(1, 50), st.floats(-1, 1))
    def test_p_values_and_intervals_agree(self, value, error, df, bound):
        effect = Estimate(value, error, df)
        low, high = effect.interval()
        if abs(effect.differs(bound) - 0.05) > 1e-9:
            assert (effect.differs(bound) < 0.05) == (not low <= bound <= high)
        assert effect.above(bound) + effect.below(bound) == pytest.approx(1)

    def test_without_error_the_value_decides(self):
        assert Estimate(1.0, 0.0).differs(0.5) == 0 and Estimate(1.0, 0.0).differs(1.0) == 1


class TestHolm:
    def test_the_textbook_example(self):
        """Wikipedia, "Holm-Bonferroni method": 0.01, 0.04, 0.03, 0.005 become 0.03, 0.06, 0.06, 0.02."""
        assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])

    @given(p_values, st.randoms(use_true_random=False))
    def test_between_none_and_bonferroni_in_any_order(self, values, random):
        adjusted = holm(values)
        for p, q in zip(values, adjusted, strict=True):
            assert p - 1e-12 <= q <= min(1, len(values) * p) + 1e-12
        order = random.sample(range(len(values)), len(values))
        assert holm([values[i] for i in order]) == pytest.approx([adjusted[i] for i in order])

    @pytest.mark.parametrize("values", [[0.2, 0.01, 0.01, 0.04], [0.9, 0.8, 0.0], [0.03]])
    def test_it_agrees_with_statsmodels(self, values):
        assert holm(values) == pytest.approx(multipletests(values, method="holm")[1])

    def test_no_test_no_correction(self):
        assert holm([]) == [] and holm([0.02]) == [0.02]


def test_false_positive_rates():
    """The script's simulation, smaller: nothing is wrong more often than it says but what is known to be."""
    rates = false_positives.measure(replications=200).set_index("wrong when")["rate (%)"]
    known = rates.index.str.contains("not corrected|, 2 seeds|, 3 seeds, seeds deviate by 2")
    limit = 5 + 3 * 100 * math.sqrt(0.05 * 0.95 / 200)
    assert known.sum() == 5 and (rates[~known] <= limit).all(), rates.to_string()
    assert rates[rates.index.str.contains("not corrected")].item() > limit
    found = false_positives.measure_rules(replications=60).set_index(["rule", "truth"])
    rare = 5 + 3 * 100 * math.sqrt(0.05 * 0.95 / 60)
    for (rule, truth), row in found.iterrows():
        if truth in ("the article is exactly right", "the article is one run of this recipe", "both are random cuts"):
            assert row["does not hold (%)"] <= rare, (rule, truth)
        elif truth != "the ratio is 0.8":
            assert row["holds (%)"] <= rare, (rule, truth)
    steady = "accuracy, 5 seeds, deviation 0.3", "the article is exactly right"
    assert found.loc[steady, "holds (%)"] > 80
