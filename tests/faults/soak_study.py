"""The miniature study that soak.py disturbs: making it, starting it, and what must come of it.

A start of the command line takes five seconds, nearly all of it importing torch, and a soak needs hundreds. So one
process imports everything (`load_everything`), computes nothing, and each attempt at the study is a fork of it that
calls the command line's `main`. The local launcher's processes are forks too, where a user's are spawned.
"""

import csv
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from lora_study import cli
from lora_study.config import flatten
from lora_study.records.record import read_record, run_dir

FORK = multiprocessing.get_context("fork")
EXPERIMENTS: dict[str, dict[str, Any]] = {
    "lora": {"mode": "lora", "lora": {"r": 4, "alpha": 1}},
    "last_two_layers": {"mode": "last_two_layers"},
    "full": {"mode": "full"},
}
PATIENCE = 90.0  # seconds after which an attempt is said to hang


class NotSurvivedError(Exception):
    """A fault was not survived; the message says what was found."""


@dataclass(frozen=True)
class Template:
    """What all studies have in common.

    Attributes:
        folder: Holds the reviews, the encoder, the experiments' files, and two studies' results and caches: one that
            was not disturbed (whole/) and one that was killed in its second run (halfway/).
        expected: What each run of the undisturbed study found, by name.
        seconds: How long that study took, figures apart.
        size: Bytes of its results and cache.
    """

    folder: Path
    expected: dict[str, Any]
    seconds: float
    size: int


def load_everything() -> None:
    """Import all that an attempt needs, for its forks, and let nothing use threads, which do not survive a fork."""
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "MPLBACKEND": "Agg",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    for name in (
        "lora_study.studies.study",
        "lora_study.studies.launchers.local",
        "lora_study.report",
        "matplotlib.pyplot",
    ):
        import_module(name)
    import_module("transformers.models.distilbert.modeling_distilbert")


class Attempt:
    """One start of the command line, in a process group of its own.

    Args:
        arguments: Of the command line, the command first.
        log: File for what it prints.
        figures: Whether the report has figures, which take longer than all runs together.
        prepare: What to do in the process before the command.
    """

    def __init__(self, arguments: list[str], log: Path, figures: bool, prepare: Callable[[], None]) -> None:
        self.log = log
        self.process = FORK.Process(target=_call, args=(arguments, log, figures, prepare))
        self.process.start()

    def ended_within(self, seconds: float) -> bool:
        """Wait; whether the process has ended."""
        self.process.join(seconds)
        return self.process.exitcode is not None

    def said(self) -> str:
        """What it has printed."""
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    def wait_for(self, condition: Callable[[], bool]) -> bool:
        """Wait until something is so; false if the process has ended before."""
        while not self.ended_within(0.02):
            if condition():
                return True
        return False

    def send(self, number: int, to_all: bool) -> None:
        """Send a signal to the whole process group, as a terminal does, or to the command's process alone."""
        pid = self.process.pid
        assert pid is not None
        try:
            os.killpg(pid, number) if to_all else os.kill(pid, number)
        except ProcessLookupError:  # it ended just now, or has not made its group yet
            self.process.kill()

    def workers(self, depth: int = 1) -> list[int]:
        """Its child processes; at a greater depth, the children of those."""
        processes = _processes()
        found = [self.process.pid]
        for _ in range(depth):
            found = [pid for pid, parent, _ in processes if parent in found]
        return [pid for pid in found if pid is not None]

    def left(self) -> list[int]:
        """The processes of its group that are still there a second after it ended; Python's own helper ends late."""
        ends = time.monotonic() + 1
        while left := [pid for pid, _, group in _processes() if group == self.process.pid]:
            if time.monotonic() > ends:
                break
        return left

    def expect(self, *statuses: int) -> int:
        """Wait for its end and check the exit status, and that it printed no traceback.

        Raises:
            NotSurvivedError: it hangs, ends otherwise, or prints one.
        """
        if not self.ended_within(PATIENCE):
            self.send(signal.SIGKILL, to_all=True)
            raise NotSurvivedError(f"it still ran after {PATIENCE:.0f} s; it said: {self.said()[-1000:]}")
        status = self.process.exitcode
        assert status is not None
        if status not in statuses or "Traceback" in self.said():
            raise NotSurvivedError(f"exit status {status}, not one of {statuses}; it said: {self.said()[-3000:]}")
        return status

    def line(self, words: str) -> str:
        """The one line it printed that holds these words.

        Raises:
            NotSurvivedError: there is none, or several.
        """
        found = [line for line in self.said().splitlines() if words in line]
        if len(found) != 1:
            raise NotSurvivedError(f"not one line but {len(found)} with {words!r}; it said: {self.said()[-3000:]}")
        return found[0]


