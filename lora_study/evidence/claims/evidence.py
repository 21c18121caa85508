"""What a study's records can say about a claim: which runs, how far they are the article's, paired predictions."""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lora_study.base.errors import one_line
from lora_study.config import flatten
from lora_study.config_differences import NO_OTHER_WORK, without
from lora_study.evidence.claims.arithmetic import REFERENCE
from lora_study.evidence.predictions import correct, read_predictions
from lora_study.evidence.reported import PLAIN, load_reported
from lora_study.evidence.summary import comparable, encoder_label, encoders_of, machine_of, measured
from lora_study.records.record import Record, run_dir

# Departures after which a run is still one of the article's recipe: another source of the same weights or reviews,
# arithmetic in another 16-bit format, padding that is masked anyway, and scoring the 4 to 8 reviews that the article's
# loaders drop. With any other departure, its numbers are those of another experiment.
SAME_RECIPE = ("model.backbone", "data.source", "train.precision", "data.padding", "data.drop_last")
LIKE = 0.1  # two runs had like shares of their processor if these differ by no more
# IMDb's 50,000 reviews, all of which the recipe takes, are known by how many of them repeat another up to white space.
IMDB_REPEATS = 418


class Missing(Exception):  # noqa: N818 - not an error: the claim's verdict is then "not run"
    """The evidence a claim needs is not there; the message says what is missing."""


@dataclass(frozen=True)
class Pairs:
    """Two experiments tested on the same reviews, seed by seed.

    Attributes:
        first: Whether the first experiment's predictions are right, (seeds, reviews).
        second: The same for the second, reviews and seeds in the same order.
        runs: Folders of the runs, relative to the results.
        label: What to say beside their numbers, None for the article's own recipe; see `Runs.label`.
    """

    first: NDArray[np.bool_]
    second: NDArray[np.bool_]
    runs: tuple[str, ...]
    label: str | None


class Runs:
    """The completed runs of a study that may stand together, by experiment.

    Args:
        records: Records of a study; those that may not be averaged are left out (see `summary.comparable`), and those
            that have a reported row's name and other settings.
        results_dir: The study's results, below which the runs' predictions lie.

    Warns:
        UserWarning: a record is left out, and why.
    """

    def __init__(self, records: Iterable[Record], results_dir: Path) -> None:
        kept, left_out = comparable(records)
        self.results_dir = results_dir
        rows, self._completed = load_reported().by_name, list[Record]()
        for record in kept:
            name = record.name.removesuffix(PLAIN)
            if name in rows and (unlike := rows[name].unlike(record)):
                row = f"it is not the reported row of that name ({', '.join(unlike)}); give it another name"
                left_out.append(f"{record.name} seed {record.seed} serves no claim: {row}")
            elif record.status == "completed":
                self._completed.append(record)
        self._right: dict[tuple[str, int], pd.Series | str] = {}
        self._warned: set[str] = set()
        self._warn(left_out)

    def of(self, name: str) -> list[Record]:
        """The completed runs of an experiment, by seed.

        Raises:
            Missing: there is none.
        """
        runs = self.completed([name])
        if not runs:
            raise Missing(f"there is no completed run of {name}")
        return runs

    def completed(self, names: Sequence[str]) -> list[Record]:
        """The completed runs of some experiments, or of all if none is named."""
        return [record for record in self._completed if not names or record.name in names]

    def label(self, records: Sequence[Record]) -> str | None:
        """None if the runs are the article's recipe on the article's encoder; else what they are, in words."""
        if any(record.encoder.stand_in is not False or record.encoder.name != REFERENCE for record in records):
            return encoder_label(records)
        fields = {str(row.get("field")) for record in records for row in record.deviations} - set(SAME_RECIPE)
        if any(record.flat.get("data.overlap.repeats", IMDB_REPEATS) != IMDB_REPEATS for record in records):
            fields.add("data.source")
        for record in records:  # a draw that all seeds share hides how much it varies
            fields |= {f"seeds.{name}" for name, seed in (record.config.get("seeds") or {}).items() if seed is not None}
        return f"departing from the article in {', '.join(sorted(fields))}" if fields else None

    def pairs(self, first: str, second: str) -> Pairs:
        """The predictions of two experiments on the same reviews, for every seed both have.

        Warns:
            UserWarning: a pair is left out, and why.

        Raises:
            Missing: no pair is left.
        """
        rows, reasons, ids = [], [], None
        used: list[Record] = []
        for pair in self._both(first, second):
            joined = self._joined(*pair)
            if not isinstance(joined, str) and ids is not None and not ids.equals(joined.index):
                joined = "it was tested on other reviews than the seeds before"
            if isinstance(joined, str):
                reasons.append(f"{first} and {second} are not compared for seed {pair[0].seed}: {joined}")
                continue
            ids = joined.index
            rows.append(joined.to_numpy().T)
            used += pair
        self._warn(reasons)
        if not rows:
            raise Missing(reasons[0] if reasons else f"{first} and {second} have no seed in common")
        table = np.stack(rows)
        return Pairs(table[:, 0], table[:, 1], self.folders(used), self.label(used))

    def same_reviews(self, first: str, second: str) -> list[tuple[Record, Record]]:
        """The runs of two experiments with one encoder, on the same reviews, for every seed both have."""
        pairs = self._both(first, second)
        self._warn(
            f"{first} and {second} are not compared for seed {pair[0].seed}: {reason}"
            for pair in pairs
            if (reason := _unlike(*pair))
        )
        return [pair for pair in pairs if not _unlike(*pair)]

    def folders(self, records: Iterable[Record]) -> tuple[str, ...]:
        """Where the runs lie, relative to the results folder."""
        return tuple(sorted(run_dir(Path(), record.name, record.seed).as_posix() for record in records))

    def _both(self, first: str, second: str) -> list[tuple[Record, Record]]:
        """The runs of two experiments for every seed both have."""
        seconds = {record.seed: record for record in self.of(second)}
        return [(record, seconds[record.seed]) for record in self.of(first) if record.seed in seconds]

    def _joined(self, first: Record, second: Record) -> pd.DataFrame | str:
        """Two columns, one row per review: whether each run is right. Or why they cannot be compared."""
        if reason := _unlike(first, second):
            return reason
        columns = []
        for record in (first, second):
            right = self._predictions(record)
            if isinstance(right, str):
                return right
            columns.append(right)
        if not columns[0].index.equals(columns[1].index):
            return "their predictions are of different reviews"
        return pd.concat(columns, axis="columns")

    def _warn(self, lines: Iterable[str]) -> None:
        """Warn of each line once, however many claims need the same runs."""
        for line in lines:
            if line not in self._warned:
                self._warned.add(line)
                warnings.warn(line, stacklevel=3)

    def _predictions(self, record: Record) -> pd.Series | str:
        key = (record.name, record.seed)
        if key not in self._right:
            self._right[key] = _read_right(record, run_dir(self.results_dir, *key))
        return self._right[key]


