"""What `soak.py` does to a study: every fault, and what must come of it."""

import contextlib
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from soak_study import EXPERIMENTS, PATIENCE, Attempt, NotSurvivedError, Study

import lora_study.studies.launchers
from lora_study.records.record import read_record, run_dir

TRAINING = "parameters trainable"  # what a run says when it begins
PROMPT = 8.0  # seconds in which a study that is asked to stop must have ended
MAY_MOUNT = "LORA_STUDY_SOAK_MAY_MOUNT"  # set in the environment where mounting is permitted
HEADROOM = 300 * 2**20  # bytes; enough for the miniature's runs, not for the greedy one
GREEDY: dict[str, dict[str, Any]] = {
    "greedy": {"mode": "full", "data": {"batch_size": 96, "max_length": 512, "padding": "max_length"}}
}
DIVERGING: dict[str, dict[str, Any]] = {
    "diverging": {"mode": "lora", "lora": {"alpha": 1e19, "targets": ["head"]}, "train": {"learning_rate": 0.9}}
}
YEARS = 10 * 365 * 86400.0  # seconds that clocks jump
Trial = Callable[[Study, random.Random], None]


def killed(study: Study, chance: random.Random) -> None:
    """SIGKILL, again and again until an attempt completes before it: the whole group, or the command alone."""
    while True:
        attempt = study.start(workers=chance.choice((1, 2)), figures=chance.random() < 0.2)
        if attempt.ended_within(chance.uniform(0, study.seconds)):
            break
        study.hit()
        attempt.send(signal.SIGKILL, to_all=chance.random() < 0.5)
        attempt.ended_within(1)
    attempt.expect(0)
    study.check()


def stopped(number: int, study: Study, chance: random.Random) -> None:
    """SIGINT to the whole group, as from a terminal, at times twice; or SIGTERM to the command, as from a scheduler."""
    attempt = study.start(workers=chance.choice((1, 2)), figures=chance.random() < 0.2)
    attempt.wait_for(lambda: TRAINING in attempt.said())
    if not attempt.ended_within(chance.uniform(0, study.seconds)):
        study.hit()
        attempt.send(number, to_all=number == signal.SIGINT)
        if chance.random() < 0.5 and not attempt.ended_within(chance.uniform(0, 0.2)):
            attempt.send(number, to_all=number == signal.SIGINT)
        if not attempt.ended_within(PROMPT):
            raise NotSurvivedError(f"it has not ended {PROMPT:.0f} s after it was asked to")
        attempt.expect(0, 130)
        if left := attempt.left():
            raise NotSurvivedError(f"{len(left)} of its processes are still there")
    study.complete()


def run_stopped(study: Study, chance: random.Random) -> None:
    """SIGINT to the whole group of one ``run``, again and again; with --resume it goes on until it completes."""
    name = chance.choice(sorted(EXPERIMENTS))
    attempt = study.run(name)
    while not attempt.ended_within(chance.uniform(0, study.seconds / 3)):
        if TRAINING not in attempt.said():  # it is still starting
            continue
        study.hit()
        attempt.send(signal.SIGINT, to_all=True)
        if attempt.expect(0, 130) and "--resume" not in (line := attempt.line("lora-study: ")):
            raise NotSurvivedError(f"the line does not say how to go on: {line}")
        attempt = study.run(name, "--resume")
    attempt.expect(0)
    study.complete()


def disk_full(study: Study, chance: random.Random) -> None:
    """Results and cache on a disk with room for only a part of them; later there is room."""
    size = chance.uniform(0.01, 1) * study.template.size
    mount("-t", "tmpfs", "-o", f"size={size:.0f}", "tmpfs", str(study.disk))
    study.hit()
    ends_in_words(study.start(workers=chance.choice((1, 2)), figures=chance.random() < 0.5))
    study.keep_completed()
    mount("-o", "remount,size=1g", str(study.disk))
    study.complete()


def read_only(study: Study, chance: random.Random) -> None:
    """Results and cache that cannot be written, from the start or from a random moment on; later they can be."""
    attempt = None
    if chance.random() < 0.7:
        attempt = study.start(workers=chance.choice((1, 2)))
        attempt.ended_within(chance.uniform(0, study.seconds))
    study.hit()
    mount("--bind", str(study.disk), str(study.disk))
    make_read_only(study.disk)
    ends_in_words(attempt or study.start())
    subprocess.run(["umount", "-l", str(study.disk)], check=True)
    study.complete()


