"""What lies below a folder of results: its studies, experiments and runs in one table, and the newest of them.

The trials of a sweep are left out: its own page has them.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from lora_study.base.errors import ConfigError
from lora_study.evidence.summary import comparable, mean
from lora_study.evidence.trials import is_trial
from lora_study.records.record import ADAPTER, Record, read_records, run_dir

OVERVIEW = {
    "study": "string",
    "experiment": "string",
    "completed": "Int64",  # runs
    "failed": "Int64",
    "test accuracy (%)": "float64",  # mean over the completed runs that may stand together
    "newest (UTC)": "string",
    "with weights": "Int64",  # completed runs that predict, merge and export can read
}


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        study: Its study's folder below the results, such as "embedded" or "published/embedded".
        folder: Its own folder.
        record: What came out.
    """

    study: str
    folder: Path
    record: Record

    @property
    def keeps_weights(self) -> bool:
        """Whether its model can be read back."""
        return self.record.status == "completed" and (self.folder / ADAPTER).is_file()

    @property
    def started(self) -> str:
        """When, in UTC, such as "2026-01-31T09:05:00+00:00"; empty if its record does not say."""
        return str(self.record.provenance.get("started") or "")


def find_runs(results_dir: Path) -> tuple[list[Run], list[str]]:
    """All runs below a folder of results, by study, experiment and seed, and a line per record that cannot be read.

    Raises:
        ConfigError: the folder is that of one experiment.
    """
    places = [path.relative_to(results_dir) for path in _records_below(results_dir)]
    if any(len(place.parts) < 3 for place in places):
        raise ConfigError(f"{results_dir} is one experiment's folder; name the folder that it lies in, or one above")
    studies = {place.parents[2] for place in places}
    runs, problems = [], []
    for study in sorted(studies):
        folder = results_dir / study
        records, unreadable = read_records(folder)
        problems += unreadable
        name = study.as_posix() if study.parts else folder.resolve().name
        others = (record for record in records if not is_trial(record))
        runs += [Run(name, run_dir(folder, record.name, record.seed), record) for record in others]
    return runs, problems


def _records_below(results_dir: Path) -> Iterator[Path]:
    """The records of runs below a folder; what is linked into it is below it, too, but nothing is there twice."""
    with suppress(FileNotFoundError):
        results_dir.stat()  # of what it cannot read, os.walk says nothing
    seen = set()
    for folder, below, files in os.walk(results_dir, followlinks=True):
        path, real = Path(folder), os.path.realpath(folder)
        # What is being written, or was when its process was killed, lies in folders that begin with a dot.
        there = [] if real in seen else [name for name in below if not name.startswith(".")]
        below[:] = sorted(there, key=lambda name: ((path / name).is_symlink(), name))
        if real not in seen and path.name.startswith("seed-") and path != results_dir and "record.json" in files:
            yield path / "record.json"
        seen.add(real)


def overview(runs: Iterable[Run]) -> pd.DataFrame:
    """One row per study and experiment, with the columns of `OVERVIEW`."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.study, run.record.name), []).append(run)
    rows = []
    for (study, experiment), group in groups.items():
        done = [record for record in comparable(run.record for run in group)[0] if record.status == "completed"]
        accuracy = mean(done, "metrics.test.accuracy")
        completed = sum(run.record.status == "completed" for run in group)
        rows.append(
            (
                *(study, experiment, completed, len(group) - completed),
                None if accuracy is None else 100 * accuracy,
                max(run.started for run in group)[: len("2026-01-31T09:05")].replace("T", " ") or None,
                sum(run.keeps_weights for run in group),
            )
        )
    return pd.DataFrame(rows, columns=list(OVERVIEW)).astype(OVERVIEW)


def newest_run(experiment: str, results_dir: Path) -> Run:
    """The newest completed run of an experiment that keeps its weights, in whichever study.

    Raises:
        ConfigError: there is none; the message names the experiments that have one.
    """
    runs = [run for run in find_runs(results_dir)[0] if run.keeps_weights]
    found = [run for run in runs if run.record.name == experiment]
    if not found:
        there = ", ".join(sorted({run.record.name for run in runs}))
        remedy = f"name a run's folder or one of {there}" if there else "run `make reproduce` or `lora-study run` first"
        raise ConfigError(
            f"--run: {experiment!r} is no folder, and no completed run of an experiment of that name below"
            f" {results_dir} keeps its weights; {remedy}"
        )
    # A published copy is as old as its run, which is the one to take while it is there.
    return max(found, key=lambda run: (run.started, not run.study.startswith("published")))