def different_work(records: Sequence[Record]) -> list[str]:
    """What decides time and memory, besides the mode, and differs between the runs; empty if nothing does."""
    settings = [without(flatten(record.config), NO_OTHER_WORK) for record in records]
    fields = [
        field
        for field in sorted({field for setting in settings for field in setting})
        if len({str(setting.get(field)) for setting in settings}) > 1
    ]
    if len({machine_of(record) for record in records}) > 1:
        fields.append("hardware")
    if len({record.flat.get("provenance.hardware.attention") for record in records}) > 1:
        fields.append("attention")
    if len({record.memory.get("kind") for record in records}) > 1:
        fields.append("what memory was measured")
    return fields


def different_cost(records: Sequence[Record], quantity: str) -> list[str]:
    """Why a cost of the runs, such as ``timing.train_seconds``, does not compare them; empty if it does."""
    uneven = quantity == "timing.train_seconds" and _uneven_shares(records)
    return different_work(records) or ["shares of the processor, beside other work"] * uneven


def _uneven_shares(records: Sequence[Record]) -> bool:
    """Whether one of the runs had less of its processor than another, beside other work: their times tell nothing."""
    shares = []
    for record in records:
        spent, passed, threads = (
            measured(record, path)
            for path in ("timing.train_cpu_seconds", "timing.train_seconds", "provenance.hardware.threads")
        )
        # Of a GPU's time, and of features that were computed once, the processor's time tells nothing.
        timed = record.flat.get("provenance.hardware.accelerator") == "cpu" and not record.flat.get(
            "config.train.cache_trunk"
        )
        if not (spent and passed and threads and timed):
            return False
        shares.append(spent / (passed * threads))
    return max(shares) - min(shares) > LIKE


def _unlike(first: Record, second: Record) -> str | None:
    """Why two runs cannot be compared, None if they can."""
    one, other = encoders_of([first, second])
    if one != other:
        return "they were run with different encoders"
    ours, theirs = first.reviews, second.reviews
    shared = ours.keys() & theirs.keys() or ours.keys() | theirs.keys()
    different = any(ours.get(part) != theirs.get(part) for part in shared)
    return "they were trained or tested on different reviews" if different else None


def _read_right(record: Record, folder: Path) -> pd.Series | str:
    """Whether each prediction is right, by review id; or why the file cannot be used."""
    if not record.metrics.get("test"):
        return f"{record.name} seed {record.seed} did not score its test reviews"
    where = f"{record.name}/seed-{record.seed}/predictions.parquet"
    try:
        rows = read_predictions(folder, record)
    except FileNotFoundError:
        return f"{where} is missing"
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
        return f"{where} cannot be used: {one_line(error)}"
    return (correct(rows) == 1).set_axis(pd.Index(rows["id"])).sort_index()