class Study:
    """One study, from nothing to its completion, whatever is done to it on the way.

    Args:
        template: What it has in common with the others.
        folder: Where to put it.
        more: Further experiments, by name.

    Attributes:
        disk: Holds its results and its cache, and nothing else.
        faults: How many faults it was given.
        kept: The completed records that were there at a fault; these may not change any more.
    """

    def __init__(self, template: Template, folder: Path, more: Mapping[str, dict[str, Any]] | None = None) -> None:
        self.template = template
        self.seconds = template.seconds
        self.folder = folder
        self.disk = folder / "disk"
        self.results = self.disk / "results"
        self.disk.mkdir()
        self.faults = 0
        self.kept: dict[Path, bytes] = {}
        self._attempts = 0
        files = [str(template.folder / f"{name}.yaml") for name in EXPERIMENTS]
        for name, experiment in (more or {}).items():
            files.append(f"{name}.yaml")
            content = {"extends": str(template.folder / "base.yaml"), "name": name, **experiment}
            (folder / files[-1]).write_text(yaml.safe_dump(content))
        self.overrides: dict[str, Any] = {
            "model": {"backbone": str(template.folder / "distilbert"), "attention_dropout": 0.0},
            "data": {"source": str(template.folder / "reviews.csv"), "cache_dir": str(self.disk / "cache")},
        }
        study = {"name": "soak", "title": "A miniature", "experiments": files, "overrides": self.overrides}
        (folder / "study.yaml").write_text(yaml.safe_dump(study))

    def start(self, workers: int = 1, figures: bool = False, prepare: Callable[[], None] = lambda: None) -> Attempt:
        """Start an attempt at the study; see `Attempt`."""
        self._attempts += 1
        study, results = self.folder / "study.yaml", self.results
        arguments = ["--study", str(study), "--results-dir", str(results), "--workers", str(workers)]
        return Attempt(["reproduce", *arguments], self.folder / f"{self._attempts}.log", figures, prepare)

    def run(self, name: str, *more: str) -> Attempt:
        """Start one experiment of the study with the command ``run``; see `Attempt`."""
        self._attempts += 1
        content = {"extends": str(self.template.folder / f"{name}.yaml"), **self.overrides}
        path = self.folder / f"{name}-alone.yaml"
        path.write_text(yaml.safe_dump(content))
        arguments = ["run", "--config", str(path), "--results-dir", str(self.results), *more]
        return Attempt(arguments, self.folder / f"{self._attempts}.log", False, lambda: None)

    def complete(self) -> None:
        """Start the study once more, and check what has come of it.

        Raises:
            NotSurvivedError: it is not completed, or not what the undisturbed study is.
        """
        self.start().expect(0)
        self.check()

    def hit(self) -> None:
        """Count a fault that comes now, and keep in mind which runs are completed."""
        self.faults += 1
        self.keep_completed()

    def keep_completed(self) -> None:
        """Keep in mind the records of completed runs."""
        for path in self.results.glob("*/seed-*/record.json"):
            if read_record(path).status == "completed":
                self.kept.setdefault(path, path.read_bytes())

    def lost(self) -> int:
        """How many records that were complete at a fault are not what they were."""
        return sum(not path.is_file() or path.read_bytes() != content for path, content in self.kept.items())

    def check(self) -> None:
        """Compare every run with that of the undisturbed study, times and provenance apart.

        Raises:
            NotSurvivedError: one is not the same, or a time is negative.
        """
        for name, expected in self.template.expected.items():
            folder = run_dir(self.results, name, 1)
            found = outcome(folder)
            if different := [part for part in expected if found[part] != expected[part]]:
                raise NotSurvivedError(f"{name} has another {different[0]} than the undisturbed run")
            timing = read_record(folder / "record.json").timing
            if negative := [part for part, seconds in timing.items() if seconds is not None and seconds < 0]:
                raise NotSurvivedError(f"{name} has a negative {negative[0]}")


