"""What a report is made from: a study's runs, read and checked, and the verdicts on the claims they serve.

What cannot be used is named in a warning and left out; it never stops the report.
"""

import dataclasses
import itertools
import math
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from scipy.stats import entropy

from lora_study.base.errors import ConfigError
from lora_study.base.files import user_path
from lora_study.config_files import read_yaml
from lora_study.config_studies import STUDY_FILE, WORDS
from lora_study.evidence.claims import ClaimResult, evaluate, load_claims
from lora_study.evidence.predictions import read_predictions
from lora_study.evidence.reported import Reported, load_reported
from lora_study.evidence.summary import comparable, in_order, measured, of_the_same
from lora_study.records.record import Record, read_records, run_dir
from lora_study.report.benchmarks import Benchmark, read_benchmarks

CURVES = ("step", "train_loss")
BEGUN = re.compile(r"\.?seed-(\d+)(?:\.checkpoint)?")  # folders of a run that has begun
MOST_NAMED = 8


@dataclass(frozen=True)
class Study:
    """What a report is made from.

    Attributes:
        name: Name of the results folder.
        address: Where the reader finds that folder, for the commands.
        records: The runs that can be compared, failed ones included.
        published: Those of the published copy; empty without one.
        reported: What the article and its companion script reported; its rows are what this study is compared with.
        curves: For each experiment, in the tables' order, the rows of its runs' ``curves.csv`` and their seed.
        predictions: For each experiment the predictions of its completed runs by seed, where they can be read.
        verdicts: One result per claim.
        benchmarks: Speed beside other tools, where it was measured.
        words: The study's title, question and limits, where its folder has them.
        warnings: One line per record or file that was left out.
    """

    name: str
    address: str
    records: list[Record]
    published: list[Record]
    reported: Reported
    curves: dict[str, pd.DataFrame]
    predictions: dict[str, dict[int, pd.DataFrame]]
    verdicts: list[ClaimResult]
    benchmarks: list[Benchmark]
    words: dict[str, str]
    warnings: list[str]

    @property
    def completed(self) -> list[Record]:
        """The runs that ended with a result."""
        return _completed(self.records)

    @property
    def guess(self) -> float:
        """The loss of a model that knows only how common each label is: ln 2 where they are equally common."""
        labels = [dict((record.data.get("labels") or {}).get("train") or {}) for record in self.completed]
        counts = [sum(each.get(label) or 0 for each in labels) for label in ("0", "1")]
        return float(entropy(counts)) if all(counts) else math.log(2)


def read_study(
    results_dir: str | Path,
    published_dir: str | Path | None = None,
    address: str | None = None,
    benchmarks_dir: str | Path | None = None,
) -> Study:
    """Read and check what a report is made from; the arguments are those of `lora_study.report.write_report`.

    Raises:
        ConfigError: there is no record that can be read.
    """
    root = user_path(results_dir).resolve()
    records, problems = read_records(root)
    if not records and (runs := sorted(root.glob("*/*/seed-*/record.json"))):
        study = user_path(results_dir) / runs[0].relative_to(root).parts[0]
        raise ConfigError(f"{results_dir} holds studies; name one of them, such as {study}")
    if not records and any(root.glob("seed-*/record.json")):
        raise ConfigError(f"{results_dir} is one experiment's folder; name the study's, which it lies in")
    if not records:
        unreadable = f" that can be read ({problems[0]})" if problems else ""
        raise ConfigError(f"{results_dir} holds no record{unreadable}; run `make reproduce` or `lora-study run` first")
    content, unusable = _study_file(root)
    problems += unusable
    if missing := missing_runs(root, records, content):
        problems.append(f"not every run is here: {missing}")
    records, left_out = comparable(records)
    published: list[Record] = []
    copy = user_path(published_dir or root.parent / "published" / root.name).resolve()
    if copy != root and (published_dir or copy.is_dir()):
        published, unreadable_copies = read_records(copy)
        absent = [] if published else [f"{copy.name} holds no record"]
        published, left_out_copies = comparable(published)
        published, changed = of_the_same(_completed(records), _completed(published))
        problems += [f"published run: {line}" for line in unreadable_copies + left_out_copies + changed + absent]
    reported = _compared(load_reported(), records)
    curves, predictions, unusable = _read_runs(root, records, in_order({r.name for r in records}, reported.rows))
    problems += left_out + unusable
    tested = [(record.reviews, measured(record, "metrics.test.n")) for record in _completed(records)]
    known = "test" if all("test" in reviews for reviews, _ in tested) else "all"  # of an older record no more is known
    if len({(str(reviews.get(known)), number) for reviews, number in tested}) > 1:
        problems.append("the experiments were not all tested on the same reviews; see their numbers and Data")
    computed = {
        str(found) for record in _completed(records) if (found := record.flat.get("provenance.hardware.precision"))
    }
    if len(computed) > 1:
        problems.append(f"runs were computed in {' and in '.join(sorted(computed))}, which changes some predictions")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        verdicts = evaluate(load_claims(), records, root)
    problems += [line for warning in caught if (line := str(warning.message)) not in problems]
    beside = user_path(benchmarks_dir or root.parent / "benchmarks").resolve()
    benchmarks, unreadable_benchmarks = read_benchmarks(beside)
    problems += [line.replace(f"{beside}{os.sep}", "../benchmarks/") for line in unreadable_benchmarks]
    # Paths within the study, so that the report does not depend on where the folders are.
    problems = [line.replace(f"{root}{os.sep}", "").replace(f"{copy}{os.sep}", "") for line in problems]
    return Study(
        name=root.name,
        address=address or _address(user_path(results_dir), root),
        records=records,
        published=published,
        reported=reported,
        curves=curves,
        predictions=predictions,
        verdicts=verdicts,
        benchmarks=benchmarks,
        words={name: str(content[name]) for name in WORDS if content.get(name)},
        warnings=list(dict.fromkeys(problems)),
    )


