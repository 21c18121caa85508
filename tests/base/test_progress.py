"""progress.py: whoever reads a log or sits at a terminal sees what a run is doing, and how long it will."""

import re

import pytest

from lora_study.base import progress
from lora_study.base.progress import Meter, duration
from lora_study.training.experiment import run_experiment


@pytest.mark.parametrize(
    ("name", "first"), [("lora", "epoch 1/3  step 1/20  loss"), ("cached", "features of 64 of 400 reviews")]
)
def test_every_stage_of_a_run_that_takes_long_says_how_far_it_is(tiny, tmp_path, monkeypatch, capsys, name, first):
    monkeypatch.setattr(progress, "INTERVAL", 0)
    run_experiment(tiny(name), tmp_path)
    lines = [line.strip() for line in capsys.readouterr().err.splitlines() if line.startswith("  ")]
    assert lines[0].startswith(first)
    assert [int(found[1]) for line in lines if (found := re.match(r"epoch (\d)/3  val loss", line))] == [1, 2, 3]
    for part in (240, 100):  # train and test
        counts = [int(found[1]) for line in lines if (found := re.match(rf"scored (\d+) of {part} reviews", line))]
        assert counts == [*range(64, part, 64), part]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        *((0.2, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (100, "1 min 40 s"), (3599.7, "1 h 0 min")),
        *((6058, "1 h 40 min"), (100_000, "27 h 46 min")),
    ],
)
def test_a_time_is_said_as_people_say_it(seconds, words):
    assert duration(seconds) == words


def test_a_log_is_not_flooded_and_says_what_is_left(monkeypatch, capsys):
    clock = [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: clock[0])
    meter = Meter("scored ", 10_000)
    for _ in range(25):
        clock[0] += 1
        meter.advance(40)
    assert capsys.readouterr().err.splitlines() == [
        "  scored 400 of 10,000 reviews  40.0 reviews/s  about 4 min 0 s left",
        "  scored 800 of 10,000 reviews  40.0 reviews/s  about 3 min 50 s left",
    ]