def outcome(folder: Path) -> dict[str, Any]:
    """All that a run found out, to the last bit, apart from what depends on the clock and the place.

    Raises:
        RecordError: it has no readable record.
    """
    record = read_record(folder / "record.json")
    config = flatten(record.config)
    del config["data.cache_dir"], config["data.source"]
    with (folder / "curves.csv").open(newline="") as file:
        curves = [{**row, "seconds": None} for row in csv.DictReader(file)]
    files = {name: (folder / name).read_bytes() for name in ("predictions.parquet", "adapter.safetensors")}
    return {
        "status": record.status,
        "config": config,
        "metrics": record.metrics,
        "parameters": record.parameters,
        "data": record.data,
        "deviations": [deviation for deviation in record.deviations if deviation["field"] != "data.source"],
        "curves": curves,
        **files,
    }


def make_template(folder: Path) -> Template:
    """Make the reviews, the encoder, and the studies that others are compared with and begin from."""
    making = FORK.Process(
        target=_make_miniature, args=(folder,)
    )  # a process of its own, since it computes, which starts threads
    making.start()
    making.join()
    base = {
        "data": {"sizes": {"train": 96, "val": 40, "test": 60}, "max_length": 32},
        "train": {
            **{"learning_rate": 0.01, "epochs": 3, "precision": "32-true", "accelerator": "cpu", "threads": 1},
            "keep_weights": True,
        },
    }
    (folder / "base.yaml").write_text(yaml.safe_dump(base))
    for name, experiment in EXPERIMENTS.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"extends": "base.yaml", "name": name, **experiment}))

    with new_study(Template(folder, {}, 0.0, 0), folder) as study:
        started = time.monotonic()
        study.start().expect(0)
        seconds = time.monotonic() - started
        study.disk.rename(folder / "whole")
    expected = {name: outcome(folder / "whole/results" / name / "seed-1") for name in EXPERIMENTS}
    size = sum(path.stat().st_size for path in (folder / "whole").rglob("*") if path.is_file())
    template = Template(folder, expected, seconds, size)
    with new_study(template, folder) as study:
        attempt = study.start()
        while not any(study.results.glob("last_two_layers/.seed-1.checkpoint/epoch.safetensors")):
            assert not attempt.ended_within(0.001), "the second run has passed unseen"
        attempt.send(signal.SIGKILL, to_all=True)
        attempt.expect(-signal.SIGKILL)
        study.disk.rename(folder / "halfway")
    return template


@contextmanager
def new_study(
    template: Template, folder: Path, more: Mapping[str, dict[str, Any]] | None = None, halfway: bool = False
) -> Iterator[Study]:
    """A study in a folder of its own, which is removed afterwards; from nothing, or as it was when it was killed."""
    place = Path(tempfile.mkdtemp(dir=folder, prefix="study-"))
    try:
        study = Study(template, place, more)
        if halfway:
            shutil.copytree(template.folder / "halfway", study.disk, dirs_exist_ok=True)
        yield study
    finally:
        while (place / "disk").is_mount():  # one upon another, perhaps
            subprocess.run(["umount", "-l", str(place / "disk")], check=True)
        shutil.rmtree(place, ignore_errors=True)


def _make_miniature(folder: Path) -> None:
    import miniature
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    reviews = miniature.write_reviews(miniature.imdb_reviews(), folder / "reviews.csv")
    miniature.write_backbone(reviews, folder / "distilbert")


def _call(arguments: list[str], log: Path, figures: bool, prepare: Callable[[], None]) -> None:
    """In an attempt's process: do what a shell and the command line's start would do, then the command."""
    from lora_study import report
    from lora_study.studies import study
    from lora_study.studies.launchers import local

    os.setsid()
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs ignore
    vars(local)["multiprocessing"] = SimpleNamespace(get_context=lambda method: FORK)
    study.POLL = 0.1
    if not figures:
        vars(report)["draw_figures"] = lambda *_: {}
    prepare()
    sys.exit(cli.main(arguments))


def _processes() -> list[tuple[int, int, int]]:
    """Number, parent and group of every process that has not ended."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,pgid=,stat="], capture_output=True, text=True, check=True)
    rows = [line.split() for line in listed.stdout.splitlines()]
    return [(int(pid), int(parent), int(group)) for pid, parent, group, state in rows if not state.startswith("Z")]
