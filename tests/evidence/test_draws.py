"""draws.py: the variance between crossed runs is shared out among their draws, and no other study gets such a table."""

import numpy as np
import pytest
from fabricate import record
from scipy import stats

from lora_study.config_files import overlay
from lora_study.evidence.draws import draws_table

SEEDS = ("head_init", "lora_init", "data_order", "dropout")
SHARE = "share of the variance (%)"


def square(effect, size=4):
    """Runs of a Latin square of draws; the accuracy is what `effect` gives for head, A and order, each from 0."""
    return [
        record(
            f"head_{head}_lora_{lora}",
            1,
            effect(head, lora, (head + lora) % size),
            provenance={"seeds": dict(zip(SEEDS, (head, lora, (head + lora) % size, 7), strict=True))},
        )
        for head in range(size)
        for lora in range(size)
    ]


def with_another(**changes):
    """The runs of a square, one of which differs in more than its draws."""
    draws = {"provenance": {"seeds": dict(zip(SEEDS, (0, 0, 0, 7), strict=True))}}
    return [*square(lambda head, lora, order: 0.7 + head / 50)[1:], record("other", 1, 0.7, **overlay(draws, changes))]


def test_additive_effects_are_told_apart():
    heads, orders = (0.0, 0.02, 0.08, 0.1), (0.0, 0.0, 0.0, 0.02)
    table = draws_table(square(lambda head, lora, order: 0.7 + heads[head] + orders[order])).set_index("draw")
    assert list(table.index) == ["the head", "LoRA's A", "the order of the reviews", "none of these"]
    share = np.var(heads) / (np.var(heads) + np.var(orders))
    assert table.loc["the head", SHARE] == pytest.approx(100 * share)
    assert table.loc["the order of the reviews", SHARE] == pytest.approx(100 * (1 - share))
    assert table.loc["LoRA's A", SHARE] == pytest.approx(0, abs=1e-9)
    assert table.loc["the head", "lowest mean (%)"] == pytest.approx(70.5)
    assert table.loc["the head", "highest mean (%)"] == pytest.approx(80.5)
    assert table.loc["the head", "values"] == 4


def test_p_is_that_of_an_f_test():
    """With one draw alone beside noise, scipy's one-way analysis of variance has the same sum of squares between."""
    noise = np.random.default_rng(3).normal(0, 0.01, (4, 4))
    runs = square(lambda head, lora, order: 0.7 + 0.01 * head + noise[head, lora])
    table = draws_table(runs).set_index("draw")
    groups = [[100 * run.metrics["test"]["accuracy"] for run in runs[4 * head : 4 * head + 4]] for head in range(4)]
    total = 15 * np.var(np.concatenate(groups), ddof=1)
    one_way = stats.f_oneway(*groups).statistic
    between = one_way * 3 / (one_way * 3 + 12)  # the share that this statistic says is between heads
    assert table.loc["the head", SHARE] == pytest.approx(100 * between)
    rest = table.loc["none of these", SHARE] / 100 * total
    assert table.loc["the head", "p"] == pytest.approx(stats.f.sf(between * total / 3 / (rest / 6), 3, 6))
    assert table[SHARE].sum() == pytest.approx(100)


def test_no_effect_has_no_small_p():
    p_values = []
    for seed in range(200):
        noise = np.random.default_rng(seed).normal(0, 0.01, (4, 4))
        p_values += (
            draws_table(square(lambda head, lora, order, noise=noise: 0.7 + noise[head, lora]))["p"].dropna().tolist()
        )
    assert stats.kstest(p_values, "uniform").pvalue > 0.01


def test_equal_accuracies_have_no_shares():
    assert draws_table(square(lambda *draws: 0.7))[SHARE].isna().all()


@pytest.mark.parametrize(
    "runs",
    [
        [],
        [record(seed=seed, provenance={"seeds": {"head_init": seed, "lora_init": seed}}) for seed in (1, 2, 3, 4)],
        square(lambda head, lora, order: 0.7 + head / 50)[1:],  # a run is missing
        with_another(config={"lora": {"r": 2}}),
        with_another(provenance={"encoder": {"sha256": "64aa" * 16}}),
        with_another(data={"fingerprint": "of other reviews"}),
    ],
    ids=["none", "ordinary seeds", "unbalanced", "another recipe", "another encoder", "other reviews"],
)
def test_runs_that_cross_no_draws_have_no_table(runs):
    assert draws_table(runs).empty