def missing_runs(root: Path, records: Sequence[Record], content: Mapping[str, Any] | None = None) -> str:
    """The runs that a study's folder should have and has no record of.

    These are the planned ones or, where no plan is known, those that have begun.

    Args:
        root: The study's results.
        records: Those that can be read.
        content: Of the study's file; None reads it.
    """
    content = _study_file(root)[0] if content is None else content
    listed = {key: content[key] if isinstance(content.get(key), list) else [] for key in ("experiments", "seeds")}
    planned = itertools.product(map(str, listed["experiments"]), (s for s in listed["seeds"] if isinstance(s, int)))
    begun = [
        (path.parent.name, int(found[1]))
        for path in sorted(root.glob("*/*seed-*"))
        if (found := BEGUN.fullmatch(path.name)) and not (path.parent / f"seed-{found[1]}" / "record.json").exists()
    ]
    there = {(record.name, record.seed) for record in records}
    expected = dict.fromkeys(planned if listed["experiments"] else begun)
    missing = [run for run in expected if run not in there]
    more = f" and {len(missing) - MOST_NAMED} more" if len(missing) > MOST_NAMED else ""
    named = (f"{name} seed {seed}{' (begun)' * ((name, seed) in begun)}" for name, seed in missing[:MOST_NAMED])
    return f"{', '.join(named)}{more}"


def _address(given: Path, root: Path) -> str:
    """What to type for the folder: what was typed if that holds in a clone, else where studies usually lie."""
    if not given.is_absolute() and ".." not in given.parts and given.name == root.name:
        return given.as_posix()
    return f"results/{'published/' if root.parent.name == 'published' else ''}{root.name}"


def _study_file(root: Path) -> tuple[dict[str, Any], list[str]]:
    """What a study says of itself, and a line if that cannot be read; neither if there is no such file."""
    path = root / STUDY_FILE
    try:
        return (read_yaml(path) if path.exists() else {}), []
    except ConfigError as error:
        return {}, [str(error)]


def _compared(reported: Reported, records: list[Record]) -> Reported:
    """The article's rows, and those rows of the layerwise experiment that this study ran and the article lacks.

    Without those of which this study's run has the name alone.
    """
    ran = {record.name for record in records}
    layerwise = {name: row for name, row in reported.layerwise.items() if name in ran - reported.rows.keys()}
    rows = {**reported.rows, **layerwise}
    unlike = {record.name for record in records if record.name in rows and rows[record.name].unlike(record)}
    return dataclasses.replace(reported, rows={name: row for name, row in rows.items() if name not in unlike})


def _completed(records: list[Record]) -> list[Record]:
    return [record for record in records if record.status == "completed"]


def _read_runs(
    root: Path, records: list[Record], names: list[str]
) -> tuple[dict[str, pd.DataFrame], dict[str, dict[int, pd.DataFrame]], list[str]]:
    """Curves and predictions of the completed runs by experiment, and a line per file that cannot be used."""
    curves = {name: pd.DataFrame() for name in names}
    predictions: dict[str, dict[int, pd.DataFrame]] = {}
    problems = []
    for name in names:
        for record in records:
            if record.name != name or record.status != "completed":
                continue
            folder = run_dir(root, name, record.seed)
            try:
                rows = _read_curves(folder / "curves.csv").assign(seed=record.seed)
                curves[name] = pd.concat([curves[name], rows])
            except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
                problems.append(f"{folder / 'curves.csv'} is left out of the learning curves: {_why(error)}")
            if not record.metrics.get("test"):  # a trial of a sweep, which says nothing about the test reviews
                continue
            try:
                rows = read_predictions(folder, record)
                predictions.setdefault(name, {})[record.seed] = rows
            except (OSError, ValueError, TypeError) as error:
                problems.append(f"{folder / 'predictions.parquet'} is left out: {_why(error)}")
    return curves, predictions, problems


def _why(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):  # pyarrow's says no more than the path
        return "it is missing"
    return getattr(error, "strerror", None) or " ".join(str(error).split())


def _read_curves(path: Path) -> pd.DataFrame:
    rows = pd.read_csv(path)
    missing = [column for column in CURVES if column not in rows]
    if missing:
        raise ValueError(f"column {', '.join(missing)} is missing")
    return rows[list(CURVES)].astype("float64")
