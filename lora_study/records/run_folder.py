"""The folder of one run: held by one process at a time, found completed or not, and written whole.

Beside it lie ``.seed-N.checkpoint/`` while the run goes on and ``.seed-N-.../`` while it is written. ``.locks/`` in the
results folder stays.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock
from safetensors.torch import save

from lora_study.base.errors import ConfigError
from lora_study.base.files import from_anywhere
from lora_study.base.redaction import without_secrets
from lora_study.base.settings import fitted
from lora_study.config import NAMED_SOURCES, ExperimentConfig, flatten, is_on_hub, to_dict
from lora_study.config_differences import NO_OTHER_RUN, without
from lora_study.records.record import ADAPTER, Record, read_record, write_record

# Only lora-study run can replace a run, never a study or a sweep; see `completed_run`.
OTHERWISE = (
    "choose another name or results folder, or move that folder away (--overwrite of lora-study run replaces it)"
)
REPLACED = "replaced"  # where the old run is kept until the new one is in its place


class BusyError(ConfigError):
    """Another process is running this very run."""


@contextlib.contextmanager
def locked(results_dir: Path, name: str, seed: int) -> Iterator[None]:
    """Hold one run of a study for this process alone.

    Raises:
        BusyError: another process holds it.
        ConfigError: the results folder cannot be written.
    """
    # The lock lies beside the runs and stays: removing a lock file lets two processes hold it at once.
    path = results_dir / ".locks" / f"{name}-seed-{seed}.lock"
    with writing_to(results_dir):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(path, timeout=0)
        try:
            lock.acquire()
        except filelock.Timeout:
            message = f"{name} seed {seed} in {results_dir} is being run by another process; wait for it"
            raise BusyError(message) from None
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def writing_to(results_dir: Path) -> Iterator[None]:
    """Turn the failure to write into a results folder into a `ConfigError`, and a name that pyarrow cannot take."""
    fitted(str(results_dir), str, "results folder")
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"results folder {results_dir} cannot be written ({error.strerror}: {error.filename}); choose another"
        ) from error


@contextlib.contextmanager
def put_back_if_refused(path: Path) -> Iterator[None]:
    """Leave a file of a results folder as it was if a block is refused before a run has ended in it."""

    def ended() -> dict[Path, int]:
        return {record: record.stat().st_mtime_ns for record in path.parent.glob("*/seed-*/record.json")}

    before, there = path.read_bytes() if path.exists() else None, ended()
    try:
        yield
    except ConfigError:
        now = path.read_bytes() if path.exists() else None
        if now != before and ended() == there:
            path.unlink() if before is None else path.write_bytes(before)
        raise


def completed_run(folder: Path, config: ExperimentConfig) -> Record | None:
    """The record of a completed run of this config in a run folder, if there is one.

    Raises:
        ConfigError: the folder holds a completed run of another config, or a damaged record.
    """
    path = folder / "record.json"
    if not path.exists():
        return None
    try:
        record = read_record(path)
    except ValueError as error:
        raise ConfigError(f"{error}; move it away, or run with another results folder") from error
    if record.status != "completed":
        return None
    if changed := changed_fields(record, config):
        raise ConfigError(f"{folder} holds a completed run with other settings ({', '.join(changed)}); {OTHERWISE}")
    return record


def changed_fields(record: Record, config: ExperimentConfig) -> list[str]:
    """Fields in which a record's config differs from a config, apart from those of `NO_OTHER_RUN`.

    Nor does the place matter of a file of reviews or of an encoder's folder whose content the record knows: that is
    compared by `training.finished.finished_run`.
    """
    then, now = flatten(record.config), flatten(to_dict(config))
    for key in ("data.source", "model.backbone"):  # older records have them as they were typed
        then[key] = now[key] if from_anywhere(str(then[key])) == now[key] else then[key]
    local = {"data": now["data.source"] != "hub", "model": not is_on_hub(now["model.backbone"])}
    then |= {f"{section}.revision": None for section, here in local.items() if here}  # older records kept the hub's
    if record.data.get("fingerprint") and not {then["data.source"], now["data.source"]} & set(NAMED_SOURCES):
        then["data.source"] = now["data.source"]
    if record.encoder.sha256 and record.encoder.settings_sha256 and Path(now["model.backbone"]).is_absolute():
        then["model.backbone"] = now["model.backbone"]
    then, now = (without(without_secrets(settings), NO_OTHER_RUN) for settings in (then, now))
    return [
        f"{key}: {then.get(key)!r} then, {now.get(key)!r} now"
        for key in sorted(then.keys() | now.keys())
        if then.get(key) != now.get(key)
    ]


def prepare_folder(folder: Path) -> None:
    """Check that a run's folder can be written, before anything is run; the caller holds it (see `locked`).

    What a killed process left beside it is removed. If the process was just putting a run in place, that is done first.

    Raises:
        ConfigError: it cannot be written.
    """
    with writing_to(folder):
        for left in folder.parent.glob(f".{folder.name}-*"):
            for run in (left / folder.name, left / REPLACED):
                if not folder.exists() and (run / "record.json").exists():
                    run.replace(folder)
            shutil.rmtree(left)
        if folder.exists():
            tempfile.TemporaryFile(dir=folder).close()
        place = next(path for path in folder.parents if path.exists())
        tempfile.TemporaryFile(dir=place).close()


def write_run(record: Record, files: Mapping[str, Any], folder: Path) -> None:
    """Write a run's folder beside its place and move it there whole; what stood there is removed only then.

    Args:
        record: The run's record, which is written last.
        files: curves and predictions as data frames, adapter as tensors by name; each may be missing.
        folder: The run's folder.

    Raises:
        OSError: it cannot be written; the message names it and the remedy.
    """
    try:
        _write_files(record, files, folder)
    except OSError as error:
        reason = error.strerror or error
        raise OSError(
            f"{folder} cannot be written: {reason}; free space, and --resume goes on after the last finished epoch"
        ) from error


def _write_files(record: Record, files: Mapping[str, Any], folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        staged = Path(temporary) / folder.name
        staged.mkdir()
        if "curves" in files:
            files["curves"].to_csv(staged / "curves.csv", index=False)
        if "predictions" in files:
            files["predictions"].to_parquet(staged / "predictions.parquet", index=False)
        if "adapter" in files:
            (staged / ADAPTER).write_bytes(save(files["adapter"], metadata={"format": "pt"}))
        write_record(record, staged)
        if folder.exists():
            folder.replace(Path(temporary) / REPLACED)
        staged.replace(folder)
