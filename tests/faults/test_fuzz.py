"""Damaged inputs of every kind are read, or refused in one line; fuzz.py tries ten thousand of them."""

import pytest
from fuzz import Kind, fuzz, kinds
from huggingface_hub import constants

SLOW = ("study's results", "study's report")  # they write or judge a whole study


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("kind", [kind for kind in kinds() if kind.name not in SLOW], ids=lambda kind: kind.name)
def test_damaged_inputs_are_read_or_refused_and_do_nothing_else(kind: Kind):
    tally = fuzz(kind, inputs=25)
    assert not tally.examples, "\n\n".join(tally.examples.values())
    assert tally.refused > 0
    assert tally.refused + tally.accepted == 25