def worker_killed(prepare: Callable[[], None], depth: int, study: Study, chance: random.Random) -> None:
    """SIGKILL to the process of a run: it goes on in another, or its record says what happened."""
    attempt = study.start(workers=chance.choice((1, 2)), prepare=prepare)
    attempt.wait_for(lambda: any(study.results.glob("*/.seed-1.checkpoint")))
    attempt.ended_within(chance.uniform(0, study.seconds / 2))
    if workers := attempt.workers(depth):
        study.hit()
        with contextlib.suppress(ProcessLookupError):  # it may have ended just now
            os.kill(chance.choice(workers), signal.SIGKILL)
    attempt.expect(0, 1)
    study.complete()


def killed_at_exit(study: Study, chance: random.Random) -> None:
    """SIGKILL to the process of each run when it has written its record: the run is completed."""
    study.hit()
    study.start(workers=chance.choice((1, 2)), prepare=die_at_exit).expect(0)
    study.check()


def damaged(what: str, study: Study, chance: random.Random) -> None:
    """A file of a study that was killed is cut, changed in one byte, emptied, or replaced by a folder.

    If the command does not go on, it names the file, which is then removed; a record is removed with its run.
    """
    path = chance.choice(sorted(study.disk.glob(what)))
    study.hit()
    study.kept.pop(path, None)
    chance.choice((cut, change, empty, make_folder))(path, chance)
    attempt = study.start()
    if attempt.expect(0, 2) == 2:
        line = attempt.line("lora-study: error: ")
        if str(path) not in line:
            raise NotSurvivedError(f"the line does not name {path}: {line}")
        remove(path.parent if path.name == "record.json" else path)
        study.complete()
    study.check()


def diverging(study: Study, chance: random.Random) -> None:
    """A run whose loss is soon not finite: a failed record names the step."""
    study.hit()
    fails(study, study.start(workers=chance.choice((1, 2))), "diverging", "not finite at step")


def out_of_memory(study: Study, chance: random.Random) -> None:
    """A run that needs more memory than its process may have: a failed record says what to lower."""
    study.hit()
    fails(study, study.start(prepare=allow_little_memory), "greedy", "lower data.batch_size or data.max_length")


def clock_jumps(study: Study, chance: random.Random) -> None:
    """Times of files, and the wall clock while the study runs, jump years into the future or the past."""
    study.hit()
    for path in study.disk.rglob("*"):
        moment = time.time() + chance.choice((-YEARS, YEARS))
        os.utime(path, (moment, moment))
    study.start(prepare=partial(let_clock_jump, chance.random())).expect(0)
    study.check()


def two_at_once(study: Study, chance: random.Random) -> None:
    """Two commands started at the same instant on the same folder: each run is trained by one of them."""
    study.hit()
    attempts = [study.start(workers=chance.choice((1, 2))) for _ in range(2)]
    for attempt in attempts:
        attempt.expect(0)
    for name in EXPERIMENTS:
        if (times := sum(attempt.said().count(f"{name} (mode ") for attempt in attempts)) != 1:
            raise NotSurvivedError(f"{name} was trained {times} times")
    study.check()


def ends_in_words(attempt: Attempt) -> None:
    """Check that an attempt completed or ended with a line that says why not."""
    if attempt.expect(0, 1, 2):
        said = attempt.said()
        if "lora-study: error: " not in said and ": failed: " not in said:
            raise NotSurvivedError(f"it does not say why it ended; it said: {said[-3000:]}")


def fails(study: Study, attempt: Attempt, name: str, words: str) -> None:
    """Check that one run of an attempt failed with a line that holds these words, and that the others did not."""
    attempt.expect(1)
    record = read_record(run_dir(study.results, name, 1) / "record.json")
    if record.status != "failed" or words not in (record.error or "") or "\n" in (record.error or ""):
        raise NotSurvivedError(f"{name} {record.status}: {record.error}")
    study.check()


def mount(*arguments: str) -> None:
    """Mount something, or mount it anew; only this process and its children see it."""
    subprocess.run(["mount", *arguments], check=True, capture_output=True)


