"""The record of one run: what was run, on what, with which result; and how it is written and read.

A run's folder is ``results/STUDY/EXPERIMENT/seed-N/``. Every file in it is written whole or not at all, and
``record.json`` is written last, when the run has ended: a folder without it is a run that never finished.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from lora_study.base.files import read_json, user_path, write_text
from lora_study.base.redaction import without_secrets
from lora_study.config import ExperimentConfig, flatten, to_dict, without_retired
from lora_study.config_files import overlay

VERSION = 1
ADAPTER = "adapter.safetensors"  # beside the record: what was trained, and the head


class RecordError(ValueError):
    """A record that cannot be read; the message names the file and the reason."""


@dataclass(frozen=True)
class Encoder:
    """The encoder of a run; a value is None where the record, older or of a failed run, does not say.

    Attributes:
        name: What it is called.
        backbone: What the config called it.
        revision: Its commit on the hub.
        sha256: Of its weights.
        settings_sha256: Of what else decides what it computes.
        stand_in: Whether it stands in for the article's.
    """

    name: str | None = None
    backbone: str | None = None
    revision: str | None = None
    sha256: str | None = None
    settings_sha256: str | None = None
    stand_in: bool | None = None


@dataclass
class Record:
    """One run. Nested values are plain JSON; a value that was not measured is None.

    Attributes:
        name: Experiment.
        mode: Fine-tuning mode.
        seed: Seed of the run.
        status: "completed" or "failed".
        error: Why a failed run failed, one line; None for a completed one.
        config: The resolved config, as nested mappings.
        deviations: {field, article, here}: where the config departs from the article's recipe.
        parameters: trainable, total, lora, head, base (the last three count trainable parameters).
        metrics: train, val, test -> accuracy (fraction), n, loss ...; test also f1 and auroc. Also best_epoch,
            and lora -> what LoRA promises, as measured on the run (see training/checks.py).
        timing: train_seconds (steps only), train_cpu_seconds (processor time in them, all threads together),
            fit_seconds (with validation), test_seconds, total_seconds, train_examples_per_second.
        memory: peak_bytes (while training), peak_bytes_with_scoring (of the whole run), kind (what they count). Records
            from before 2026-11-25 have the whole run's peak as peak_bytes, and no peak_bytes_with_scoring.
        data: source, fingerprint, sizes, overlap.
        provenance: commit, dirty, versions, hardware, command, seeds, started (UTC), encoder, rules_sha256.
        version: Version of this format.
    """

    name: str
    mode: str
    seed: int
    status: str
    error: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    deviations: list[dict[str, Any]] = field(default_factory=list)
    parameters: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    timing: dict[str, float | None] = field(default_factory=dict)
    memory: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    version: int = VERSION

    @property
    def flat(self) -> dict[str, Any]:
        """All values by their dotted names, such as 'metrics.test.accuracy' and 'config.lora.r'."""
        return flatten(vars(self))

    @property
    def reviews(self) -> dict[str, Any]:
        """The fingerprint of each part's reviews and, as 'all', of all together, as far as the record has them."""
        whole = self.data.get("fingerprint")
        parts = self.data.get("fingerprints") or (whole if isinstance(whole, Mapping) else {})
        return {**parts, **({"all": whole} if isinstance(whole, str) else {})}

    @property
    def encoder(self) -> Encoder:
        """The encoder it was run with."""
        known = self.provenance.get("encoder") or {}
        return Encoder(**{f.name: known.get(f.name) for f in dataclasses.fields(Encoder)})


