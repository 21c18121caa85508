"""interrupts.py: Ctrl-C and SIGTERM are one line, exit status 130 and no process left, whatever is going on."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from lora_study.config import ExperimentConfig, to_dict
from lora_study.model.classifier import ReviewClassifier
from lora_study.records.record import read_record
from lora_study.training.experiment import run_experiment

BOTH = [signal.SIGINT, signal.SIGTERM]


def start(*command: str, **changes: str) -> subprocess.Popen:
    """Start Python in a process group of its own, as a shell does."""
    environment = {name: value for name, value in os.environ.items() if name != "RANK"} | changes
    return subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=environment,
    )


def stop(process: subprocess.Popen, number: int, to_all: bool = True) -> list[str]:
    """Send a signal, to all the group as a terminal does, or to the first process; the lines that are said then."""
    os.killpg(process.pid, number) if to_all else process.send_signal(number)
    try:
        _, said = process.communicate(timeout=30)  # ends only when all processes have let go of stderr
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return said.splitlines()


SCRIPT = """
import hashlib, os, subprocess, sys, time
from pathlib import Path
from lora_study.base import interrupts
from lora_study.base.files import atomic, atomic_folder

def say():
    print("ready", flush=True)

with interrupts.handled("interrupted; in one line"):
"""


@pytest.mark.parametrize("number", BOTH)
@pytest.mark.parametrize(
    "busy",
    [
        "say(); time.sleep(60)",
        "say(); hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)",  # C code that never looks at signals
        "say(); __import__('threading').Lock().acquire() and __import__('threading').Event().wait()",
        "say(); [list(map(lambda n: n, range(1000))) for _ in iter(int, 1)]",
        # The command itself is ready: a signal between fork and exec is lost on a child, which would then sleep on.
        "subprocess.run(['sh', '-c', 'echo ready; exec sleep 60'])",
    ],
    ids=["asleep", "in C", "waiting", "computing", "for a command"],
)
def test_a_request_to_stop_is_one_line_whatever_the_main_thread_does(number, busy):
    process = start("-c", f"{SCRIPT}    {busy}")
    assert process.stdout.readline() == "ready\n"
    assert stop(process, number) == ["interrupted; in one line"]
    assert process.returncode == 130


@pytest.mark.parametrize("swallowed", ["__del__", "except BaseException", "logging"])
def test_no_exception_is_raised_where_it_could_be_lost_or_printed(swallowed):
    body = {
        "__del__": """
    class Slow:
        def __del__(self): say(); time.sleep(60)
    Slow()
    time.sleep(60)""",
        "except BaseException": """
    say()
    while True:
        try: time.sleep(60)
        except BaseException: pass""",
        "logging": """
    import logging
    class Slow(logging.StreamHandler):
        def emit(self, record): say(); time.sleep(60)
    logging.getLogger().addHandler(Slow())
    logging.error("slow")""",
    }[swallowed]
    process = start("-c", SCRIPT + body)
    assert process.stdout.readline() == "ready\n"
    assert stop(process, signal.SIGTERM) == ["interrupted; in one line"]
    assert process.returncode == 130


def test_a_second_request_ends_at_once_what_takes_long_to_end():
    body = """
    with interrupts.owed(lambda: (say(), time.sleep(60))):
        say()
        time.sleep(60)"""
    process = start("-c", SCRIPT + body)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "ready\n"
    assert process.poll() is None
    began = time.monotonic()
    assert stop(process, signal.SIGINT) == ["interrupted; in one line"]
    assert time.monotonic() - began < 5
    assert process.returncode == 130


def test_what_was_being_written_is_removed(tmp_path):
    body = f"""
    with atomic(Path({str(tmp_path)!r}) / "file") as file, atomic_folder(Path({str(tmp_path)!r}) / "folder") as folder:
        file.write_text("half")
        (folder / "half").write_text("half")
        say()
        time.sleep(60)"""
    process = start("-c", SCRIPT + body)
    assert process.stdout.readline() == "ready\n"
    assert len(list(tmp_path.iterdir())) == 2
    stop(process, signal.SIGINT)
    assert list(tmp_path.iterdir()) == []


CHILDREN = """
import multiprocessing, sys, time
from lora_study.base import interrupts

def child(ready):
    interrupts.in_child()
    ready.send(1)
    time.sleep(60)

