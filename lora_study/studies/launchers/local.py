"""Runs in processes of this machine, each run in a process of its own.

So its peak memory is its own, and a process that is killed takes no other run with it; its own run goes on in a new
process.
"""

import io
import multiprocessing
import os
import sys
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TextIO

import torch

from lora_study.base.errors import ConfigError
from lora_study.base.interrupts import end, in_child, shielded
from lora_study.config import ExperimentConfig
from lora_study.records.record import Record, read_record, run_dir
from lora_study.studies.launchers.dispatch import dispatch
from lora_study.studies.launchers.worker import check_inputs, check_one_device, label, lost, work

BUSY = 75  # exit status if another process holds the run (sysexits' EX_TEMPFAIL)


class LocalLauncher:
    """Runs up to a given number of experiments at once.

    With several workers, each has an equal share of the processor's cores, unless train.threads sets their number, and
    one GPU if there are any, shared if there are fewer than workers. The last digits of the results depend on the
    number of threads.

    Args:
        workers: How many.
    """

    def __init__(self, workers: int = 1) -> None:
        self.workers = workers

    def run(
        self, runs: Sequence[ExperimentConfig], results_dir: Path, command: str
    ) -> Generator[tuple[ExperimentConfig, Record | None], None, None]:
        """See `lora_study.studies.launchers.Launcher`."""
        several = self.workers > 1
        if several:
            check_one_device(runs)
        check_inputs(runs)
        shares = _shares(self.workers) if several else [{}]
        processes: list[BaseProcess] = []

        def start(run: ExperimentConfig, worker: int) -> BaseProcess:
            arguments = (run, results_dir, command, f"{label(run)}: " if several else "")
            # spawn: a forked copy of a process that has used threads may hang.
            process = multiprocessing.get_context("spawn").Process(target=_child, args=arguments, name=label(run))
            with _environment(shares[worker]), shielded():
                process.start()
            processes.append(process)
            return process

        try:
            for run, process in dispatch(runs, self.workers, start, _wait, _lost):
                yield run, _record(process, run, results_dir, command)
        finally:
            end(processes)  # and wait for them: their locks must not outlive this process


def _shares(workers: int) -> list[dict[str, str]]:
    """Each worker's share of the machine, as environment variables; its threads are never more than the user's."""
    wanted, threads = os.environ.get("OMP_NUM_THREADS", ""), max(1, _cores() // workers)
    share = {"OMP_NUM_THREADS": str(min(threads, int(wanted)) if wanted.isdigit() and int(wanted) else threads)}
    count = torch.cuda.device_count()
    listed = [gpu.strip() for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu.strip()]
    gpus = (listed or [str(index) for index in range(count)])[:count]  # what follows an unknown one is not seen
    return [share | ({"CUDA_VISIBLE_DEVICES": gpus[worker % len(gpus)]} if gpus else {}) for worker in range(workers)]


def _cores() -> int:
    """The processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the processes started in this block, before they import torch."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _wait(processes: Collection[BaseProcess]) -> list[BaseProcess]:
    """Wait until one of the processes has ended."""
    by_sentinel = {process.sentinel: process for process in processes}
    ended = [by_sentinel[sentinel] for sentinel in wait(list(by_sentinel)) if isinstance(sentinel, int)]
    for process in ended:
        process.join()
    return ended


def _lost(process: BaseProcess) -> bool:
    """Whether a run's process was killed or crashed; prints so, because it will be started again."""
    if lost := (process.exitcode or 0) < 0:
        print(f"{process.name}: {_ending(process)}; going on in a new process", file=sys.stderr, flush=True)
    return lost


def _ending(process: BaseProcess) -> str:
    """How a process ended, in words."""
    code = process.exitcode or 0
    ending = f"killed by signal {-code}" if code < 0 else f"exit status {code}"
    return ending + ("; if memory ran out, lower data.batch_size or data.max_length" if code == -9 else "")


def _record(process: BaseProcess, run: ExperimentConfig, results_dir: Path, command: str) -> Record | None:
    """The record of a run whose process has ended."""
    if process.exitcode == 0:
        return read_record(run_dir(results_dir, run.name, run.seed) / "record.json")
    if process.exitcode == BUSY:
        return None
    return lost(run, results_dir, command, f"the run's process ended without a record: {_ending(process)}")


def _child(config: ExperimentConfig, results_dir: Path, command: str, prefix: str) -> None:
    """What the run's process does."""
    in_child()
    if prefix:
        sys.stderr = _Prefixed(sys.stderr, prefix)
    try:
        if work(config, results_dir, command) is None:
            sys.exit(BUSY)
    except (OSError, ConfigError) as error:  # on a full disk, say, no record can be written either
        sys.exit(f"lora-study: error: {error}")


class _Prefixed(io.TextIOBase):
    """A log that writes each line at once, after the run's name; it is not a terminal, so no bar is drawn."""

    def __init__(self, stream: TextIO, prefix: str) -> None:
        self._stream, self._prefix, self._line = stream, prefix, ""

    def write(self, text: str) -> int:
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            self._stream.write(f"{self._prefix}{line.lstrip()}\n")
        self._stream.flush()
        return len(text)
