"""Faults on purpose: whatever happens to a study, it ends as if nothing had, or says in one line what to do.

A miniature study (three runs of a tiny DistilBERT) is run undisturbed once. Then each fault of `soak_faults.py` is
inflicted on copies of it again and again, at random moments, and the study is started anew until it completes. A fault
is survived if each record is then that of the undisturbed study, to the last bit apart from times and provenance, no
record that was complete before has changed, and nothing hung or printed a traceback. Figures are drawn in some
attempts only.

    .venv/bin/python tests/faults/soak.py [--only FAULT] [--times N] [--seed N] [--workers N]

Exit status: 0 if every fault was survived, 1 if not.
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from soak_faults import MAY_MOUNT, Fault, faults
from soak_study import FORK, NotSurvivedError, Template, load_everything, make_template, new_study

from lora_study.records.record import RecordError

CHUNK = 10  # faults that one process inflicts before it takes the next task


def start_again_where_it_may_mount() -> None:
    """Become the same script in a user and mount namespace of its own, where the system has these."""
    namespace = ["unshare", "--map-root-user", "--mount"]
    if MAY_MOUNT in os.environ or not shutil.which("unshare"):
        return
    tried = subprocess.run(
        [*namespace, "mount", "-t", "tmpfs", "tmpfs", tempfile.gettempdir()], capture_output=True, check=False
    )
    if tried.returncode == 0:
        os.environ[MAY_MOUNT] = "1"
        os.execvp(namespace[0], [*namespace, sys.executable, *sys.argv])


@dataclass
class Tally:
    """How often a fault was inflicted and survived, how many complete records were lost, and what went wrong."""

    tried: int = 0
    survived: int = 0
    lost: int = 0
    reasons: list[str] = field(default_factory=list)

    def __iadd__(self, other: "Tally") -> "Tally":
        self.tried += other.tried
        self.survived += other.survived
        self.lost += other.lost
        self.reasons += other.reasons
        return self


def inflict(template: Template, name: str, times: int, seed: str) -> Tally:
    """Inflict a fault at least this many times, at moments that follow from the seed."""
    fault, tally = faults()[name], Tally()
    chance = random.Random(seed)
    while tally.tried < times:
        with new_study(template, template.folder, fault.more, fault.halfway) as study:
            reasons = []
            try:
                fault.trial(study, chance)
            except (NotSurvivedError, RecordError) as error:
                reasons = [f"{name} (seed {seed}): {error}"]
            tried = study.faults or len(reasons)
            tally += Tally(tried, 0 if reasons else tried, study.lost(), reasons)
    return tally


def soak(chosen: dict[str, Fault], times: int | None, seed: int, workers: int) -> dict[str, Tally]:
    """Inflict faults, shared out among processes."""
    tallies = {name: Tally() for name in chosen}
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        template = make_template(Path(folder))
        with ProcessPoolExecutor(workers, FORK) as pool:
            tasks: list[tuple[str, Future[Tally]]] = []
            for name, fault in chosen.items():
                wanted = 0 if fault.missing else times or fault.times
                for start in range(0, wanted, CHUNK):
                    share = min(CHUNK, wanted - start)
                    tasks.append((name, pool.submit(inflict, template, name, share, f"{seed} {name} {start}")))
            for name, task in tasks:
                tallies[name] += task.result()
                print(f"{name}: {tallies[name].survived} of {tallies[name].tried}", file=sys.stderr, flush=True)
    return tallies


def one_or_more(text: str) -> int:
    """A number on the command line."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return int(text)


def main() -> int:
    """Inflict what is asked for and print a table."""
    start_again_where_it_may_mount()
    known = faults()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=known, metavar="FAULT", help=f"One of: {', '.join(known)}.")
    parser.add_argument("--times", type=one_or_more, help="How often each; by default 3 to 100.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=one_or_more, default=2, help="Studies that are disturbed at once.")
    options = parser.parse_args()
    started = time.monotonic()
    load_everything()
    chosen = {name: fault for name, fault in known.items() if name in (options.only or known)}
    tallies = soak(chosen, options.times, options.seed, options.workers)
    rows = [(name, tally.tried, tally.survived, tally.lost, chosen[name].missing) for name, tally in tallies.items()]
    import pandas as pd

    from lora_study.base.text_tables import markdown_table

    print(markdown_table(pd.DataFrame(rows, columns=["fault", "times", "survived", "records lost", ""])))
    print(f"\nseed {options.seed}, {time.monotonic() - started:.0f} s")
    for reason in [reason for tally in tallies.values() for reason in tally.reasons]:
        print(f"\n{reason}", file=sys.stderr)
    return 1 if any(tally.lost or tally.survived < tally.tried for tally in tallies.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