if __name__ == "__main__":
    with interrupts.handled("interrupted"):
        for _ in range(2):
            ready, say = multiprocessing.Pipe()
            with interrupts.shielded():
                multiprocessing.get_context("spawn").Process(target=child, args=(say,)).start()
            ready.recv()
        print("ready", flush=True)
        time.sleep(60)
"""


@pytest.mark.parametrize(
    ("number", "to_all", "said"),
    [*((number, to_all, ["interrupted"]) for number in BOTH for to_all in (True, False)), (signal.SIGKILL, False, [])],
)
def test_children_end_with_their_parent_and_say_nothing(tmp_path, number, to_all, said):
    (tmp_path / "parent.py").write_text(CHILDREN)
    process = start(str(tmp_path / "parent.py"))
    assert process.stdout.readline() == "ready\n"
    began = time.monotonic()
    assert stop(process, number, to_all) == said
    assert time.monotonic() - began < 5


def file_of(config: ExperimentConfig, folder: Path) -> Path:
    """The config file of an experiment."""
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(to_dict(config)))
    return path


def interrupted_run(file: Path, results: Path, number: int, to_all: bool) -> list[str]:
    """Interrupt a run while it trains; what it says then, apart from its progress."""
    process = start("-m", "lora_study", "run", "--config", str(file), "--results-dir", str(results))
    for line in process.stderr:
        if "epoch 2/" in line:  # the checkpoint of the first is written
            break
    said = stop(process, number, to_all)
    assert process.returncode == 130
    return [line for line in said if not line.startswith("  epoch ")]


GOES_ON = "lora-study: interrupted; the same command with --resume goes on after the last finished epoch"


@pytest.mark.parametrize("number", BOTH)
def test_an_interrupted_run_says_how_to_go_on_and_then_ends_as_if_it_had_not_been(tiny, tmp_path, number):
    few = {"sizes": {"train": 24, "val": 8, "test": 16}}  # so that many epochs take little
    config = tiny("lora", name="run", data=few, train={"epochs": 30})
    assert interrupted_run(file_of(config, tmp_path), tmp_path / "out", number, to_all=True) == [GOES_ON]
    record = run_experiment(config, tmp_path / "out", resume=True)
    assert record.provenance["resumed_after_epochs"][0] >= 1
    assert record.metrics == run_experiment(config, tmp_path / "whole").metrics
    assert [path.name for path in (tmp_path / "out/run").iterdir()] == ["seed-1"]


@pytest.mark.slow
@pytest.mark.parametrize("number", BOTH)
@pytest.mark.parametrize("to_all", [True, False])
def test_an_interrupted_run_on_two_devices_says_the_same_line(tiny, tmp_path, number, to_all):
    file = file_of(tiny("lora", name="run", train={"epochs": 100_000, "devices": 2}), tmp_path)
    assert interrupted_run(file, tmp_path / "out", number, to_all) == [GOES_ON]
    assert not (tmp_path / "out/run/seed-1").exists()


@pytest.mark.slow
def test_a_process_that_waits_for_another_that_never_comes_can_be_interrupted(tiny, tmp_path):
    file = file_of(tiny("lora", name="run", train={"devices": 2}), tmp_path)
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517"}
    process = start("-m", "lora_study", "run", "--config", str(file), "--results-dir", str(tmp_path / "out"), **place)
    for line in process.stderr:
        if "parameters trainable" in line:
            break
    time.sleep(3)
    assert stop(process, signal.SIGINT) == [GOES_ON]


def test_ctrl_c_in_python_is_a_keyboard_interrupt_and_the_next_one_too(tiny, tmp_path, monkeypatch):
    """Lightning would end the process with status 1, and ignore Ctrl-C from then on."""
    config, handler = tiny("lora"), signal.getsignal(signal.SIGINT)
    original, steps = ReviewClassifier.training_step, []

    def step(self, batch, index):
        steps.append(index)
        if len(steps) == 30:
            raise KeyboardInterrupt
        return original(self, batch, index)

    monkeypatch.setattr(ReviewClassifier, "training_step", step)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(config, tmp_path)
    assert signal.getsignal(signal.SIGINT) is handler
    assert run_experiment(config, tmp_path, resume=True).provenance["resumed_after_epochs"] == [1]
    assert read_record(tmp_path / "lora/seed-1/record.json").status == "completed"