def make_read_only(disk: Path) -> None:
    """Make a mounted folder read-only, as soon as no file in it is being written: until then the system refuses."""
    ends = time.monotonic() + PATIENCE
    while True:
        try:
            return mount("-o", "remount,bind,ro", str(disk))
        except subprocess.CalledProcessError:
            if time.monotonic() > ends:
                raise
            time.sleep(0.001)


def use_slurm_here() -> None:
    """Have the command hand runs to the Slurm launcher, whose jobs are processes of this machine."""
    from lora_study.studies.launchers.slurm import SlurmLauncher

    lora_study.studies.launchers.make_launcher = lambda name, workers: SlurmLauncher(workers, cluster="local")


def die_at_exit() -> None:
    """Have each run's process kill itself when it is done."""
    from lora_study.studies.launchers import local

    work = local._child

    def die(*arguments: Any) -> None:
        work(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)

    vars(local)["_child"] = die


def allow_little_memory() -> None:
    """Limit this process and its children to the addresses it has and a little more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + HEADROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def let_clock_jump(seed: float) -> None:
    """Let the wall clock jump, at every reading, years back, years ahead or not at all."""
    now, chance = time.time, random.Random(seed)
    time.time = lambda: now() + chance.choice((-YEARS, 0.0, YEARS))


def cut(path: Path, chance: random.Random) -> None:
    """Leave only the beginning of a file."""
    path.write_bytes(path.read_bytes()[: chance.randrange(max(1, path.stat().st_size))])


def change(path: Path, chance: random.Random) -> None:
    """Flip a bit of a file."""
    content = bytearray(path.read_bytes() or b"\0")
    content[chance.randrange(len(content))] ^= 0x80
    path.write_bytes(content)


def empty(path: Path, chance: random.Random) -> None:
    """Leave nothing of a file."""
    path.write_bytes(b"")


def make_folder(path: Path, chance: random.Random) -> None:
    """Put a folder in the place of a file."""
    path.unlink()
    path.mkdir()


def remove(path: Path) -> None:
    """Remove a file, or a folder and all in it."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Fault:
    """One kind of fault.

    Attributes:
        times: How often it is inflicted by default.
        trial: Inflicts it on a study, once or more often, and checks what comes of it.
        more: Further experiments of the study, by name.
        halfway: Whether the study is one that was killed in its second run, rather than a new one.
        missing: What this machine lacks for it, if anything.
    """

    times: int
    trial: Trial
    more: dict[str, dict[str, Any]] = field(default_factory=dict)
    halfway: bool = False
    missing: str = ""


def faults() -> dict[str, Fault]:
    """Every fault by name."""
    mounts = "" if MAY_MOUNT in os.environ else "needs Linux with user namespaces"
    submitit = "" if find_spec("submitit") else "needs submitit"
    memory = "" if Path("/proc/self/statm").exists() else "needs Linux"
    files = {
        "record": "results/*/seed-1/record.json",
        "cache entry": "cache/*/*.safetensors",
        "checkpoint": "results/*/.seed-1.checkpoint/epoch.safetensors",
        "lock file": "results/.locks/*.lock",
        "lock file of the cache": "cache/*/*.lock",
    }
    return {
        "SIGKILL": Fault(100, killed),
        "two commands at once": Fault(50, two_at_once),
        "Slurm job killed": Fault(3, partial(worker_killed, use_slurm_here, 2), missing=submitit),
        "worker killed": Fault(10, partial(worker_killed, lambda: None, 1)),
        "worker killed at its exit": Fault(5, killed_at_exit),
        "SIGINT": Fault(8, partial(stopped, signal.SIGINT)),
        "SIGTERM": Fault(8, partial(stopped, signal.SIGTERM)),
        "SIGINT during run": Fault(8, run_stopped),
        "disk full": Fault(12, disk_full, missing=mounts),
        "read-only folder": Fault(10, read_only, missing=mounts),
        **{f"damaged {name}": Fault(6, partial(damaged, pattern), halfway=True) for name, pattern in files.items()},
        "loss not finite": Fault(5, diverging, DIVERGING),
        "out of memory": Fault(5, out_of_memory, GREEDY, missing=memory),
        "clock jumps": Fault(10, clock_jumps, halfway=True),
    }