_NUMBER = int | float
_NUMBERS, _COUNTS = {"*": _NUMBER}, {"*": int}
# What is read of the nested values, and its types; "*" is any other key. Each may be missing, or null.
_SHAPE: dict[str, Any] = {
    "config": {
        **{"model": {}, "seeds": {}, "train": {"epochs": int}, "data": {"max_length": int}, "partial": {"blocks": int}},
        "lora": {"r": int, "alpha": _NUMBER, "targets": [str]},
    },
    "deviations": [{}],
    "parameters": _COUNTS,
    "metrics": {"best_epoch": _NUMBER, **dict.fromkeys(("train", "val", "test", "lora"), _NUMBERS)},
    "timing": _NUMBERS,
    "memory": {"peak_bytes": _NUMBER, "peak_bytes_with_scoring": _NUMBER},
    "data": {
        "sizes": _COUNTS,
        "labels": {"*": _COUNTS},
        "share_truncated": _NUMBERS,
        "overlap": {"within": _COUNTS, "across": _COUNTS},
    },
    "provenance": {"encoder": {}, "hardware": {}, "versions": {}, "seeds": {}},
}
_EMPTY = Record(name="", mode="", seed=0, status="")  # a value of each field's type


def rules_sha256() -> str:
    """The hash of the file of rules that judge claims: in a record it shows that the rules are older than the run."""
    return hashlib.sha256(files("lora_study").joinpath("evidence", "claims", "rules.py").read_bytes()).hexdigest()


def run_dir(results_dir: Path, name: str, seed: int) -> Path:
    """The folder of one run below a study's results."""
    return results_dir / name / f"seed-{seed}"


def write_record(record: Record, folder: Path) -> Path:
    """Write ``record.json`` into a run's folder, without secrets that were typed or that an error quotes.

    NaN and infinity are refused, since JSON has none.
    """
    path, content = folder / "record.json", without_secrets(dataclasses.asdict(record))
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")
    return path


def read_record(path: str | Path) -> Record:
    """Read one record.

    Raises:
        RecordError: the file is missing, not JSON, of another version or lacks a field.
    """
    path = user_path(path)
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise RecordError(f"{path} is not a readable record: {error}") from error
    if not isinstance(content, dict) or content.get("version") != VERSION:
        found = content.get("version") if isinstance(content, dict) else None
        raise RecordError(f"{path} is of record version {found!r}; this version reads {VERSION}")
    try:
        record = Record(**content)
    except TypeError as error:
        raise RecordError(f"{path} does not have a record's fields: {error}") from error
    if record.status not in ("completed", "failed"):
        raise RecordError(f"{path} has status {record.status!r}; a record is 'completed' or 'failed'")
    for f in dataclasses.fields(record):
        expected = (str, type(None)) if f.name == "error" else type(getattr(_EMPTY, f.name))
        if not isinstance(getattr(record, f.name), expected):
            raise RecordError(f"{path} has {f.name}: {getattr(record, f.name)!r}, which is not of that field's type")
    if place := _misfit(content, _SHAPE):
        raise RecordError(f"{path} has a value of another type than a record's at {place}")
    # A run older than a setting was run with what is the setting's default now.
    record.config = overlay(to_dict(ExperimentConfig()), without_retired(record.config))
    return record


def read_records(results_dir: str | Path) -> tuple[list[Record], list[str]]:
    """All records below a study's results folder, by experiment and seed, and a line per unreadable one."""
    records, problems = [], []
    results_dir = user_path(results_dir)
    for path in sorted(results_dir.glob("*/seed-*/record.json")):
        try:
            record = read_record(path)
        except RecordError as error:
            problems.append(str(error))
            continue
        if run_dir(results_dir, record.name, record.seed) == path.parent:
            records.append(record)
        else:
            problems.append(f"{path} is the record of {record.name} seed {record.seed}, which belongs elsewhere")
    return sorted(records, key=lambda record: (record.name, record.seed)), problems


def _misfit(value: Any, shape: Any, place: str = "") -> str | None:
    """The dotted path of the first value that is not of the shape's type, or None."""
    if not isinstance(shape, dict | list):
        too_large = isinstance(value, int) and abs(value) >= 2**63  # for a table
        return None if isinstance(value, shape) and not isinstance(value, bool) and not too_large else place
    if not isinstance(value, type(shape)):
        return place
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        below = shape.get(key, shape.get("*")) if isinstance(shape, dict) else shape[0]
        missing = item is None and isinstance(shape, dict)
        if below is not None and not missing and (found := _misfit(item, below, f"{place}.{key}".lstrip("."))):
            return found
    return None
