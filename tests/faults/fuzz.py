"""Damaged inputs for everything that reads a file: each is read, or refused in one line, and nothing else happens.

Nothing else: no other exception, no endless wait, no gigabytes of memory, no file written or changed outside the
input's own folder, and no code run that an input holds. No model is built. The kinds of input are in
`fuzz_inputs.py`, the ways to damage them in `damage.py`.

    .venv/bin/python tests/faults/fuzz.py --inputs 10000
"""

import argparse
import contextlib
import resource
import shutil
import signal
import stat
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import hypothesis
import pandas as pd
from damage import Traps
from fuzz_inputs import Files, Kind, kinds
from huggingface_hub import constants

from lora_study.base.errors import ConfigError
from lora_study.base.text_tables import markdown_table
from lora_study.records.record import RecordError
from lora_study.training.checkpoints import CheckpointError

REFUSALS = (ConfigError, RecordError, CheckpointError)  # what readers raise for a user's mistake
SECONDS = 20  # an input may take; most take milliseconds
MEMORY = 2 * 2**30  # bytes an input may take


class HungError(BaseException):
    """Reading an input does not end. Not an Exception, since a reader might catch that."""


@dataclass
class Tally:
    """What became of the inputs of a kind.

    Attributes:
        refused: Those that were refused as documented.
        accepted: Those that were read.
        tracebacks: Those that ended in any other exception, or not in time.
        writes: Those that wrote outside their folder.
        canaries: Those whose code was run.
        examples: For each place in the code where something went wrong, what did, and an input.
    """

    refused: int = 0
    accepted: int = 0
    tracebacks: int = 0
    writes: int = 0
    canaries: int = 0
    examples: dict[str, str] = field(default_factory=dict)


def fuzz(kind: Kind, inputs: int, seed: int = 0) -> Tally:
    """Read this many damaged inputs of a kind, the same ones for the same seed."""
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        root = Path(folder).resolve()
        traps = Traps(root / "canary", root / "outside" / "file")
        traps.outside.parent.mkdir()
        traps.outside.write_text("as it was")

        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=inputs,
            database=None,
            deadline=None,
            phases=[hypothesis.Phase.generate],
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(kind.inputs(traps))
        def attempt(files: Files) -> None:
            _attempt(kind, files, root, traps, tally)

        with contextlib.chdir(root):
            attempt()
    return tally


def _attempt(kind: Kind, files: Files, root: Path, traps: Traps, tally: Tally) -> None:
    """Read one input and note what came of it."""
    folder = root / "input"
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Path):
            path.symlink_to(content)
        else:
            path.write_bytes(content)
    before, wrong = _tree(root), ""
    try:
        with _bounded():
            kind.read(folder)
        tally.accepted += 1
    except REFUSALS:
        tally.refused += 1
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        tally.tracebacks += 1
        wrong = "".join(traceback.format_exception(error, limit=-3))
    if traps.canary.exists():
        tally.canaries += 1
        shutil.rmtree(traps.canary)
        wrong += "its code was run"
    if (after := _tree(root)) != before:
        tally.writes += 1
        wrong += f"it changed {sorted({path for path, _ in after.items() ^ before.items()})}"
    if wrong:
        place = next((line for line in reversed(wrong.splitlines()) if line.startswith("  File")), wrong)
        tally.examples.setdefault(place, f"{kind.name}: {wrong.strip()}\n  input: {files!r:.600}")
    shutil.rmtree(folder)


def _tree(root: Path) -> dict[str, tuple[int, int, int]]:
    """What lies outside the input's folder: by path its mode, its size and, of a file, when it was changed."""
    found = {}
    for top in root.iterdir():
        for path in (top, *top.rglob("*")) if top.name != "input" else ():
            state = path.lstat()
            found[str(path)] = (state.st_mode, state.st_size, 0 if stat.S_ISDIR(state.st_mode) else state.st_mtime_ns)
    return found


@contextlib.contextmanager
def _bounded() -> Iterator[None]:
    """Limit the time, and on Linux the memory, that this block may take."""

    def stop(*_: object) -> None:
        raise HungError(f"not done after {SECONDS} s")

    limits = resource.getrlimit(resource.RLIMIT_AS)
    with contextlib.suppress(OSError):  # other systems have no /proc
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, limits[1]))
    handler, timer = signal.signal(signal.SIGALRM, stop), signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, limits)


def table(tallies: dict[str, Tally]) -> pd.DataFrame:
    """One row per kind, and one of sums."""
    rows = [
        {
            "input": name,
            "tried": tally.refused + tally.accepted + tally.tracebacks,
            "refused": tally.refused,
            "accepted": tally.accepted,
            "tracebacks": tally.tracebacks,
            "writes outside": tally.writes,
            "canaries fired": tally.canaries,
        }
        for name, tally in tallies.items()
    ]
    frame = pd.DataFrame(rows)
    frame.loc[len(frame)] = {"input": "all", **frame.drop(columns="input").sum()}
    return frame


def main() -> int:
    """Fuzz every kind and print the table; status 1 if anything happened that must not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000, help="how many, of all kinds together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", help="only kinds with this in their name")
    options = parser.parse_args()
    constants.HF_HUB_OFFLINE = True
    tallies, start = {}, time.perf_counter()
    for kind in kinds():
        if (options.kind or "") in kind.name:
            began = time.perf_counter()
            tallies[kind.name] = fuzz(kind, max(1, round(options.inputs * kind.share / 1000)), options.seed)
            print(f"{kind.name}: {time.perf_counter() - began:.1f} s", file=sys.stderr, flush=True)
    for tally in tallies.values():
        for example in tally.examples.values():
            print(example, end="\n\n")
    print(markdown_table(table(tallies)))
    print(f"\nseed {options.seed}, {time.perf_counter() - start:.0f} s")
    return int(any(tally.examples for tally in tallies.values()))


if __name__ == "__main__":
    sys.exit(main())
